"""One form of a conversation, whatever form its row has: messages as chat templates read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.visible import on_one_line

#: What speakers are called in data sets, and what chat templates call them. `developer` is kept apart: some
#: templates have it, for the others it is `system`.
ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant",
    "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "tool_response": "tool",
    "function_response": "tool",
}
_TEXT_KEYS = ("content", "value", "text")
#: The keys of a message that are understood here; a chat template may read others.
_UNDERSTOOD = {"role", "from", *_TEXT_KEYS, "tool_calls", "function_call", "tool_call_id", "name",
               "reasoning_content", "reasoning", "thinking", "weight", "train"}

#: Columns with a row's own variables for the chat template.
_KWARGS = ("chat_template_kwargs", "template_kwargs")

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """messages: with role and content, and where they have them tool_calls, tool_call_id, name,
    reasoning_content, and keys that only a chat template may know.

    answers: for each message whether it is an answer to be learnt. tools: what the model may call, as JSON
    schemas. template_kwargs: of this row, for the chat template. unused: columns of the row that nothing
    reads.
    """

    messages: tuple[Message, ...]
    answers: tuple[bool, ...]
    tools: tuple[dict[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def as_json(self) -> list[Any]:
        """Everything that makes it what it is, for a hash of its content."""
        return [list(self.messages), list(self.answers), list(self.tools), dict(self.template_kwargs)]


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, as objects or as JSON text."""
    return messages_in(value) is not None


def messages_in(value: Any) -> Sequence[Mapping[str, Any]] | None:
    """The messages that a value is, as the row has them; None where it is no list of messages."""
    messages = _parsed(value)
    if isinstance(messages, Mapping):
        messages = _from_columns(messages)
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not len(messages):
        return None
    are_messages = all(isinstance(each, Mapping) and ("role" in each or "from" in each) for each in messages)
    return messages if are_messages else None


def conversation_of(row: Row, column: str, *, tools: str | None = None,
                    prompt: str | None = None) -> Conversation:
    """The conversation in a column of a row.

    tools: the column of its tools; None for `tools` or `functions` where the row has one. A column `system`
    with text is the system message of a conversation that has none. prompt: a column with the messages that
    come before those of `column`, and from which nothing is learnt (the prompt and completion columns of
    TRL's conversational form). Raises DataError naming the message and what is wrong with it.
    """
    before = _messages(row, prompt) if prompt is not None else []
    messages = before + _messages(row, column)
    parsed = [_message(each, f'{row.place}: "{where}", message {number}', row.from_arrow)
              for each, number, where in messages]
    answers = [learnt and message["role"] == "assistant" for message, learnt in parsed]
    answers[:len(before)] = [False] * len(before)
    made = [message for message, _ in parsed]
    system = row.values.get("system")
    if isinstance(system, str) and system.strip() and made[0]["role"] not in ("system", "developer"):
        made, answers = [{"role": "system", "content": system}, *made], [False, *answers]
    read = {column, prompt, tools, "tools" if tools is None else tools, "system", *_KWARGS}
    read |= {"functions"} if tools is None and row.values.get("tools") is None else set()
    unused = tuple(str(name) for name, value in row.values.items() if name not in read and value is not None)
    return Conversation(tuple(made), tuple(answers), _tools(row, tools), _template_kwargs(row), unused)


def _messages(row: Row, column: str) -> list[tuple[Any, int, str]]:
    """Each message as the row has it, with its number and its column."""
    from tunesmith.data.template import columns_of

    if column not in row.values:
        raise DataError(f'{row.place}: no column "{column}" (columns: {columns_of(row)})',
                        "Change data.messages in the recipe.")
    value = _parsed(row.values[column])
    if isinstance(value, Mapping):
        value = _from_columns(value)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not len(value):
        is_what = "an empty list" if isinstance(value,
                                                list) else "null" if value is None else type(value).__name__
        raise DataError(f'{row.place}: "{column}" is {is_what}, not a list of messages')
    return [(each, number, column) for number, each in enumerate(value, start=1)]


def _parsed(value: Any) -> Any:
    """A value, read where it is JSON text of a list or an object."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _from_columns(value: Mapping[str, Any]) -> Any:
    """A list of messages that is kept as an object of lists, one for each key, as Arrow may hand it over."""
    lists = [each for each in value.values() if isinstance(each, list)]
    if len(lists) != len(value) or len({len(each) for each in lists}) != 1:
        return [value] if "role" in value or "from" in value else value
    return [dict(zip(value, each, strict=True)) for each in zip(*lists, strict=True)]


def _message(item: Any, where: str, from_arrow: bool) -> tuple[Message, bool]:
    """The message, and whether it is to be learnt if it is an answer."""
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: {type(item).__name__}, not an object")
    given = {key: value for key, value in item.items() if value is not None}
    speaker = given.get("role", given.get("from"))
    if speaker is None:
        keys = ", ".join(on_one_line(str(key), 60) for key in item)
        raise DataError(f"{where}: has neither role/content nor from/value (keys: {keys})")
    role = ROLES.get(str(speaker).strip().lower())
    if role is None:
        raise DataError(f"{where}: unknown speaker {on_one_line(repr(speaker))}",
                        f"Known: {', '.join(ROLES)}.")
    message: Message = {"role": role}
    calls = _calls(given, where, from_arrow)
    if str(speaker).strip().lower() == "function_call" and not calls:
        call = given.get("content", given.get("value"))
        if isinstance(_parsed(call), str):
            raise DataError(f"{where}: a call whose text is no JSON: {on_one_line(str(call), 60)}",
                            'A call is {"name": ..., "arguments": {...}}.')
        calls = _calls({"tool_calls": call}, where, from_arrow)
        given = {key: value for key, value in given.items() if key not in _TEXT_KEYS}
    reasoning = next((given[key] for key in ("reasoning_content", "reasoning", "thinking") if key in given),
                     None)
    texts = [key for key in _TEXT_KEYS if key in given]
    if len(texts) > 1 or ("role" in given and "from" in given):
        twice = texts if len(texts) > 1 else ["role", "from"]
        raise DataError(f"{where}: has both {twice[0]} and {twice[1]}: which one counts cannot be told",
                        "Keep one of them.")
    content = given[texts[0]] if texts else None
    if content is None and not calls and not (reasoning and role == "assistant"):
        raise DataError(f"{where}: its text is null, and it calls no tool: there is nothing in it",
                        "Fill it in, or remove the message or the row.")
    if role == "tool" and not isinstance(content, str | list):  # what a tool gives back is often JSON
        content = json.dumps(content, ensure_ascii=False, default=str)
    message["content"] = None if content is None else _content(content, where)
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise DataError(f"{where}: its reasoning is {type(reasoning).__name__}, not text")
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    for key in ("tool_call_id", "name"):
        if key in given:
            message[key] = given[key]
    message |= {key: value for key, value in given.items() if key not in _UNDERSTOOD}
    return message, _is_learnt(given, where)


def _is_learnt(given: Mapping[str, Any], where: str) -> bool:
    """`weight: 0` and `train: false` keep an answer from being learnt."""
    for key in ("weight", "train"):
        if key in given and given[key] not in (0, 1):
            raise DataError(f"{where}: {key} is {on_one_line(repr(given[key]), 60)}: 1 (learnt) or 0 (not "
                            "learnt)")
    return bool(given.get("weight", 1)) and bool(given.get("train", True))


def _content(content: Any, where: str) -> str | list[Any]:
    """Text, or a list of parts that are all text."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        if "type" not in content and "text" not in content:
            raise DataError(f"{where}: its text is an object (keys: {', '.join(map(str, content))})",
                            "Write it as text, or as a list of parts with type and text.")
        content = [content]
    if not isinstance(content, list):
        raise DataError(f"{where}: its text is {type(content).__name__}, not a string")
    parts: list[Any] = []
    for number, part in enumerate(content, start=1):
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
            continue
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise DataError(f"{where}: part {number} of its content is {on_one_line(repr(kind), 60)}, not "
                            "text",
                            "Tunesmith trains on text alone: images, sound and video need a model of another "
                            "kind. Remove the part or the row.")
        parts.append({"type": "text", "text": text})
    return parts


def _calls(given: Mapping[str, Any], where: str, from_arrow: bool) -> list[dict[str, Any]]:
    """A message's tool calls as {"type": "function", "function": {"name", "arguments"}}, arguments as an
    object where they are one.
    """
    calls = _parsed(given.get("tool_calls"))
    if not calls and "function_call" in given:
        calls = [_parsed(given["function_call"])]
    if not calls:
        return []
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list):
        raise DataError(f"{where}: its tool_calls are {type(calls).__name__}, not a list")
    return [_call(each, f"{where}, tool call {number}", from_arrow)
            for number, each in enumerate(calls, start=1)]


def _call(call: Any, where: str, from_arrow: bool) -> dict[str, Any]:
    call = _parsed(call)
    function = _parsed(call.get("function", call)) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"{where}: names no function",
                        'A call is {"name": ..., "arguments": {...}}, or has those in '
                                                       'a "function".')
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        parsed = _parsed(arguments)
        arguments = parsed if isinstance(parsed, dict) else arguments
    if arguments is None:
        arguments = {}
    if from_arrow:
        arguments = without_nulls(arguments)
    made: dict[str, Any] = {"type": call.get("type") or "function"}
    if call.get("id") is not None:
        made["id"] = call["id"]
    return {**made, "function": {"name": function["name"], "arguments": arguments}}


def without_nulls(value: Any) -> Any:
    """A value without the keys that are null: Arrow gives every object of a column the keys of all others."""
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def _tools(row: Row, column: str | None) -> tuple[dict[str, Any], ...]:
    """What the row offers to call, each as {"type": "function", "function": {...}}."""
    if column is not None and column not in row.values:
        from tunesmith.data.template import columns_of

        raise DataError(f'{row.place}: no column "{column}" (columns: {columns_of(row)})',
                        "Change data.tools in the recipe.")
    name = column or ("tools" if row.values.get("tools") is not None else "functions")
    tools = _parsed(row.values.get(name))
    if isinstance(tools, Mapping):
        tools = [tools]
    if not tools:
        return ()
    if not isinstance(tools, list):
        raise DataError(f'{row.place}: "{name}" is {type(tools).__name__}, not a list of tools')
    made = []
    for number, each in enumerate(tools, start=1):
        tool = _parsed(each)
        if not isinstance(tool, Mapping) or not ("function" in tool or "name" in tool):
            raise DataError(f'{row.place}: "{name}", tool {number}: names no function')
        tool = without_nulls(tool) if row.from_arrow else dict(tool)
        made.append(tool if "function" in tool or "type" in tool else {"type": "function", "function": tool})
    return tuple(made)


def _template_kwargs(row: Row) -> Mapping[str, Any]:
    """What a row itself says to the chat template."""
    for column in _KWARGS:
        value = _parsed(row.values.get(column))
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise DataError(f'{row.place}: "{column}" is {type(value).__name__}, not an object')
        return without_nulls(value) if row.from_arrow else dict(value)
    return {}
