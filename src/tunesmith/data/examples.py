"""Rows to examples: prompt and completion filled from columns, a column of messages, or columns made into a
chat.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.chat.messages import Conversation, conversation_of, is_conversation
from tunesmith.data.rows import Row
from tunesmith.data.template import Template, Text, text_of
from tunesmith.errors import DataError


@dataclass(frozen=True)
class Example:
    """What a row says to the model: prompt and completion, or a conversation (then both texts are empty)."""

    prompt: str
    completion: str
    conversation: Conversation | None
    place: str

    @property
    def content_hash(self) -> str:
        """SHA-256 of the content alone: equal for equal examples wherever they stand."""
        content = [self.prompt, self.completion, self.conversation.as_json() if self.conversation else None]
        text = json.dumps(content, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def to_json(self) -> str:
        """All of it on one line, for another process. What JSON has no form for, such as a date, is text."""
        talk = self.conversation
        whole = None if talk is None else [*talk.as_json(), list(talk.unused)]
        return json.dumps([self.prompt, self.completion, whole, self.place], ensure_ascii=False, default=str)

    @classmethod
    def from_json(cls, line: str | bytes) -> Example:
        """An example from `to_json`."""
        prompt, completion, whole, place = json.loads(line)
        if whole is None:
            return cls(prompt, completion, None, place)
        messages, answers, tools, kwargs, unused = whole
        talk = Conversation(tuple(messages), tuple(answers), tuple(tools), kwargs, tuple(unused))
        return cls(prompt, completion, talk, place)

    def texts(self) -> Iterator[str]:
        """Every text in it."""
        yield self.prompt
        yield self.completion
        yield from _texts_in(self.conversation.as_json() if self.conversation else None)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from _texts_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts_in(each)


@dataclass(frozen=True)
class Form:
    """How a recipe's data section makes examples of rows; one of completion, messages and chat is given.

    tools: the column with what a row offers to call. chat: templates by role: system, user, assistant.
    """

    prompt: str = ""
    completion: str | None = None
    messages: str | None = None
    tools: str | None = None
    chat: Mapping[str, str] | None = None


@dataclass
class ExampleMaker:
    """Makes examples of rows. Raises RecipeError for a bad template."""

    form: Form
    _texts: dict[str, Text] = field(init=False)

    def __post_init__(self) -> None:
        form = self.form
        if form.chat is not None:
            self._texts = {role: text_of(text, f"data.chat.{role}") for role, text in form.chat.items()}
        elif form.messages is not None:
            self._texts = {}
        else:
            self._texts = {"prompt": text_of(form.prompt, "data.prompt"),
                           "completion": text_of(form.completion or "", "data.completion")}

    @property
    def written(self) -> Counter[tuple[str, str]]:
        """How often a column that is no text was written, by column and form."""
        return sum((text.written for text in self._texts.values()), Counter())

    def make(self, row: Row) -> Example:
        """The example of a row. Raises DataError where the row does not fit."""
        example = self._made(row)
        for text in example.texts():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise DataError(f"{example.place}: half of a surrogate pair (a cut emoji, say) is no text",
                                "Mend or remove the row.") from None
        return example

    def make_all(self, rows: Iterable[Row], reject: Callable[[DataError], None]) -> Iterator[Example]:
        """The examples of rows. reject: receives the error of a row that does not fit, and may raise it."""
        for row in rows:
            try:
                example = self.make(row)
            except DataError as error:
                reject(error)
            else:
                yield example

    def _made(self, row: Row) -> Example:
        form = self.form
        if form.messages is not None:
            return Example("", "", conversation_of(row, form.messages, tools=form.tools), row.place)
        if form.chat is not None:
            return Example("", "", self._chat(row), row.place)
        columns = [text.only_column() if isinstance(text, Template) else None
                   for text in self._texts.values()]
        before, after = columns
        if (
            before
            and after
            and is_conversation(row.values.get(before))
            and is_conversation(row.values.get(after))
        ):
            return Example("", "", conversation_of(row, after, tools=form.tools, prompt=before), row.place)
        return Example(self._texts["prompt"].fill(row), self._texts["completion"].fill(row), None, row.place)

    def _chat(self, row: Row) -> Conversation:
        """A conversation of one turn; a system text that is empty for a row is left out."""
        roles = [role for role in ("system", "user", "assistant") if role in self._texts]
        if "system" in roles:
            columns = self._texts["system"].columns
            if columns and all(name in row.values and row.values[name] is None for name in columns):
                roles.remove("system")
        texts = {role: self._texts[role].fill(row) for role in roles}
        messages = [{"role": role, "content": text} for role, text in texts.items() if role != "system"
                    or text.strip()]
        return Conversation(tuple(messages), tuple(message["role"] == "assistant" for message in messages))


def make_examples(rows: Iterable[Row], form: Form) -> list[Example]:
    """Every row as an example. Raises DataError for the first that does not fit, RecipeError for a
    template.
    """
    maker = ExampleMaker(form)
    return [maker.make(row) for row in rows]
