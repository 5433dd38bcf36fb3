"""A row as the checks see it: what it says, and the tokens that it becomes.

The one file of the audit that knows how examples and token rows are made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from tunesmith.data.chat.remarks import ChatRemarks
from tunesmith.data.examples import Example
from tunesmith.data.sets import Dataset, Texts
from tunesmith.data.tokenize import Encoder, Rules, TokenRow
from tunesmith.errors import DataError

#: Examples that are tokenized in one call.
_AT_ONCE = 512
#: Above every row's length: an encoder with this `max_length` cuts nothing.
_NO_LIMIT = 1 << 40
#: What the place of a part of a row has behind that of the row.
_WINDOW = re.compile(r", window \d+$")


@dataclass(frozen=True)
class Call:
    """A tool call of an assistant's turn; arguments as the data has them."""

    name: str
    arguments: Any


@dataclass(frozen=True)
class Turn:
    """A message of a conversation. learnt: whether it is an answer that bears loss, as far as its row
    says.
    """

    role: str
    text: str
    calls: tuple[Call, ...] = ()
    learnt: bool = True


@dataclass(frozen=True)
class SeenRow:
    """One row of the data.

    index: its number in the order of reading. question, answer: what stands before the (last) answer, and
    that answer. turns: the messages of a conversation, None for a prompt and a completion. offered: the names
    of the tools that the row offers. tokens: its token rows; none where it cannot be tokenized, and `refusal`
    says why. overlong: whether one of them is longer than `data.max_length`; lengths: how many tokens they
    would have without that limit. prompt_length: tokens before the last answer. content_hash: equal for rows
    that say the same.
    """

    index: int
    place: str
    held_out: bool
    question: str
    answer: str
    turns: tuple[Turn, ...] | None
    offered: frozenset[str]
    tokens: tuple[TokenRow, ...]
    overlong: bool
    lengths: tuple[int, ...]
    prompt_length: int
    refusal: str | None
    content_hash: int

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Every text of the row."""
        return (self.question, self.answer) if self.turns is None else tuple(turn.text for turn in self.turns)

    @cached_property
    def text(self) -> str:
        """All of it in one piece."""
        return "\n".join(self.texts)

    @property
    def longest(self) -> int:
        """The length of its longest token row, before anything is cut."""
        return max(self.lengths, default=0)


@dataclass(frozen=True)
class Facts:
    """What the checks know besides the rows: the recipe's rules, the tokenizer, the base's config.

    templates: the recipe's own text (data.prompt, data.completion). stop_ids: tokens at which generation
    stops. embedding_rows: tokens that the base has an embedding for. half_width: of an interval that so many
    held-out rows can give, in standard deviations; None where they tell nothing. repeated: training rows left
    out as they are held out, too.
    """

    tokenizer: Any
    rules: Rules
    prompt_template: str
    completion_template: str
    conversations: bool
    stop_ids: frozenset[int]
    embedding_rows: int | None
    half_width: Callable[[int], float | None]
    repeated: int = 0

    @property
    def refused(self) -> Literal["error", "warning"]:
        """How bad a row is that training refuses: with `data.bad_rows: skip` it is left out."""
        return "warning" if self.rules.skip_bad else "error"

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """The tokenizer's special tokens: text to id."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        tokens = {str(token): int(number) for number, token in added.items() if token.special}
        return tokens | dict(zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids,
                                 strict=True))

    @cached_property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))


class SeenRows:
    """The rows of a data set in order (training first, then held out), each with its tokens; may be iterated
    again.
    """

    def __init__(self, text: Texts, tokenizer: Any, rules: Rules) -> None:
        self._sides: list[tuple[bool, Sequence[Example]]] = [(False, text.train), (True, text.validation)]
        self._encoder = Encoder(tokenizer, replace(rules, skip_bad=True))
        self._unlimited = Encoder(tokenizer, replace(rules, max_length=_NO_LIMIT, overlong="truncate"))

    def __len__(self) -> int:
        return sum(len(side) for _, side in self._sides)

    @property
    def remarks(self) -> ChatRemarks:
        """What is to be said of the conversations that were seen."""
        return self._encoder.chat.remarks

    def __iter__(self) -> Iterator[SeenRow]:
        index = 0
        for held_out, side in self._sides:
            examples = iter(side)
            while chunk := list(islice(examples, _AT_ONCE)):
                for example, encoded in zip(chunk, self._encode(chunk), strict=True):
                    yield self._row(index, held_out, example, encoded)
                    index += 1

    def at(self, indices: Sequence[int]) -> Iterator[SeenRow]:
        """The rows of these numbers, in their order; the texts up to the last of them are read again."""
        wanted = set(indices)
        sides = ((held_out, example) for held_out, side in self._sides for example in side)
        for index, (held_out, example) in enumerate(sides):
            if index in wanted:
                wanted.remove(index)
                yield from (self._row(index, held_out, example, encoded)
                            for encoded in self._encode([example]))
            if not wanted:
                return

    def _encode(self, examples: list[Example]) -> Iterator[list[tuple[TokenRow, bool]] | str]:
        """For each its tokens, or why it has none."""
        for example, encoded in zip(examples, self._encoder.encode_all(examples), strict=True):
            yield (encoded.message.removeprefix(f"{example.place}: ") if isinstance(encoded, DataError)
                   else encoded)

    def _row(self, index: int, held_out: bool, example: Example,
             encoded: list[tuple[TokenRow, bool]] | str) -> SeenRow:
        if isinstance(encoded, str):
            return _seen(index, held_out, example, (), refusal=encoded)
        overlong = any(cut for _, cut in encoded)
        dropped = self._encoder.rules.overlong in ("drop", "error")
        tokens = tuple(row for row, cut in encoded if not (cut and dropped))
        whole = [row for row, _ in (self._unlimited.encode(example) if overlong else encoded)]
        return _seen(index, held_out, example, tokens, whole, overlong=overlong)


def seen_already(text: Texts, data: Dataset, most: int) -> Iterator[SeenRow]:
    """The first rows of a data set that is tokenized already; those that were left out are not among them."""
    index = 0
    for held_out, examples, token_rows in ((False, text.train, data.train),
                                           (True, text.validation, data.validation)):
        made: dict[str, list[TokenRow]] = {}
        for row in islice(token_rows, most):
            made.setdefault(_WINDOW.sub("", row.place), []).append(row)
        for example in islice(examples, most):
            if rows := made.get(example.place):
                yield _seen(index, held_out, example, tuple(rows), rows)
                index += 1


def _seen(index: int, held_out: bool, example: Example, tokens: tuple[TokenRow, ...],
          whole: Sequence[TokenRow] = (), *, overlong: bool = False, refusal: str | None = None) -> SeenRow:
    """whole: its token rows as long as they are."""
    turns = _turns(example)
    question, answer = (example.prompt, example.completion) if turns is None else _last_answer(turns)
    return SeenRow(index, example.place, held_out, question, answer, turns, _offered(example), tokens,
                   overlong, tuple(len(row.ids) for row in whole),
                   max((len(row.prompt_ids) for row in whole), default=0), refusal,
                   int(example.content_hash[:16], 16))


def _turns(example: Example) -> tuple[Turn, ...] | None:
    if example.conversation is None:
        return None
    pairs = zip(example.conversation.messages, example.conversation.answers, strict=True)
    return tuple(Turn(message["role"], _text(message), _calls(message),
                      learnt or message["role"] != "assistant") for message, learnt in pairs)


def _text(message: Mapping[str, Any]) -> str:
    """What a message says, with its thought before it."""
    content = message["content"]
    text = "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""
    return "\n".join(filter(None, [message.get("reasoning_content"), text]))


def _calls(message: Mapping[str, Any]) -> tuple[Call, ...]:
    return tuple(Call(call["function"]["name"], call["function"]["arguments"])
                 for call in message.get("tool_calls", ()))


def _offered(example: Example) -> frozenset[str]:
    tools = example.conversation.tools if example.conversation else ()
    return frozenset(str(tool.get("function", tool).get("name")) for tool in tools)


def _last_answer(turns: tuple[Turn, ...]) -> tuple[str, str]:
    """What stands before the last answer of a conversation, and that answer."""
    last = max((number for number, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
    before = "\n".join(f"{turn.role}: {turn.text}" for turn in turns[:last])
    if last == len(turns):
        return before, ""
    calls = [f"{call.name} {call.arguments}" for call in turns[last].calls]
    return before, "\n".join([turns[last].text, *calls] if turns[last].text or not calls else calls)


def short_hash(*texts: str) -> int:
    """64 bits that are equal for equal texts, the same in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return int.from_bytes(digest.digest(), "little")
