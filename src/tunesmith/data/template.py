"""Rows to examples: fill prompt and completion from columns, or read a column of chat messages."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.errors import DataError, RecipeError
from tunesmith.visible import on_one_line

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")

#: The names that speakers have in the from/value form (ShareGPT's), and what chat templates call them.
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
          "bard": "assistant", "model": "assistant", "assistant": "assistant", "system": "system",
          "tool": "tool", "function": "tool", "observation": "tool"}


@dataclass(frozen=True)
class Example:
    """What a row says to the model: prompt and completion, or the messages of a chat (both texts empty)."""

    prompt: str
    completion: str
    messages: tuple[tuple[str, str], ...] | None
    place: str

    @property
    def content_hash(self) -> str:
        """SHA-256 of the content alone: equal for equal examples wherever they stand."""
        content = [self.prompt, self.completion, self.messages]
        text = json.dumps(content, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Template:
    """A text with columns in braces; `{{` and `}}` are the braces themselves.

    Raises RecipeError for unbalanced or empty braces.
    """

    def __init__(self, text: str, key: str) -> None:
        self.text, self.key = text, key
        self._parts: list[tuple[bool, str]] = []  # (is a column, its name or the literal text)
        position = 0
        for match in _PIECE.finditer(text):
            self._parts.append((False, text[position:match.start()]))
            position = match.end()
            piece = match.group()
            if piece in ("{{", "}}"):
                self._parts.append((False, piece[0]))
            elif match.group(1):
                self._parts.append((True, match.group(1)))
            else:
                raise RecipeError(f'{key}: "{text}": '
                                  f'a brace at character {match.start() + 1} names no column',
                                  "Write columns as {name}; braces themselves as {{ and }}.")
        self._parts.append((False, text[position:]))

    @property
    def columns(self) -> list[str]:
        """The columns that the template names."""
        return [part for is_column, part in self._parts if is_column]

    def fill(self, row: Row) -> str:
        """The text for a row. A list prints as Python prints it: `['a', 'b']`. Raises DataError."""
        return "".join(_value(row, part, self) if is_column else part for is_column, part in self._parts)


def columns_of(row: Row) -> str:
    """The names of a row's columns, for a message."""
    shown = [on_one_line(str(name), 60) for name in row.values]
    return ", ".join(shown[:40] + ([f"... {len(shown) - 40} more"] if len(shown) > 40 else []))


def _value(row: Row, column: str, template: Template) -> str:
    if column not in row.values:
        close = difflib.get_close_matches(column, list(row.values), n=1)
        meant = template.text.replace("{" + column + "}", "{" + close[0] + "}") if close else "..."
        raise DataError(
            f'{row.place}: no column "{column}" (columns: {columns_of(row)}). The template is '
            f'"{template.text}".',
            f"Change {template.key} in the recipe, or: --set {template.key}='{meant}'")
    value = row.values[column]
    if value is None:
        raise DataError(f'{row.place}: the column "{column}" is null', "Fill it in or remove the row.")
    if empty_value := _no_text(value):
        holds = "is" if isinstance(value, float) else "holds"
        raise DataError(f'{row.place}: the column "{column}" {holds} {empty_value}',
                        "Fill it in or remove the row.")
    return value if isinstance(value, str) else str(value)


def _no_text(value: Any) -> str | None:
    """null, nan or inf if a value is or holds one: as text it would say `None` or `nan`."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return None if math.isfinite(value) else str(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((empty_value for item in inside if (empty_value := _no_text(item))), None)


def _messages(row: Row, column: str) -> tuple[tuple[str, str], ...]:
    if column not in row.values:
        raise DataError(f'{row.place}: no column "{column}" (columns: {columns_of(row)})',
                        "Change data.messages in the recipe.")
    value = row.values[column]
    if not isinstance(value, list) or not value:
        raise DataError(f'{row.place}: "{column}" is '
                        f'{"an empty list" if value == [] else type(value).__name__}, '
                        "not a list of messages")
    return tuple(_message(item, number, column, row.place) for number, item in enumerate(value, start=1))


def _message(item: Any, number: int, column: str, place: str) -> tuple[str, str]:
    where = f'{place}: "{column}", message {number}'
    if not isinstance(item, dict):
        raise DataError(f"{where}: {type(item).__name__}, not an object")
    speaker, text = ((item.get("role"), item.get("content")) if "role" in item
                     else (item.get("from"), item.get("value")))
    if speaker is None:
        keys = ", ".join(on_one_line(str(key), 60) for key in item)
        raise DataError(f"{where}: has neither role/content nor from/value (keys: {keys})")
    if not isinstance(text, str):
        raise DataError(f"{where}: its text is {'null' if text is None else type(text).__name__}, "
                        "not a string")
    role = _ROLES.get(str(speaker).lower())
    if role is None:
        raise DataError(f"{where}: unknown speaker {on_one_line(repr(speaker))}",
                        f"Known: {', '.join(_ROLES)}.")
    return role, text


def make_examples(rows: list[Row], *, prompt: str, completion: str | None,
                  messages: str | None) -> list[Example]:
    """Every row as an example. Raises DataError for the first that does not fit, RecipeError (templates)."""
    if messages is not None:
        examples = [Example("", "", _messages(row, messages), row.place) for row in rows]
    else:
        before, after = Template(prompt, "data.prompt"), Template(completion or "", "data.completion")
        examples = [Example(before.fill(row), after.fill(row), None, row.place) for row in rows]
    for example in examples:
        for text in (example.prompt, example.completion, *(text for _, text in example.messages or ())):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise DataError(f"{example.place}: half of a surrogate pair (a cut emoji, say) is no text",
                                "Mend or remove the row.") from None
    return examples
