"""Machines that lack something: system errors, closed streams, no home, other encodings, little memory."""

from __future__ import annotations

import ast
import errno
import importlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from run_files import begin

from tunesmith.cli.common import _expected
from tunesmith.cli.process import use_threads
from tunesmith.errors import IntegrityError, Interrupted, TunesmithError
from tunesmith.os_errors import explained_os_error
from tunesmith.rundir import Checkpoints, MetricsLog, RunFolder, verify_path
from tunesmith.rundir.manifest import read_manifest
from tunesmith.training.signals import StopSignal
from tunesmith.training.state import read_state

CODES = {errno.EROFS: 7, errno.EMFILE: 5, errno.ENFILE: 5, errno.ENOMEM: 6, errno.ESTALE: 7, errno.ENOSPC: 7,
         errno.EIO: 7, errno.EACCES: 7, errno.EDQUOT: 7, errno.ENXIO: 7}


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_the_system_s_errors_have_words_and_our_codes(code: int) -> None:
    error = OSError(code, os.strerror(code), "some/file")
    for found in (explained_os_error(error, "some/file"), _expected(error),
                  _expected(OSError(code, os.strerror(code)))):
        assert found is not None
        assert found.exit_code == CODES[code]
        assert found.hint
    assert isinstance(_expected(OSError(errno.ECHILD, "no child", "f")), TunesmithError)


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    "name", ["open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "ftruncate", "pwrite"]
)
def test_a_file_operation_that_fails_is_told_and_the_same_work_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    """Each operation of the system fails once, at each place where a run folder asks for it."""
    def work(folder: Path) -> None:
        with RunFolder(folder) as run:
            if not run.begun():
                begin(run, "x")
            run.running()
            run.replace_recipe("y")
            run.metrics.append({"step": 1})
            run.metrics.mark()
            for step in range(1, 5):
                run.checkpoints(2).save(step, {"state.json": b'{"run_id": "a"}'})

    original, places = getattr(os, name), 0
    for place in range(1, 40):
        calls, failed = 0, False

        def once(*args: Any, place: int = place, **more: Any) -> Any:
            nonlocal calls, failed
            calls += 1
            if calls == place:
                failed = True
                raise OSError(code, os.strerror(code))
            return original(*args, **more)

        folder = tmp_path / f"run-{place}"
        with monkeypatch.context() as patch:
            patch.setattr(os, name, once)
            try:
                work(folder)
            except TunesmithError as error:
                assert error.exit_code == CODES[code]
        if not failed:
            break
        places += 1
        work(folder)
        assert verify_path(folder).damaged == []
    assert places or name in ("rename",)


def test_a_state_of_anybody_s_making_is_refused_or_is_a_state() -> None:
    draw = random.Random(os.urandom(8))
    good = {"progress": {"step": 2, "samples": 8, "tokens": 90, "loss_tokens": 30, "seconds": 1.5,
                         "micro_batches": {"rows": None, "max_tokens": 9,
            "overhead_tokens": 1}, "metrics": {"bytes": 3, "sha256": "0" * 64}}, "scaler": {}, "random": {
            "numpy": ["MT19937", 624, 0, 0.0], "python": [3, None]}, "run_id": "a"}
    assert read_state(json.dumps(good).encode()).progress.step == 2
    odd = [None, -1, 10**400, float("nan"), float("inf"), "x", [], {}, [[]], True, 1.5, {"a": 1}]

    def spoil(value: Any) -> Any:
        if isinstance(value, dict) and value and draw.random() < 0.8:
            key = draw.choice(list(value))
            return (
                {**value, key: spoil(value[key])}
                if draw.random() < 0.8
                else {k: v for k, v in value.items() if k != key}
            )
        return draw.choice(odd)

    refused = 0
    for _ in range(300):
        try:
            read_state(json.dumps(spoil(good)).encode())
        except TunesmithError as error:
            assert error.exit_code == 9
            refused += 1
    assert refused > 150
    for text in (b"", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"null"):
        with pytest.raises(TunesmithError):
            read_state(text)
    with pytest.raises(TunesmithError, match="extra"):
        read_state(json.dumps(good | {"extra": 1}).encode())


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"base": 3}', '{"base": {"files": []}}',
                                      '{"base": {"files": {}}, "data": null}',
                                      '{"base": {"files": {}}, "data": {}, "versions": 1}', "[" * 10**5,
                                      '{"run_id": 3}', "\xff"])
def test_a_manifest_of_anybody_s_making_is_refused(tmp_path: Path, manifest: str) -> None:
    run = RunFolder(tmp_path)
    run.manifest.write_text(manifest, encoding="latin-1")
    with pytest.raises(IntegrityError):
        read_manifest(run.path)


def test_a_stop_is_acknowledged_at_once_and_the_second_leaves(tmp_path: Path) -> None:
    import signal

    told: list[str] = []
    with StopSignal(told.append) as stop, stop.deferred():
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT
        assert len(told) == 1
        assert "Once more leaves at once" in told[0]
    with pytest.raises(Interrupted), StopSignal(told.append):
        signal.raise_signal(signal.SIGTERM)
    assert len(told) == 1
    code = ("import signal\nfrom tunesmith.training.signals import StopSignal\nwith "
            "StopSignal() as stop, stop.deferred():\n"
            "    signal.raise_signal(2)\n    signal.raise_signal(2)\n    print('still here')\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")


# --- streams, encodings, homes ---

PLAN = 'model: {base: "embedded:sprout"}\ndata: {source: "embedded:quotes", completion: "{tags}"}\n'


def command(*words: str, cwd: Path, shell: str = "",
            env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    quoted = " ".join(f"'{word}'" for word in (sys.executable, "-m", "tunesmith", *words))
    return subprocess.run(["sh", "-c", f"{quoted} {shell}"], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, **(env or {})}, errors="replace")


@pytest.mark.parametrize("shell", ["2>&-", ">&-", ">&- 2>&-", "2>/dev/full", "| true"])
def test_streams_that_are_closed_or_full_cost_no_traceback(tmp_path: Path, shell: str) -> None:
    (tmp_path / "r.yaml").write_text(PLAN)
    done = command("plan", "r.yaml", cwd=tmp_path, shell=shell)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    wrong = command("plan", "nothing.yaml", cwd=tmp_path, shell=shell.replace("| true", ""))
    assert wrong.returncode == 3


def test_a_full_stdout_is_told(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(PLAN)
    done = command("plan", "r.yaml", cwd=tmp_path, shell=">/dev/full")
    assert done.returncode == 7
    assert "disk is full" in done.stderr


def test_no_home_and_no_name(tmp_path: Path) -> None:
    """A container's user without an entry in passwd."""
    if os.getuid() != 0:
        pytest.skip("only root can become someone else")
    code = ("import os, sys\nos.setuid(54321)\nos.environ.pop('HOME', "
            "None)\nimport tunesmith.cli.process as c\nc.have_a_home()\n"
            "from pathlib import Path\nPath.home()\nassert os.stat(os.environ['HOME']).st_mode & 0o77 == "
            "0\nfrom tunesmith.paths import expanded\n"
            "print(expanded('~/x'))\n")
    source = str(Path(__file__).resolve().parents[2] / "src")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/",
                          env={**os.environ, "PYTHONPATH": source})
    if "Permission" in done.stderr or "No module" in done.stderr:
        pytest.skip("this place is closed to other users")
    assert done.returncode == 0, done.stderr


def test_an_ascii_terminal_and_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(folder)
    Path(folder, "r.yaml").write_text(PLAN)
    env = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    for words in (("plan", "r.yaml"), ("plan", "r.yaml", "--json"), ("plan", "x.yaml"), ("verify", ".")):
        done = subprocess.run([sys.executable, "-m", "tunesmith", *words], cwd=folder, capture_output=True,
                              env={**os.environ, **env})
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == (0 if words[1] == "r.yaml" else 3 if words[0] == "plan" else 9)
        done.stdout.decode("ascii")


def test_a_missing_package_is_told_as_such() -> None:
    found = _expected(ModuleNotFoundError("No module named 'peft'", name="peft"))
    assert found is not None
    assert found.exit_code == 5
    assert "peft is not installed" in found.message
    assert _expected(ModuleNotFoundError("No module named 'tunesmith.x'", name="tunesmith.x")) is None
    broken = _expected(ImportError("cannot import name 'x' from 'torch'", name="torch"))
    assert broken is not None
    assert broken.exit_code == 5


def test_a_chart_that_cannot_be_drawn_costs_the_chart(tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.judge import report

    monkeypatch.setattr(report, "_DRAW", "import os; os.abort()")
    charts = report._as_svg(report._line_chart([{"step": 1, "a": 2.0}], "a", "a", 100))
    assert ["could not be drawn" in chart for chart in charts] == [True]


def test_threads_are_set_for_what_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")
    try:
        use_threads(None)
        assert os.environ["OMP_NUM_THREADS"] == "7"
        use_threads(1)
        assert (os.environ["OMP_NUM_THREADS"], torch.get_num_threads()) == ("1", 1)
    finally:
        torch.set_num_threads(before)


def test_how_threads_wait_is_the_user_s_to_say() -> None:
    for given, want in ((None, "None"), ("PASSIVE", "PASSIVE")):
        env = {name: value for name, value in os.environ.items()
               if name != "OMP_WAIT_POLICY"} | ({"OMP_WAIT_POLICY": given} if given else {})
        done = subprocess.run([sys.executable, "-c",
                               "import os, tunesmith, sys; print(os.environ.get('OMP_WAIT_POLICY'), "
                               "'torch' in sys.modules)"],
                              env=env, capture_output=True, text=True)
        assert done.stdout.split() == [want, "False"]


def test_nothing_here_reads_a_run_s_json_unchecked() -> None:
    """Files of runs, adapters and bases are read through `rundir.ordinary`, which bounds and names them."""
    import tunesmith

    root = Path(tunesmith.__file__).parent
    allowed = {"rundir/ordinary.py", "rundir/metrics.py", "embedded/build.py", "hub/download.py",
               "verbs/doctor.py", "verbs/demo.py"}  # the last two: of our own making, a moment ago
    for path in root.rglob("*.py"):
        if str(path.relative_to(root)) in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "json.loads"
                and "read_text" in ast.unparse(node)
            ):
                pytest.fail(f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node)[:80]}")


def test_checkpoints_and_metrics_survive_odd_lines(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b'{"step": 1, "loss": 2, "learning_rate": 0}\n\xff\n[' + b"[" * 10**5
                                       + b'\n{"step": 2, "loss": 2, "learning_rate": 0}\n' + b"9" * 5000
                                       + b"\n")
    assert [record["step"] for record in MetricsLog(tmp_path / "m.jsonl").read()] == [1, 2]
    (tmp_path / "step-x").mkdir()
    assert Checkpoints(tmp_path, 3).newest_whole() == (None, {}, [])


def test_a_stop_waits_for_the_import_that_it_falls_into(tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.2)\nDONE = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def import_and_wait() -> None:
        importlib.import_module("slow_to_import")
        time.sleep(5)
        pytest.fail("it never came")

    with StopSignal(), pytest.raises(Interrupted):
        import_and_wait()
    assert sys.modules.pop("slow_to_import").DONE
