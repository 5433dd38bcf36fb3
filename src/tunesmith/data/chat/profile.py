"""What a chat template reads, and in which form: found out by rendering small conversations with it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunesmith.data.chat.messages import Message
from tunesmith.data.chat.render import Chat, TemplateRefused, TemplateRenderer

#: What every template is given, and what `unread` looks for itself.
_ALWAYS = ("role", "content", "tool_calls", "reasoning_content")
_PROBE, _ANSWER, _VALUE = "qzprobeq", "qzanswerq", "qzvalueq"


@dataclass(frozen=True)
class _Forms:
    """parts: whether content is to be a list of parts. text_arguments: whether arguments are to be JSON text.

    empty: what stands for the content of a message that only calls tools.
    """

    parts: bool
    text_arguments: bool
    empty: Any


class TemplateProfile:
    """One template: which names its text has, and how it wants content and arguments."""

    def __init__(self, renderer: TemplateRenderer) -> None:
        self._renderer = renderer
        code = " ".join(re.findall(r"\{\{.*?\}\}|\{%.*?%\}", renderer.source, re.DOTALL))
        self.names = frozenset(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", code))
        self._keys: dict[tuple[str, str], bool] = {}
        self.is_code = renderer.by_code()

    def reads(self, name: str) -> bool:
        """Whether a key of a message, or a variable, is named in the template; code of transformers' reads
        role, content and tool calls.
        """
        return name in self.names or (self.is_code and name in ("role", "content", "tool_calls"))

    def as_read(self, message: Message) -> Message:
        """A message in the forms that the template wants; keys that it does not read are left out."""
        made = {key: value for key, value in message.items() if key in _ALWAYS
                or self._reads_key(key, message)}
        if message["role"] == "developer" and not self.reads("developer"):
            made["role"] = "system"
        made["content"] = self._content(message["content"], calls="tool_calls" in message)
        made.pop("reasoning_content", None)
        if "reasoning_content" in message and self.thought_key:
            made[self.thought_key] = message["reasoning_content"]
        if "tool_calls" in message:
            made["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        return made

    @property
    def thought_key(self) -> str | None:
        """What the template calls the thought before an answer; None where it knows none."""
        return next((name for name in ("reasoning_content", "thinking", "reasoning") if self.reads(name)),
                    None)

    def unread(self, message: Message) -> list[str]:
        """The keys of a message that are dropped, because the template does not read them."""
        keys = [key for key in message if key not in _ALWAYS and not self._reads_key(key, message)]
        if "tool_calls" in message and not self.reads("tool_calls"):
            keys.append("tool_calls")
        if "reasoning_content" in message and message["role"] != "assistant":
            keys.append("reasoning_content")  # an answer's is looked for where it is rendered
        return keys

    def _reads_key(self, key: str, message: Message) -> bool:
        """Whether a key of a message makes any difference to what the template writes for one of its role."""
        role = str(message["role"])
        if (role, key) not in self._keys:
            self._keys[role, key] = key in self.names and self._makes_a_difference(key, message[key], role)
        return self._keys[role, key]

    def _makes_a_difference(self, key: str, value: Any, role: str) -> bool:
        asked, replied = (_user(self._content(_PROBE, calls=False)),
                          _answer(self._content(_ANSWER, calls=False)))
        call = {**_answer(self._forms.empty), "tool_calls": [self._call(_probe_call({"key": _VALUE}))]}
        before = {"assistant": [asked], "tool": [asked, call]}.get(role, [])
        behind = {"system": [asked, replied], "developer": [asked, replied], "user": [replied]}.get(role, [])
        plain = {"role": role, "content": self._content(_PROBE, calls=False)}
        with_key = self._rendered([*before, {**plain, key: value}, *behind])
        return bool(with_key) and with_key != self._rendered([*before, plain, *behind])

    def _content(self, content: str | list[Any] | None, *, calls: bool) -> Any:
        if content is None and calls:
            return self._forms.empty
        if content is None:
            content = ""
        if isinstance(content, str):
            return [_part(content)] if self._forms.parts else content
        return list(content) if self._forms.parts else "\n".join(str(part["text"]) for part in content)

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        arguments = call["function"]["arguments"]
        if self._forms.text_arguments and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": arguments}}

    @cached_property
    def _forms(self) -> _Forms:
        """Content is text where a template writes text as it is, else a list of parts."""
        parts = not self._writes(_PROBE,
                                 _user(_PROBE)) or not self._writes(_ANSWER, _user(_PROBE), _answer(_ANSWER))
        if parts and not self._writes(_ANSWER, _user([_part(_PROBE)]), _answer([_part(_ANSWER)])):
            parts = False
        for empty in (None, [] if parts else "", [_part("")] if parts else ""):
            as_object = self._called({"key": _VALUE}, parts, empty)
            if _VALUE in as_object and f"'{_VALUE}'" not in as_object and "None" not in as_object:
                return _Forms(parts, False, empty)
            as_text = self._called(json.dumps({"key": _VALUE}), parts, empty)
            if _VALUE in as_text and "None" not in as_text:
                return _Forms(parts, True, empty)
        return _Forms(parts, False, [] if parts else "")

    def _called(self, arguments: Any, parts: bool, empty: Any) -> str:
        """What the template writes for a call with these arguments."""
        return self._rendered([_user([_part(_PROBE)] if parts else _PROBE),
                               {"role": "assistant", "content": empty,
                                "tool_calls": [_probe_call(arguments)]}])

    def _writes(self, text: str, *messages: Message) -> bool:
        return text in self._rendered(list(messages))

    def _rendered(self, messages: list[Message]) -> str:
        text = self._renderer.try_all([Chat(messages)])[0]
        return "" if isinstance(text, TemplateRefused) else text


def _probe_call(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": "call00001", "function": {"name": "probe", "arguments": arguments}}


def _user(content: Any) -> Message:
    return {"role": "user", "content": content}


def _answer(content: Any) -> Message:
    return {"role": "assistant", "content": content}


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
