"""Examples to token rows: which tokens there are, and exactly which of them bear loss (the loss mask).

The prompt's tokens are always those that generation will send: no token spans the boundary between prompt and
completion. Only the notebook's own setting (`loss_on: all`, `append_eos: false`) tokenizes the text in one
piece, as it does. A conversation may become several rows: see `chat.answers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.chat.answers import ChatEncoder, ChatRow
from tunesmith.data.chat.plain import PlainTokens
from tunesmith.data.examples import Example
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.schema import DataSection

#: How many examples are tokenized in one call: so many that the call costs little, and few enough to fit.
_AT_ONCE = 512


@dataclass(frozen=True)
class TokenRow:
    """One example as tokens.

    ids: the tokens, at most `max_length`. loss_mask: for each token whether its prediction bears loss; False
    for the first, which nothing predicts. prompt_ids, prompt, reference: what generation is given, the same
    as text, and the answer that the data gives.
    """

    ids: list[int]
    loss_mask: list[bool]
    prompt_ids: list[int]
    prompt: str
    reference: str
    place: str

    @property
    def loss_tokens(self) -> int:
        """How many tokens bear loss."""
        return sum(self.loss_mask)


@dataclass(frozen=True)
class Rules:
    """How examples become tokens: the recipe's data section, without its sources.

    stride: with `overlong: split`, by how many tokens a window overlaps the one before. special_tokens:
    whether special tokens in the text of rows are taken as such. stop_ids: the tokens on which generation
    stops; none for the tokenizer's end token alone.
    """

    loss_on: str
    append_eos: bool
    max_length: int
    overlong: str
    stride: int = 0
    special_tokens: bool = False
    answers: str = "all"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
    skip_bad: bool = False


def rules_of(settings: DataSection, stop_ids: tuple[int, ...]) -> Rules:
    """The rules of a data section, for a base whose generation stops on these tokens."""
    return Rules(settings.loss_on, settings.append_eos, settings.max_length, settings.overlong,
                 settings.stride, settings.special_tokens, settings.answers, settings.template_kwargs,
                 stop_ids, settings.bad_rows == "skip")


class Encoder:
    """Tokenizes examples with a transformers tokenizer, whose own beginning (such as a BOS token) is kept.

    Raises RecipeError when the tokenizer has no end token and one is to be appended.
    """

    def __init__(self, tokenizer: Any, rules: Rules) -> None:
        self.tokenizer, self.rules = tokenizer, rules
        self.eos: int | None = tokenizer.eos_token_id
        if rules.append_eos and self.eos is None:
            raise RecipeError("this base's tokenizer has no end token",
                              "Set data.append_eos to false; its answers will then not end by themselves.",
                              setting="data.append_eos")
        self.plain = PlainTokens(tokenizer, special_tokens=rules.special_tokens)
        stops = rules.stop_ids or (() if self.eos is None else (self.eos,))
        self.chat = ChatEncoder(tokenizer, self.plain, stop_ids=stops, append_eos=rules.append_eos,
                                last_only=rules.answers == "last", kwargs=rules.template_kwargs)

    @property
    def beginning(self) -> list[int]:
        """What the tokenizer puts before a text, such as a BOS token."""
        return self.plain.beginning

    def prompt_ids(self, prompt: str) -> list[int]:
        """The tokens that generation is given for a prompt."""
        return self._with_beginning(self.plain.ids(prompt))

    def _with_beginning(self, ids: list[int]) -> list[int]:
        """A text that has the beginning already, as a special token of its own, does not get it twice."""
        begun = self.rules.special_tokens and self.beginning and ids[:len(self.beginning)] == self.beginning
        return ids if begun else self.beginning + ids

    def encode_all(self, examples: Sequence[Example]) -> Iterator[list[tuple[TokenRow, bool]] | DataError]:
        """What `encode` gives for each, or with `skip_bad` why it gives nothing; texts are tokenized many at
        a time.
        """
        for start in range(0, len(examples), _AT_ONCE):
            chunk = examples[start:start + _AT_ONCE]
            texts = [example for example in chunk if example.conversation is None]
            self.plain.ahead([text for example in texts
                              for text in (example.prompt, example.prompt + example.completion)])
            self.plain.ahead([example.completion for example in texts if self._in_one_piece(example) is None])
            for example in chunk:
                yield self._encode_or_error(example)
            self.plain.forget()

    def _encode_or_error(self, example: Example) -> list[tuple[TokenRow, bool]] | DataError:
        try:
            return self.encode(example)
        except DataError as error:
            if not self.rules.skip_bad:
                raise
            return error

    def encode(self, example: Example) -> list[tuple[TokenRow, bool]]:
        """The example's rows, and of each whether it exceeded `max_length`: then it is cut, without end
        token, or with `overlong: split` it is the first of several windows.
        """
        if example.conversation is not None:
            rows = self.chat.encode(example.conversation, example.place,
                                    everything=self.rules.loss_on == "all")
        else:
            rows = [self._plain_text(example)]
        return [made for row in rows for made in self._within_length(row, example.place)]

    def _plain_text(self, example: Example) -> ChatRow:
        prompt_ids = self.prompt_ids(example.prompt)
        ids = self._in_one_piece(example)
        if ids is None:
            ids = prompt_ids + self.plain.ids(example.completion)
        first = 0 if self.rules.loss_on == "all" else len(prompt_ids)
        loss_mask = [False] * first + [True] * (len(ids) - first)
        ended = self.rules.special_tokens and ids[-1:] == [self.eos]
        if self.rules.append_eos and self.eos is not None and not ended:
            ids, loss_mask = [*ids, self.eos], [*loss_mask, True]
        return ChatRow(ids, loss_mask, prompt_ids, example.prompt, example.completion)

    def _in_one_piece(self, example: Example) -> list[int] | None:
        """The whole text as tokens; None where the completion would merge into the prompt's last token."""
        prompt_ids = self.prompt_ids(example.prompt)
        ids = self._with_beginning(self.plain.ids(example.prompt + example.completion))
        as_the_notebook = self.rules.loss_on == "all" and not self.rules.append_eos
        return ids if as_the_notebook or ids[: len(prompt_ids)] == prompt_ids else None

    def _within_length(self, row: ChatRow, place: str) -> list[tuple[TokenRow, bool]]:
        longest, overlong = self.rules.max_length, len(row.ids) > self.rules.max_length
        starts = range(0, 1)
        if overlong and self.rules.overlong == "split":
            starts = range(0, max(1, len(row.ids) - self.rules.stride), longest - self.rules.stride)
        made: list[tuple[TokenRow, bool]] = []
        for start in starts:
            ids, mask = row.ids[start:start + longest], row.loss_mask[start:start + longest]
            # what the window before has learnt, or nothing predicts
            known = self.rules.stride if start else 1
            mask[:known] = [False] * min(known, len(mask))
            if mask:
                mask[0] = False
            window = f", window {len(made) + 1}" if len(starts) > 1 else ""
            if not start or any(mask):
                made.append((TokenRow(ids, mask, row.prompt_ids, row.prompt, row.reference, place + window),
                             overlong))
        return made
