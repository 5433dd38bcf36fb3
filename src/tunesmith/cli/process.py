"""What the command line, not the Python API, changes of its process: environment, output streams, threads.

Libraries read these from the process and nowhere else, most of them once, when they are imported. Whoever
imports tunesmith keeps their own.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys


def take_any_text() -> None:
    """Write what the terminal's encoding lacks as an escape, rather than fail at the end of a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def have_a_home() -> None:
    """Give a container's user without a home one: libraries fail without it as they are imported."""
    if os.path.expanduser("~") == "~" and hasattr(os, "getuid"):
        import tempfile

        home = os.path.join(tempfile.gettempdir(), f"tunesmith-home-{os.getuid()}")
        with contextlib.suppress(OSError):
            os.makedirs(home, mode=0o700, exist_ok=True)
            if os.stat(home).st_uid == os.getuid():  # not one that someone else laid there
                os.environ["HOME"] = home


def hide_hub_progress() -> None:
    """No progress bars of the Hub client's own, which it would also write where nobody watches."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def use_threads(threads: int | None) -> None:
    """Compute with so many threads. Before torch is imported where that can be: it then starts no more."""
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def open_standard_streams() -> None:
    """Whoever started us may have closed them; the next file that is opened would be taken for them."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name,
                    os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="backslashreplace"))
