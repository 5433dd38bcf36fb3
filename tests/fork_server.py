"""Starts the command line many times without paying for the same imports each time.

`ForkServer.run` is `subprocess.run([python, "-m", "tunesmith.cli.main", *words])` by other means: a server
process imports what is slow and reads no setting of ours or of the Hub's (torch and its compiler, pyarrow,
pydantic), and forks for each command. The child gets its own environment, folder and streams, imports
tunesmith, transformers and the Hub's client afresh, and ends as an interpreter ends. Run as a script, this
file is that server.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

#: Imported once, before the forks: none of these reads HF_*, TUNESMITH_* or the current folder.
PRELOADED = ("numpy", "pyarrow", "pyarrow.parquet", "pydantic", "yaml", "torch", "torch._inductor.compile_fx",
             "torch._dynamo", "torch.distributed", "pandas", "sympy", "jinja2")


class ForkServer:
    """One server, which runs one command at a time."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())],
                                         pass_fds=[theirs.fileno()])
        theirs.close()

    def run(self, words: list[str], *, cwd: Path, env: dict[str, str],
            timeout: float) -> subprocess.CompletedProcess[str]:
        """Raises subprocess.TimeoutExpired after `timeout` seconds; the command is killed then."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            order = json.dumps({"words": words, "cwd": str(cwd), "env": env}).encode()
            fds = array.array("i", [out.fileno(), err.fileno()])
            self._socket.sendmsg([len(order).to_bytes(8, "big")],
                                 [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            self._socket.sendall(order)
            child = int.from_bytes(_exactly(self._socket, 8), "big")
            self._socket.settimeout(timeout)
            try:
                status = int.from_bytes(_exactly(self._socket, 8), "big", signed=True)
            except TimeoutError:
                os.kill(child, signal.SIGKILL)
                self._socket.settimeout(None)
                _exactly(self._socket, 8)
                raise subprocess.TimeoutExpired(words, timeout) from None
            finally:
                self._socket.settimeout(None)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, status, out.read().decode(), err.read().decode())

    def close(self) -> None:
        """End the server."""
        self._socket.close()
        self._process.wait()


def _exactly(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        more = connection.recv(count - len(content))
        if not more:
            raise EOFError("the fork server is gone")
        content += more
    return content


def _serve(connection: socket.socket) -> tuple[dict[str, str], list[str]] | None:
    """Fork for each order. Returns None when the connection ends, and in each child what it is to run."""
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            __import__(name)
    while True:
        size, fds, _, _ = socket.recv_fds(connection, 8, 2)
        if not size:
            return None
        order = json.loads(_exactly(connection, int.from_bytes(size, "big")))
        child = os.fork()
        if not child:
            connection.close()
            os.dup2(fds[0], 1)
            os.dup2(fds[1], 2)
            for fd in fds:
                os.close(fd)
            os.chdir(order["cwd"])
            return order["env"], order["words"]
        for fd in fds:
            os.close(fd)
        connection.sendall(child.to_bytes(8, "big"))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.sendall(code.to_bytes(8, "big", signed=True))


if __name__ == "__main__":
    ordered = _serve(socket.socket(fileno=int(sys.argv[1])))
    if ordered:
        import runpy

        os.environ.clear()
        os.environ.update(ordered[0])
        sys.argv = ["tunesmith", *ordered[1]]
        sys.path[0] = os.getcwd()  # as `python -m` has it
        sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        code: object = 0
        try:
            runpy.run_module("tunesmith.cli.main", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            traceback.print_exc()
            code = 1
        # what the interpreter does at its end, but for taking torch apart, which takes a second
        threading._shutdown()
        atexit._run_exitfuncs()
        if isinstance(code, str):
            print(code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)
