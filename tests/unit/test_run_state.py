"""What a run folder says of its run: running, stopped, failed and why, finished; what `evaluate` keeps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_files import begin, begun

import tunesmith as api
from conftest import RECIPE, tunesmith, tunesmith_json
from tunesmith.errors import DiskError, EnvironmentFault, IntegrityError, Interrupted
from tunesmith.recipe import parse_recipe
from tunesmith.rundir import RunFolder, verify_path
from tunesmith.rundir.evaluations import Evaluation, keep_evaluation
from tunesmith.rundir.result import RunResult
from tunesmith.rundir.schema import as_json, read_as
from tunesmith.rundir.status import STATUS_NAME, Status, read_status

SHORT = parse_recipe(RECIPE, overrides=["train.max_steps=2", "judge.stop_rows=1", "judge.max_new_tokens=2"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "small"
    api.train(SHORT, run=run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize(("error", "state", "reason"), [
    (Interrupted(15, "Stopped and saved at step 2 of 6."), "stopped", "Stopped and saved at step 2 of 6."),
    (KeyboardInterrupt(), "stopped", "KeyboardInterrupt:"),
    (EnvironmentFault("no GPU\nhere", "Get one."), "failed", "no GPU here"),
    (ValueError("ours"), "failed", "ValueError: ours"),
    (OSError("\udcff" * 9999), "failed", "OSError: " + "?" * 1991)], ids=repr)
def test_how_a_process_ended_is_kept(tmp_path: Path, error: BaseException, state: str, reason: str) -> None:
    with pytest.raises(type(error)), RunFolder(tmp_path / "run") as run:  # noqa: PT012
        begin(run)
        run.running()
        assert (read_status(run.path).state, read_status(run.path).process) == ("running", os.getpid())
        raise error
    found = read_status(run.path)
    assert (found.state, found.reason, found.process) == (state, reason, None)
    assert verify_path(run.path).damaged == verify_path(run.path).unsealed == []
    with RunFolder(run.path) as again:
        assert read_status(run.path) == found, "whoever only looks says nothing of the run"
        again.running()
        assert read_status(run.path).state == "running"


def test_a_run_that_is_refused_keeps_what_it_said(tmp_path: Path) -> None:
    """Here another recipe is brought to it: nothing of the run has happened."""
    run = tmp_path / "run"
    api.train(SHORT, run=run)
    before = (run / STATUS_NAME).read_bytes()
    with pytest.raises(api.TunesmithError, match="another recipe"):
        api.train(parse_recipe(RECIPE), run=run)
    assert (run / STATUS_NAME).read_bytes() == before


def test_what_ended_the_run_is_told_where_its_state_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*anything: Any) -> None:
        raise DiskError("the disk is full")

    with pytest.raises(ValueError, match="ours"), RunFolder(tmp_path / "run") as run:  # noqa: PT012
        begin(run)
        run.running()
        monkeypatch.setattr("tunesmith.rundir.status.write_atomically", full)
        raise ValueError("ours")
    assert read_status(run.path).state == "stopped"
    assert read_status(run.path).reason == "its process ended without saying why"


SLEEPING = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from run_files import begin
from tunesmith.rundir import RunFolder
with RunFolder(Path(sys.argv[1])) as run:
    begin(run)
    run.running()
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_process_that_is_killed_leaves_a_run_that_was_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLEEPING, str(tmp_path / "run"), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        found = read_status(tmp_path / "run")
        assert (found.state, found.process) == ("running", process.pid)
        assert api.verify(tmp_path / "run")["state"] == "running"
        with pytest.raises(EnvironmentFault,
                           match=f"another process .pid {process.pid}. is writing this run"):
            RunFolder(tmp_path / "run").__enter__()
        moved = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
        assert read_status(moved).state == "stopped", "nobody writes the copy"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert read_status(tmp_path / "run").reason == "its process ended without saying why"


def test_asking_for_the_state_keeps_nobody_from_the_run(tmp_path: Path) -> None:
    """A process that does nothing but ask holds the lock for moments."""
    run = begun(tmp_path / "run")
    code = ("import sys\nfrom pathlib import Path\nfrom tunesmith.rundir.status import "
            "_locked\nprint('ready', flush=True)\nwhile True: _locked(Path(sys.argv[1]))")
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(50):
            with RunFolder(run.path):
                pass
    finally:
        process.kill()
        process.wait()


def test_the_states_of_a_real_run(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(RECIPE.replace("max_steps: 6", "max_steps: 400"))
    run = tmp_path / "runs" / "my"
    process = subprocess.Popen([sys.executable, "-m", "tunesmith.cli.main", "train", "my.yaml"], cwd=tmp_path,
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    waited = time.monotonic() + 100
    while (
        not list((run / "checkpoints").glob("step-*"))
        and process.poll() is None
        and time.monotonic() < waited
    ):
        time.sleep(0.05)
    assert tunesmith_json("verify", "runs/my", cwd=tmp_path)["state"] == "running"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    done = tunesmith("verify", "runs/my", cwd=tmp_path)
    assert " files checked. The run was stopped: Stopped and saved at step " in done.stdout
    asked = tunesmith("generate", "runs/my", "--prompt", "a", cwd=tmp_path)
    assert asked.returncode == 9
    assert "runs/my: this run has no adapter yet: it was stopped: Stopped and saved at step " in asked.stderr
    assert "tunesmith train runs/my/recipe.yaml --run runs/my" in asked.stderr
    (run / "checkpoints").rename(tmp_path / "checkpoints")
    (run / "checkpoints").write_text("in the way")
    assert tunesmith("train", "my.yaml", cwd=tmp_path).returncode == 7
    found = tunesmith_json("verify", "runs/my", cwd=tmp_path)
    assert found["state"] == "failed"
    assert str(run / "checkpoints") in str(found["reason"])


def test_a_finished_run_says_so_and_nothing_of_where_it_is(run: Path, finished: Path) -> None:
    assert read_status(run).state == "finished"
    assert api.verify(run) == api.verify(run) | {"state": "finished", "reason": "", "damaged": [],
                                                 "unsealed": []}
    for path in run.rglob("*"):
        if path.is_file():
            assert str(finished.parent).encode() not in path.read_bytes(), path.name
    (run / STATUS_NAME).write_text((run / STATUS_NAME).read_text().replace("finished", "failed"))
    assert run / STATUS_NAME in verify_path(run).damaged
    assert read_status(run).state == "failed"


def test_a_run_whose_results_are_damaged_ends_again(run: Path) -> None:
    (run / "report.html").write_text("")
    result = api.train(SHORT, run=run)
    assert result["steps"] == 2
    assert read_status(run).state == "finished"
    assert verify_path(run).damaged == []


@given(st.one_of(st.binary(max_size=200),
                 st.dictionaries(st.sampled_from(["state", "since", "process", "reason", "x"]), st.one_of(
    st.sampled_from(["running", "finished", "stopped", "", None, -1, 10**30, True, [], {}]),
    st.text(max_size=5))).map(
        lambda found: json.dumps(found).encode())))
def test_a_status_of_anybody_s_making_is_read_or_damage(tmp_path_factory: pytest.TempPathFactory,
                                                        content: bytes) -> None:
    run = begun(tmp_path_factory.mktemp("run") / "run")
    (run.path / STATUS_NAME).write_bytes(content)
    try:
        found = read_status(run.path)
    except IntegrityError as error:
        assert error.message.startswith(str(run.path / STATUS_NAME))
        assert verify_path(run.path).damaged == [run.path / STATUS_NAME]
    else:
        assert found.state in ("stopped", "failed"), "no process has it, and no seal says that it is finished"
        assert Status.model_validate_json(content)
        assert verify_path(run.path).damaged == []
    with RunFolder(run.path) as again:
        again.running()
        assert read_status(run.path).state == "running"


def test_the_peak_of_memory_is_that_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe(RECIPE, overrides=["train.save_steps=1"])
    from tunesmith.training import loop

    def until(step: int, run: Path, peak_bytes: int) -> dict[str, Any]:
        def stop_at(record: dict[str, Any]) -> None:
            if record["step"] == step:
                os.kill(os.getpid(), signal.SIGTERM)

        class Stopping(api.verbs.show.Silent):  # type: ignore[misc, name-defined]
            def step(self, record: dict[str, Any], total: int) -> None:
                stop_at(record)

        monkeypatch.setattr(loop, "peak_memory_bytes", lambda device: peak_bytes)
        return api.train(recipe, run=run, show=Stopping())

    with pytest.raises(Interrupted):
        until(2, tmp_path / "run", 9 << 40)
    result = until(0, tmp_path / "run", 1 << 20)
    assert result["peak_memory_bytes"] == 9 << 40


def test_the_result_comes_back_as_it_was_written(run: Path) -> None:
    found = read_as(RunResult, run / "result.json", "")
    assert as_json(found) == (run / "result.json").read_text()
    infinite = found.model_copy(update={"train_loss": float("inf"), "eval_loss_before": None,
                                        "judgement": None})
    (run / "result.json").write_text(as_json(infinite))
    assert read_as(RunResult, run / "result.json", "") == infinite
    for change in ({"more": 1}, {"steps": "2"}, {"run": "/somewhere"}, {"kept": {"int8": -1}},
                   {"judgement": {}}):
        (run / "result.json").write_text(json.dumps(json.loads(as_json(found)) | change))
        with pytest.raises(IntegrityError, match=f"result.json: {next(iter(change))}"):
            read_as(RunResult, run / "result.json", "")


def test_what_evaluate_found_is_kept_in_the_run(run: Path) -> None:
    first, second = (api.evaluate(run, overrides=("judge.samples=3", f"judge.max_new_tokens={n}"))
                     for n in (2, 3))
    for found, tokens in ((first, 2), (second, 3)):
        folder = Path(found["kept"])
        assert folder.parent == run / "evaluations"
        kept = read_as(Evaluation, folder / "evaluation.json", "")
        assert kept.judgement.model_dump(mode="json") == {key: found[key]
                                                          for key in kept.judgement.model_dump()}
        assert (kept.modules, kept.quantization, kept.device) == (found["modules"], "none", "cpu")
        assert parse_recipe((folder / "recipe.yaml").read_text()).judge.max_new_tokens == tokens
        assert [json.loads(line)
                for line in (folder / "samples.jsonl").read_text().splitlines()] == found["samples"]
    assert first["kept"] != second["kept"]
    assert read_status(run).state == "finished"
    found = verify_path(run)
    assert found.damaged == found.unsealed == []
    for path in Path(second["kept"]).iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert verify_path(run).damaged == [path]
        path.write_bytes(content)


def test_an_evaluation_that_cannot_be_kept_is_told_and_shown(run: Path) -> None:
    told: list[str] = []

    class Telling(api.verbs.show.Silent):  # type: ignore[misc, name-defined]
        def note(self, text: str) -> None:
            told.append(text)

    with RunFolder(run):
        found = api.evaluate(run, show=Telling())
    assert found["kept"] is None
    assert found["verdict"]
    assert any("not kept in the run" in line and "another process" in line for line in told)


def test_two_evaluations_in_one_second_are_two(tmp_path: Path, run: Path) -> None:
    found = read_as(RunResult, run / "result.json", "")
    assert found.judgement
    one = Evaluation(when="now", engine="hf", device="cpu", dtype="float32", quantization="none", modules=1,
                     judgement=found.judgement)
    places = [keep_evaluation(run, one, "", []) for _ in range(3)]
    assert len(set(places)) == 3
    assert verify_path(run).damaged == []
