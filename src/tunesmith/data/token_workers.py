"""Rows to tokens on all cores: one process a core, chunks of rows in, Arrow record batches out, in order."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from tunesmith.data.examples import Form
from tunesmith.data.rows import Row
from tunesmith.data.token_worker import BUG, CHUNK, FAILED, ChunkOfTokens, receive, send, unpacked
from tunesmith.data.tokenize import Rules
from tunesmith.errors import EnvironmentFault

#: More processes than this wait for the one that reads the rows.
_MOST_WORKERS = 16
#: A chunk has at most so many rows, and ends with the row that makes it this large [bytes].
_CHUNK_ROWS, _CHUNK_BYTES = 512, 4 << 20
_PROGRAM = ("import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
            "from tunesmith.data.token_worker import main; main()")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class TokenWorkers:
    """Processes that turn rows into tokens; they end with the block.

    load: makes the tokenizer in each; it is pickled. Not `multiprocessing`: that would run the main module
    of whoever calls the Python API once more, or fork a process that has threads.
    """

    def __init__(self, load: Callable[[], Any], form: Form, rules: Rules, count: int | None = None) -> None:
        self._task = pickle.dumps((load, form, rules))
        self._count = count or min(cores(), _MOST_WORKERS)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(self._count)

    def __enter__(self) -> TokenWorkers:
        try:
            for _ in range(self._count):
                self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "USE_TORCH": "0",
                 "TOKENIZERS_PARALLELISM": "false"})
        self._processes.append(process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it died of is told when it is asked for tokens
            send(process.stdin, CHUNK, self._task)
        self._idle.put(process)

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert stream is not None
                    stream.close()
            process.wait()

    def run(self, rows: Iterable[Row]) -> Iterator[tuple[int, ChunkOfTokens]]:
        """(rows in it, what became of them) of one chunk after another, in the rows' order.

        Raises what is wrong with a row, EnvironmentFault where a process ends on the way.
        """
        under_way: deque[tuple[int, Future[ChunkOfTokens]]] = deque()
        for count, chunk in _chunks(rows):
            under_way.append((count, self._threads.submit(self._ask, chunk)))
            if len(under_way) >= 2 * self._count:
                count, future = under_way.popleft()
                yield count, future.result()
        while under_way:
            count, future = under_way.popleft()
            yield count, future.result()

    def _ask(self, chunk: bytes) -> ChunkOfTokens:
        """What a process makes of a chunk."""
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # why it ended is told below
            send(process.stdin, CHUNK, chunk)
        try:
            kind = b""
            while kind not in (CHUNK, FAILED, BUG):
                kind, content = receive(process.stdout)
        except (EOFError, OSError, ValueError):
            raise _ended(process.wait()) from None
        finally:
            self._idle.put(process)
        if kind == FAILED:
            raise pickle.loads(content)
        if kind == BUG:
            raise RuntimeError(f"in a process that tokenizes: {content.decode()}")
        return unpacked(content)


def _ended(code: int) -> EnvironmentFault:
    how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with code {code}"
    return EnvironmentFault(f"a process that tokenizes was ended {how}",
                            "The system does that when its memory is full: close other programs, then run "
                            "the same command again." if code == -signal.SIGKILL else
                            "Run the same command again; tunesmith doctor says what this machine lacks.")


def _chunks(rows: Iterable[Row]) -> Iterator[tuple[int, bytes]]:
    """(rows in it, the rows pickled): neither many rows nor many bytes at once."""
    chunk: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        chunk.append((row.values, row.place, row.from_arrow))
        size += _size(row.values)
        if len(chunk) == _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield len(chunk), pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL)
            chunk, size = [], 0
    if chunk:
        yield len(chunk), pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL)


def _size(value: Any) -> int:
    """About how much memory a value takes [bytes]."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8
