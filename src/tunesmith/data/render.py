"""Chat templates, rendered in a process that can be stopped.

A template is a program (Jinja) that comes with a base of anybody's making. transformers keeps it in a
sandbox, from which it reaches nothing, but it may still loop for ever or build terabytes. So it runs in a
process of its own, by transformers' own code, with a limit of time and memory for each text. The process
serves all texts of a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tunesmith.errors import DataError

#: How long one text may take [s]; how much memory, beyond the process's own, and text it may take [bytes].
_LONGEST_S, _MEMORY_BYTES, _TEXT_BYTES = 10.0, 512 << 20, 64 << 20
#: How long the process may take to start [s].
_START_S = 120.0

_WORKER = """
import json, os, resource, sys
from transformers.utils.chat_template_utils import render_jinja_template
answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
memory, longest = int(sys.argv[1]), int(sys.argv[2])
with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else open(os.devnull) as file:
    used = int((file.read().split() or ["0"])[0]) * os.sysconf("SC_PAGE_SIZE")
if used:
    resource.setrlimit(resource.RLIMIT_AS, (used + memory,) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
def answer(value):
    content = json.dumps(value).encode()
    answers.write(b"%d\\n" % len(content) + content)
    answers.flush()
answer("ready")
for line in sys.stdin.buffer:
    request = json.loads(line)
    try:
        text = render_jinja_template([request["messages"]], chat_template=request["template"],
                                     add_generation_prompt=request["prompt"],
                                     **request["special_tokens"])[0][0]
        answer({"text": text} if len(text) <= longest else {"size": len(text)})
    except MemoryError:
        answer({"memory": True})
    except Exception as error:
        answer({"refused": (str(error) or type(error).__name__)[:2000]})
"""


class TemplateRefused(Exception):
    """The template itself raised: it does not take these messages."""


class TemplateUnbounded(Exception):
    """The template did not come to an end within its bounds; the words say which."""


class TemplateRenderer:
    """Renders chats by a tokenizer's template; the same text as its `apply_chat_template`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], Any] = lambda: None

    def render(self, messages: Sequence[Mapping[str, Any]], *, generation_prompt: bool) -> str:
        """The chat as text. Raises TemplateRefused, TemplateUnbounded."""
        from transformers import PreTrainedTokenizerBase

        method = type(self._tokenizer).apply_chat_template
        # no template of anybody's, but code of transformers'
        if method is not PreTrainedTokenizerBase.apply_chat_template:
            return str(self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation_prompt))
        special_tokens = {name: str(token) if not isinstance(token, list) else list(map(str, token))
                          for name, token in self._tokenizer.special_tokens_map.items()}
        try:
            template = self._tokenizer.get_chat_template(None, None)
        except ValueError as error:  # several by name, and none of them the default
            raise TemplateRefused(str(error).splitlines()[0]) from None
        request = {"messages": list(messages), "template": template, "special_tokens": special_tokens,
                   "prompt": generation_prompt}
        answer = self._ask(json.dumps(request).encode() + b"\n")
        if "text" in answer:
            return str(answer["text"])
        if "refused" in answer:
            raise TemplateRefused(answer["refused"])
        raise TemplateUnbounded(f"needs more than {_MEMORY_BYTES >> 20} MiB of memory" if "memory" in answer
                                else f"makes a text of more than {_TEXT_BYTES >> 20} MiB")

    def _ask(self, line: bytes) -> dict[str, Any]:
        for attempt in (1, 2):
            process = self._process or self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
                answer: dict[str, Any] = self._read(process, _LONGEST_S)
                return answer
            except BrokenPipeError:  # it was ended from outside between two texts
                self.close()
                if attempt == 2:
                    raise TemplateUnbounded("ended the process that rendered it") from None
            except BaseException:
                self.close()
                raise
        raise AssertionError

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _WORKER, str(_MEMORY_BYTES), str(_TEXT_BYTES)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "USE_TORCH": "0"})
        self._process, self._end = process, weakref.finalize(self, partial(_stop, process))
        try:
            self._read(process, _START_S)
        except TemplateUnbounded as error:
            self.close()
            raise DataError(f"the process that renders chat templates does not start: {error}",
                            "tunesmith doctor says what this machine lacks.") from None
        return process

    def _read(self, process: subprocess.Popen[bytes], longest_s: float) -> Any:
        """One answer. Raises TemplateUnbounded where none comes in time, or the process ends."""
        assert process.stdout is not None
        descriptor, content, size = process.stdout.fileno(), bytearray(), None
        deadline = time.monotonic() + longest_s
        while size is None or len(content) < size:
            seconds_left = deadline - time.monotonic()
            if seconds_left <= 0 or not select.select([descriptor], [], [], seconds_left)[0]:
                raise TemplateUnbounded(f"does not come to an end within {longest_s:.0f} s")
            part = os.read(descriptor, 1 << 20)
            if not part:
                raise TemplateUnbounded("ended the process that rendered it, which had its bounds of memory")
            content += part
            if size is None and b"\n" in content:
                head, _, content = content.partition(b"\n")
                size = int(bytes(head))
        return json.loads(content)

    def close(self) -> None:
        """End the process."""
        self._end()
        self._process = None


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()
