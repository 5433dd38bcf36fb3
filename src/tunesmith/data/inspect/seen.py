"""A row as the checks see it: what it says, and the tokens that it becomes.

The one file of the audit that knows how examples and token rows are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from tunesmith.data.dataset import TextSet
from tunesmith.data.examples import Example
from tunesmith.data.tokenize import Encoder, Rules, TokenRow
from tunesmith.errors import DataError

#: Examples that are tokenized in one call.
_AT_ONCE = 512
#: Above every row's length: an encoder with this `max_length` cuts nothing.
_NO_LIMIT = 1 << 40


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
    says why. overlong: whether it is longer than `data.max_length`; whole_length: how many tokens it would
    have without that limit. prompt_length: tokens of the prompt before the last answer. content_hash: equal
    for rows that say the same.
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
    whole_length: int
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
    def dropped(self) -> bool:
        """Whether no tokens of it are trained on."""
        return not self.tokens


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

    def __init__(self, text: TextSet, tokenizer: Any, rules: Rules) -> None:
        self._sides: list[tuple[bool, Sequence[Example]]] = [(False, text.train), (True, text.validation)]
        self._encoder = Encoder(tokenizer, rules)
        self._unlimited = Encoder(tokenizer, replace(rules, max_length=_NO_LIMIT))
        self._drop = rules.overlong == "drop"

    def __len__(self) -> int:
        return sum(len(side) for _, side in self._sides)

    def __iter__(self) -> Iterator[SeenRow]:
        index = 0
        for held_out, side in self._sides:
            examples = iter(side)
            while chunk := list(islice(examples, _AT_ONCE)):
                for example, encoded in zip(chunk, self._encode(chunk), strict=True):
                    yield self._row(index, held_out, example, encoded)
                    index += 1

    def at(self, indices: Sequence[int]) -> Iterator[SeenRow]:
        """The rows of these numbers, in their order."""
        for index in sorted(set(indices)):
            held_out, first = False, index
            for held_out, side in self._sides:  # noqa: B007
                if first < len(side):
                    break
                first -= len(side)
            example = side[first]
            yield self._row(index, held_out, example, self._encode([example])[0])

    def _encode(self, examples: list[Example]) -> list[list[tuple[TokenRow, bool]] | str]:
        """For each its tokens, or why it has none."""
        try:
            return list(self._encoder.encode_all(examples))
        except DataError:
            return [self._encode_one(example) for example in examples]

    def _encode_one(self, example: Example) -> list[tuple[TokenRow, bool]] | str:
        try:
            return self._encoder.encode(example)
        except DataError as error:
            return error.message.removeprefix(f"{example.place}: ")

    def _row(self, index: int, held_out: bool, example: Example,
             encoded: list[tuple[TokenRow, bool]] | str) -> SeenRow:
        tokens: tuple[TokenRow, ...] = ()
        overlong, length, prompt_length, refusal = False, 0, 0, None
        if isinstance(encoded, str):
            refusal = encoded
        else:
            overlong = any(cut for _, cut in encoded)
            tokens = tuple(row for row, cut in encoded if not (cut and self._drop))
            length = max(len(row.ids) for row, _ in encoded)
            prompt_length = max(len(row.prompt_ids) for row, _ in encoded)
            if overlong:
                length = max(len(row.ids) for row, _ in self._unlimited.encode(example))
        turns = _turns(example)
        question, answer = (example.prompt, example.completion) if turns is None else _last_answer(turns)
        return SeenRow(index, example.place, held_out, question, answer, turns, _offered(example), tokens,
                       overlong, length, prompt_length, refusal, int(example.content_hash[:16], 16))


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
