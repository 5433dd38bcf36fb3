from __future__ import annotations

import errno
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_files import begin

from tunesmith.errors import DiskError, EnvironmentFault, IntegrityError, Interrupted, UsageError
from tunesmith.rundir import (
    SEAL_NAME,
    Checkpoints,
    MetricsLog,
    RunFolder,
    check_seal,
    read_sealed,
    staging_folder,
    verify_path,
    write_atomically,
    write_sealed_folder,
)
from tunesmith.rundir.files import remove_leftovers

FILES = {"a.bin": bytes(range(256)) * 3, "empty": b"", "c.json": b'{"x": 1}\n'}


@given(st.data())
def test_any_flipped_byte_is_found_and_named(tmp_path_factory: pytest.TempPathFactory,
                                             data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("sealed") / "it"
    write_sealed_folder(folder, FILES)
    assert check_seal(folder) == []
    assert read_sealed(folder) == FILES
    name = data.draw(st.sampled_from([n for n in [*FILES, SEAL_NAME] if n != "empty"]))
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    (folder / name).write_bytes(content)
    assert check_seal(folder) == [folder / name]
    with pytest.raises(IntegrityError, match=name):
        read_sealed(folder)


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    write_sealed_folder(tmp_path / "it", FILES)
    (tmp_path / "it" / "empty").unlink()
    assert check_seal(tmp_path / "it") == [tmp_path / "it" / "empty"]


@pytest.mark.parametrize("name", ["open", "write", "fsync", "replace", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_keeps_the_old_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      name: str, code: int) -> None:
    write_atomically(tmp_path / "f", "old")
    write_sealed_folder(tmp_path / "it", {"f": b"old"})
    original = getattr(os, name)
    for fail_at in range(1, 8):
        calls = 0

        def failing(*args: object, fail_at: int = fail_at, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise OSError(code, os.strerror(code))
            return original(*args, **kwargs)

        for action in (lambda: write_atomically(tmp_path / "f", "new"),
                       lambda: write_sealed_folder(tmp_path / "it", {"f": b"new", "g": b"new"})):
            calls = 0
            with monkeypatch.context() as patched:
                patched.setattr(os, name, failing)
                try:
                    action()
                except DiskError as error:
                    assert error.exit_code == 7
        assert (tmp_path / "f").read_text() in ("old", "new")
        assert check_seal(tmp_path / "it") == []
        remove_leftovers(tmp_path)  # as the next run does: a disk that fails may also fail to clean up
        assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "it"]


def test_only_the_newest_checkpoints_stay_and_the_newest_whole_is_found(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest_whole() == (None, {}, [])
    for step in (2, 4, 1_000_000, 6):
        checkpoints.save(step, {"f": str(step).encode()})
    assert [p.name for p in checkpoints.paths()] == ["step-000006", "step-1000000"]
    newest = checkpoints.paths()[-1] / "f"
    newest.write_bytes(b"8")
    path, files, damaged = checkpoints.newest_whole()
    assert path is not None
    assert (path.name, files) == ("step-000006", {"f": b"6"})
    assert damaged == [f"{newest}: damaged"]


def test_metrics_go_back_to_their_mark(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "loss": 2.5, "learning_rate": 1e-3})
    mark = log.mark()
    log.append({"step": 2, "loss": 2.5, "learning_rate": 1e-3})
    with open(log.path, "ab") as file:
        file.write(b'{"step": 3, "lo')
    assert [r["step"] for r in log.read()] == [1, 2]
    assert log.rewind(mark)
    assert [r["step"] for r in log.read()] == [1]
    log.path.write_text('{"step": 9}\n')
    assert not log.rewind(mark)
    log.path.write_text('{"step": 1}')  # shorter than the mark: nothing is padded
    assert not log.rewind({"bytes": 500, "sha256": ""})
    assert log.path.read_bytes() == b""
    assert log.rewind(None)
    assert log.read() == []


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with RunFolder(tmp_path / "run"):
                    status = 2
            except EnvironmentFault as error:
                status = 0 if f"pid {os.getppid()}" in str(error) else 3
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with RunFolder(tmp_path / "run"):
        pass


def test_a_folder_with_other_things_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a run folder"), RunFolder(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"), RunFolder(tmp_path / "file"):
        pass


def test_too_little_disk(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run, pytest.raises(DiskError, match="MB are free"):
        run.require_space(1 << 60)


def test_verify_covers_the_whole_run(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        begin(run)
        assert run.begun()
        assert not run.finished()
        run.checkpoints().save(2, {"state.json": b'{"run_id": "a"}'})
        write_sealed_folder(run.adapter, {"adapter_model.safetensors": b"weights"})
        write_atomically(run.report, "<html>")
        run.finish()
        assert run.finished()
    found = verify_path(run.path)
    assert (found.damaged, found.unsealed) == ([], [])
    files = [p for p in run.path.rglob("*") if p.is_file() and p.name != ".lock"]
    assert sorted(found.checked) == sorted(files)
    for path in files:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[random.randrange(len(content))] ^= 1
        path.write_bytes(flipped)
        assert path in verify_path(run.path).damaged
        path.write_bytes(content)
    assert not verify_path(run.path).damaged


def test_verify_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        verify_path(tmp_path / "none")
    (tmp_path / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(IntegrityError, match=SEAL_NAME):
        verify_path(tmp_path)


def test_no_signal_breaks_into_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled module's start may let no exception out, so a half-done import is never interrupted."""
    (tmp_path / "slow_to_import.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.6)\nreached = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def import_and_wait() -> None:
        importlib.import_module("slow_to_import")
        time.sleep(5)  # it is raised as soon as the import is done

    with pytest.raises(Interrupted) as stopped, staging_folder(tmp_path / "out"):
        import_and_wait()
    assert stopped.value.signal_number == signal.SIGTERM
    assert sys.modules.pop("slow_to_import").reached
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".py"
                  and path.name != "__pycache__") == []
