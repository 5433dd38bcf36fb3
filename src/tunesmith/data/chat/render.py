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
import re
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tunesmith.errors import DataError

#: How long the texts of one conversation may take [s], how much memory beyond the process's own [bytes], how
#: long the text may be [bytes].
_LONGEST_S, _MEMORY_BYTES, _TEXT_BYTES = 10.0, 512 << 20, 64 << 20
#: How long the process may take to start [s].
_START_S = 120.0

#: By which transformers knows what a template marks as the assistant's.
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")

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
    asked, made = json.loads(line), []
    for chat in asked["chats"]:
        try:
            (text,), marks = render_jinja_template([chat["messages"]], tools=chat["tools"] or None,
                                                   chat_template=asked["template"],
                                                   add_generation_prompt=chat["prompt"],
                                                   return_assistant_tokens_mask=asked["marks"],
                                                   **{**asked["special_tokens"], **chat["kwargs"]})
            made.append({"text": text, "marks": marks} if len(text) <= longest else {"size": len(text)})
        except MemoryError:
            made.append({"memory": True})
        except Exception as error:
            made.append({"refused": (str(error) or type(error).__name__)[:2000]})
    answer(made)
"""


@dataclass(frozen=True)
class Chat:
    """What a template is to render. prompt: with the template's own beginning of an answer behind the
    messages.

    kwargs: further variables of the template.
    """

    messages: Sequence[Mapping[str, Any]]
    prompt: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


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

    @property
    def source(self) -> str:
        """The template's text; empty where there is none, or where transformers' own code stands for it."""
        template = getattr(self._tokenizer, "chat_template", None)
        if not template or self.by_code():
            return ""
        try:
            return str(self._tokenizer.get_chat_template(None, None))
        except ValueError as error:  # several by name, and none of them the default
            raise TemplateRefused(str(error).splitlines()[0]) from None

    def render(self, messages: Sequence[Mapping[str, Any]], *, generation_prompt: bool,
               tools: Sequence[Mapping[str, Any]] = (), kwargs: Mapping[str, Any] | None = None) -> str:
        """A chat as text. Raises TemplateRefused, TemplateUnbounded."""
        text = self.try_all([Chat(messages, generation_prompt, tools, kwargs or {})])[0]
        if isinstance(text, TemplateRefused):
            raise text
        return text

    def try_all(self, chats: Sequence[Chat]) -> list[str | TemplateRefused]:
        """The same, with what a template says against a chat in place of its text. Raises
        TemplateUnbounded.
        """
        if self.by_code():
            return [self._by_transformers(chat) for chat in chats]
        return [_text_of(answer) for answer in self._answers(chats)]

    def last_marked(self, chat: Chat) -> str | None:
        """The last text that the template marks as the assistant's (`{% generation %}`); None where it marks
        none.
        """
        if self.by_code() or not _MARKS.search(self.source):
            return None
        answer = self._answers([chat], marks=True)[0]
        spans = (answer.get("marks") or [[]])[0]
        if not spans:
            return None
        start, end = spans[-1]
        for before in reversed(spans[:-1]):  # several that touch are one
            start = before[0] if before[1] == start else start
        return str(answer["text"])[start:end]

    def _answers(self, chats: Sequence[Chat], *, marks: bool = False) -> list[dict[str, Any]]:
        source = self.source
        tokens = {name: str(token) if not isinstance(token, list) else list(map(str, token))
                  for name, token in self._tokenizer.special_tokens_map.items()}
        asked = {"template": source, "special_tokens": tokens, "marks": marks, "chats": [
            {"messages": list(chat.messages), "tools": list(chat.tools), "prompt": chat.prompt,
             "kwargs": dict(chat.kwargs)} for chat in chats]}
        return self._ask(json.dumps(asked, default=str).encode() + b"\n")

    def by_code(self) -> bool:
        """Whether no template of anybody's makes the text, but code of transformers'."""
        from transformers import PreTrainedTokenizerBase

        return type(self._tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template

    def _by_transformers(self, chat: Chat) -> str:
        return str(self._tokenizer.apply_chat_template(
            list(chat.messages), tokenize=False, add_generation_prompt=chat.prompt,
            tools=list(chat.tools) or None, **chat.kwargs))

    def _ask(self, line: bytes) -> list[dict[str, Any]]:
        for attempt in (1, 2):
            process = self._process or self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
                answers: list[dict[str, Any]] = self._read(process, _LONGEST_S)
                return answers
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
        until = time.monotonic() + longest_s
        while size is None or len(content) < size:
            left = until - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
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


def _text_of(answer: Mapping[str, Any]) -> str | TemplateRefused:
    if "text" in answer:
        return str(answer["text"])
    if "refused" in answer:
        return TemplateRefused(answer["refused"])
    raise TemplateUnbounded(f"needs more than {_MEMORY_BYTES >> 20} MiB of memory" if "memory" in answer else
                            f"makes a text of more than {_TEXT_BYTES >> 20} MiB")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()
