"""Examples to tokens on all cores: one process a core, chunks in, Arrow record batches out, in order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from queue import SimpleQueue

from tunesmith.data.examples import Example
from tunesmith.data.making import Loader
from tunesmith.data.token_worker import BUG, CHUNK, FAILED, ChunkOfTokens, error_from, receive, send, unpacked
from tunesmith.data.tokenize import Rules
from tunesmith.errors import EnvironmentFault

#: More processes than this wait for the one that reads the rows and makes examples of them.
_MOST_WORKERS = 16
#: A chunk has at most so many examples, and ends with the one that makes it this large [bytes].
_CHUNK_EXAMPLES, _CHUNK_BYTES = 512, 4 << 20
_PROGRAM = ("import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
            "from tunesmith.data.token_worker import main; main()")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class TokenWorkers:
    """Processes that turn examples into tokens; they end with the block.

    loader: makes the tokenizer in each. Not `multiprocessing`: that would run the main module
    of whoever calls the Python API once more, or fork a process that has threads.
    """

    def __init__(self, loader: Loader, rules: Rules, count: int | None = None) -> None:
        self._task = json.dumps([asdict(loader), asdict(rules)]).encode()
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

    def run(self, examples: Iterable[Example]) -> Iterator[ChunkOfTokens]:
        """What became of one chunk after another, in the examples' order.

        Raises what is wrong with a row, EnvironmentFault where a process ends on the way.
        """
        under_way: deque[Future[ChunkOfTokens]] = deque()
        for chunk in _chunks(examples):
            under_way.append(self._threads.submit(self._ask, chunk))
            if len(under_way) >= 2 * self._count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

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
            raise error_from(content)
        if kind == BUG:
            raise RuntimeError(f"in a process that tokenizes: {content.decode()}")
        return unpacked(content)


def _ended(code: int) -> EnvironmentFault:
    how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with code {code}"
    return EnvironmentFault(f"a process that tokenizes was ended {how}",
                            "The system does that when its memory is full: close other programs, then run "
                            "the same command again." if code == -signal.SIGKILL else
                            "Run the same command again; tunesmith doctor says what this machine lacks.")


def _chunks(examples: Iterable[Example]) -> Iterator[bytes]:
    """Chunks with an example in each line: neither many examples nor many bytes at once."""
    chunk: list[bytes] = []
    size = 0
    for example in examples:
        chunk.append(example.to_json().encode())
        size += len(chunk[-1])
        if len(chunk) == _CHUNK_EXAMPLES or size >= _CHUNK_BYTES:
            yield b"\n".join(chunk)
            chunk, size = [], 0
    if chunk:
        yield b"\n".join(chunk)
