"""Crashes, signals, full disks, damage: the run comes back, and its adapter is the one it would have been."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tunesmith as api
from conftest import RECIPE, tunesmith
from tunesmith.errors import DiskError, EnvironmentFault, Interrupted
from tunesmith.recipe import parse_recipe
from tunesmith.rundir import RunFolder, files

KILL_RUNS = Path(__file__).parent / "kill_runs.py"


def kill_runs(folder: Path, points: int, quantization: str, seed: int) -> None:
    done = subprocess.run([sys.executable, str(KILL_RUNS), str(folder), "--points", str(points), "--seed",
                           str(seed), "--quantization", quantization], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(found, "seed", seed)
    assert found["failures"] == [], f"seed {seed}"
    assert found["killed"] >= points * 0.7


def test_killed_runs_come_back_bit_identical(tmp_path: Path) -> None:
    kill_runs(tmp_path, 6, random.choice(["none", "int8"]), random.randrange(10**6))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_two_hundred_kill_points(tmp_path: Path, quantization: str) -> None:
    kill_runs(tmp_path, 100, quantization, random.randrange(10**6))


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = tmp_path_factory.mktemp("whole") / "run"
    api.train(parse_recipe(RECIPE), run=run)
    return adapter(run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130),
                                              pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path, recipe: Path, number: int,
                                                     code: int) -> None:
    recipe.write_text(RECIPE.replace("max_steps: 6",
                                     "max_steps: 60").replace("save_steps: 2", "save_steps: 1000"))
    process = subprocess.Popen([sys.executable, "-m", "tunesmith.cli.main", "train", recipe.name],
                               cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs" / "small" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "Stopped and saved at step" in said
    assert "Traceback" not in said
    done = tunesmith("train", recipe.name, cwd=tmp_path)
    assert done.returncode == 0
    assert "Resuming runs/small at step" in done.stderr
    api.train(recipe, run=tmp_path / "uninterrupted")
    assert adapter(tmp_path / "runs" / "small") == adapter(tmp_path / "uninterrupted")


def test_the_second_signal_leaves_at_once() -> None:
    from tunesmith.training.signals import StopSignal

    child = os.fork()
    if child == 0:
        try:
            with StopSignal() as stop, stop.deferred():
                os.kill(os.getpid(), signal.SIGINT)
                if stop.number == signal.SIGINT:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               whole: bytes) -> None:
    original, run = os.write, tmp_path / "run"

    def full(descriptor: int, data: bytes) -> int:
        if ".tmp-step-000004" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "write", full)
        with pytest.raises(DiskError, match="the disk is full"):
            api.train(parse_recipe(RECIPE), run=run)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-000002"]
    assert api.verify(run)["whole"]
    api.train(parse_recipe(RECIPE), run=run)
    assert adapter(run) == whole


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             whole: bytes) -> None:
    from tunesmith.training import loop

    run, original = tmp_path / "run", loop.step_that_fits

    def stop_at_five(*args: object, step: int, **more: object) -> object:
        if step == 5:
            raise KeyboardInterrupt
        return original(*args, step=step, **more)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "step_that_fits", stop_at_five)
        with pytest.raises(KeyboardInterrupt):
            api.train(parse_recipe(RECIPE), run=run)
    newest = run / "checkpoints" / "step-000004"
    victim = random.choice(sorted(p for p in newest.iterdir()))
    content = bytearray(victim.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    victim.write_bytes(content)
    assert str(victim) in api.verify(run)["damaged"]
    notes: list[str] = []
    show = type("Show", (), {"note": lambda self, text: notes.append(text), "stage": lambda self, text: None,
                             "facts": lambda self, facts: None, "step": lambda self, record, total: None})()
    api.train(parse_recipe(RECIPE), run=run, show=show)
    assert any(victim.name in note and "falling back" in note for note in notes)
    assert any("at step 2 of 6" in note for note in notes)
    assert adapter(run) == whole


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def test_a_damaged_finished_run_ends_again(tmp_path: Path, whole: bytes) -> None:
    run = tmp_path / "run"
    api.train(parse_recipe(RECIPE), run=run)
    for name in ("adapter/adapter_model.safetensors", "result.json", "metrics.jsonl"):
        flip(run / name)
        assert api.verify(run)["damaged"] == [str(run / name)]
        api.train(parse_recipe(RECIPE), run=run)
        assert adapter(run) == whole
        if name != "metrics.jsonl":  # what the file said before it was damaged is gone for good
            assert api.verify(run)["whole"]
    flip(run / "recipe.yaml")
    with pytest.raises(api.TunesmithError) as caught:
        api.train(parse_recipe(RECIPE), run=run)
    assert caught.value.exit_code == 9
    assert "recipe.yaml: damaged" in str(caught.value)
    (run / "sha256.json").unlink()
    assert str(run / "sha256.json") in api.verify(run)["damaged"]


def test_damaged_metrics_of_a_stopped_run_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.training import loop

    run, original = tmp_path / "run", loop.step_that_fits

    def stop_at_four(*args: object, step: int, **more: object) -> object:
        if step == 4:
            raise KeyboardInterrupt
        return original(*args, step=step, **more)

    monkeypatch.setattr(loop, "step_that_fits", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        api.train(parse_recipe(RECIPE), run=run)
    assert api.verify(run)["whole"]
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(lines[0].replace(b"1", b"2", 1) + b"".join(lines[1:]))
    assert api.verify(run)["damaged"] == [str(run / "metrics.jsonl")]


def test_a_second_process_on_the_same_run_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run"), pytest.raises(EnvironmentFault, match="another process"):
        api.train(parse_recipe(RECIPE), run=tmp_path / "run")


def test_changed_data_or_base_is_refused(tmp_path: Path, recipe: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"quote": "a lamp {i}", "tags": ["light"]}}\n'
                                                 for i in range(20)))
    words = ["data.source=rows.jsonl", "data.validation=2"]
    os.chdir(tmp_path)
    api.train(recipe, run="run", overrides=words)
    (tmp_path / "run" / "sha256.json").unlink()
    (tmp_path / "run" / "report.html").unlink()
    with RunFolder(tmp_path / "run") as run:
        run.begin()
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('{"quote": "a new lamp", "tags": ["light"]}\n')
    with pytest.raises(api.TunesmithError, match="changed since the run began: the rows of"):
        api.train(recipe, run="run", overrides=words)


def test_nan_of_the_last_update_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.training import loop

    original = loop.step_that_fits

    def poison(engine: object, *args: object, step: int, **more: object) -> object:
        result = original(engine, *args, step=step, **more)
        if step == 6:
            next(iter(engine.trainable().values())).data.fill_(float("nan"))  # type: ignore[attr-defined]
        return result

    monkeypatch.setattr(loop, "step_that_fits", poison)
    with pytest.raises(api.TunesmithError, match="step 6: .*NaN"):
        api.train(parse_recipe(RECIPE), run=tmp_path / "run")
    assert sorted(p.name
                  for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-000002", "step-000004"]


def test_nan_stops_with_the_step_and_the_rows(tmp_path: Path) -> None:
    with pytest.raises(api.TunesmithError) as caught:
        api.train(parse_recipe(RECIPE, overrides=["train.learning_rate=1e30", "train.max_grad_norm=0"]),
                  run=tmp_path / "run")
    assert caught.value.exit_code == 3
    assert "step " in str(caught.value)
    assert "quotes.jsonl, line" in str(caught.value)


def test_a_run_by_epochs_resumes_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """39 rows in batches of 16: the third batch of each epoch has 7."""
    sets = ["data.validation=0", "train.max_steps=null", "train.num_epochs=2", "train.batch_size=16",
            "train.save_steps=1"]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f'{{"q": "q{n}", "a": "a{n}"}}\n' for n in range(39)))
    sets += [f"data.source={source}", "data.prompt={q} ->", "data.completion= {a}"]
    recipe = parse_recipe(RECIPE, overrides=sets)
    from tunesmith.training import loop

    whole = api.train(recipe, run=tmp_path / "whole")
    assert whole["steps"] == 6
    original = loop.step_that_fits

    def stop_at_four(*args: Any, step: int, **more: Any) -> Any:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, step=step, **more)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "step_that_fits", stop_at_four)
        with pytest.raises(Interrupted):
            api.train(recipe, run=tmp_path / "parts")
    api.train(recipe, run=tmp_path / "parts")
    weights = [(tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes()
               for run in ("whole", "parts")]
    assert weights[0] == weights[1]
    sizes = [json.loads(line)["tokens"]
             for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert len(sizes) == 6
    assert sizes[2] < sizes[0] / 1.5
