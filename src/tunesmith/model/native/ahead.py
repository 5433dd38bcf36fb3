"""Read a checkpoint's tensors ahead of their use, several at once: one thread does not fill a GPU's link."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

_THREADS = 6
#: Tensors that are read but not yet asked for, at most.
_MAX_AHEAD = 12


class ReadAhead:
    """Gives tensors by name; those that will probably be asked for next are being read meanwhile.

    names: in the order in which they will be asked for, more or less. read: reads one, and may be called from
    any thread.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], torch.Tensor]) -> None:
        self._read, self._remaining = read, list(reversed(names))
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="weights")
        self._pending: dict[str, Future[torch.Tensor]] = {}
        self._asked: set[str] = set()
        self._fill()

    def _fill(self) -> None:
        while self._remaining and len(self._pending) < _MAX_AHEAD:
            name = self._remaining.pop()
            if name not in self._asked:
                self._pending[name] = self._pool.submit(self._read, name)

    def get(self, name: str) -> torch.Tensor:
        """The tensor; raises what reading it raised."""
        self._asked.add(name)
        pending = self._pending.pop(name, None)
        self._fill()
        return self._read(name) if pending is None else pending.result()

    def close(self) -> None:
        """Stop reading."""
        self._remaining.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
