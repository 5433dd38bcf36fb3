"""status.json: what a run is doing, or how its last process ended."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Literal

from tunesmith.errors import IntegrityError, Interrupted, TunesmithError
from tunesmith.rundir.files import write_atomically
from tunesmith.rundir.schema import Count, Short, Strict, as_json, read_as
from tunesmith.rundir.seal import LOCK_NAME, STATUS_NAME, read_seal, sha256_file

_LONGEST_REASON = 2000


class Status(Strict):
    """state: stopped by a signal, or ended without a word (killed, say); failed: with an error.

    since: local time. process: its id, while it is running. reason: of a run that was stopped or failed.
    """

    state: Literal["running", "stopped", "failed", "finished"]
    since: Short
    process: Count | None = None
    reason: Short = ""

    def sentence(self) -> str:
        """The same in words, after the name of the run."""
        phrase = {"running": f"is running (process {self.process})", "stopped": "was stopped",
                  "failed": "failed", "finished": "is finished"}[self.state]
        return f"{phrase}{f': {self.reason}' if self.reason else ''}"


def write_status(run: Path, state: Literal["running", "stopped", "failed", "finished"],
                 reason: str = "") -> None:
    """Say what a run is doing. Raises DiskError."""
    process = os.getpid() if state == "running" else None
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    write_atomically(run / STATUS_NAME,
                     as_json(Status(state=state, since=now, process=process, reason=reason)))


def write_ending(run: Path, error: BaseException) -> None:
    """Say by what a run's process ended. Raises DiskError."""
    problem = error.problem if isinstance(error, TunesmithError) else f"{type(error).__name__}: {error}"
    reason = " ".join(problem.encode(errors="replace").decode().split())[:_LONGEST_REASON]
    write_status(run, "stopped" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed", reason)


def read_status(run: Path) -> Status:
    """The state of a run folder, whatever its last process had time to write.

    Finished is what the seal says; running, whose process holds the lock. Raises IntegrityError for a damaged
    status.json.
    """
    written = None
    if os.path.lexists(run / STATUS_NAME):
        written = read_as(Status, run / STATUS_NAME, "The next `tunesmith train` of this run writes it anew.")
    since = written.since if written else ""
    if _sealed_as_finished(run):
        return Status(state="finished", since=since)
    if written is not None and written.state in ("stopped", "failed"):
        return written
    if written is not None and written.state == "running" and _locked(run):
        return written
    return Status(state="stopped", since=since, reason="its process ended without saying why" if written
                  else "its process ended before the first step")


def _sealed_as_finished(run: Path) -> bool:
    """Whether the seal covers a whole run, of which no process has begun to write again."""
    try:
        return read_seal(run).get(STATUS_NAME) == sha256_file(run / STATUS_NAME)
    except (IntegrityError, FileNotFoundError):
        return False


def _locked(run: Path) -> bool:
    """Whether a process holds the run's lock."""
    try:
        lock = os.open(run / LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
