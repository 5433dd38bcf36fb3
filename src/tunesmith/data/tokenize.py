"""Examples to token rows: which tokens there are, and exactly which of them bear loss (the loss mask).

The prompt's tokens are always those that generation will send: a completion never melts into the prompt's
last token. Only the notebook's own setting (`loss_on: all`, `append_eos: false`) tokenizes the text in one
piece, as it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.render import TemplateRefused, TemplateRenderer, TemplateUnbounded
from tunesmith.data.template import Example
from tunesmith.errors import DataError, RecipeError

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
    """How examples become tokens: the recipe's data section, without its sources."""

    loss_on: str
    append_eos: bool
    max_length: int
    overlong: str


class Encoder:
    """Tokenizes examples with a transformers tokenizer, whose own beginning (such as a BOS token) is kept.

    Raises RecipeError when the tokenizer has no end token and one is to be appended.
    """

    def __init__(self, tokenizer: Any, rules: Rules) -> None:
        self.tokenizer, self.rules = tokenizer, rules
        self._cache: dict[str, list[int]] = {}
        self._renderer = TemplateRenderer(tokenizer)
        self.eos: int | None = tokenizer.eos_token_id
        if rules.append_eos and self.eos is None:
            raise RecipeError("this base's tokenizer has no end token",
                              "Set data.append_eos to false; its answers will then not end by themselves.",
                              setting="data.append_eos")
        plain, special = self._token_ids("a"), list(tokenizer("a")["input_ids"])
        starts = [i for i in range(len(special)) if special[i:i + len(plain)] == plain]
        self.beginning: list[int] = special[:starts[0]] if starts else []

    def _token_ids(self, text: str) -> list[int]:
        if text in self._cache:
            return list(self._cache[text])
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _tokenize_ahead(self, texts: list[str]) -> None:
        """Tokenize texts in one call, on every core, for `_token_ids` to give when it is asked for them."""
        if texts_left := [text for text in dict.fromkeys(texts) if text not in self._cache]:
            encoded = self.tokenizer(texts_left, add_special_tokens=False, return_attention_mask=False,
                                     return_token_type_ids=False)
            self._cache |= zip(texts_left, encoded["input_ids"], strict=True)

    def prompt_ids(self, prompt: str) -> list[int]:
        """The tokens that generation is given for a prompt."""
        return self.beginning + self._token_ids(prompt)

    def encode_all(self, examples: Sequence[Example]) -> Iterator[tuple[TokenRow, bool]]:
        """What `encode` gives for each; plain texts are tokenized many at a time."""
        for start in range(0, len(examples), _AT_ONCE):
            chunk = examples[start:start + _AT_ONCE]
            texts = [example for example in chunk if example.messages is None]
            self._tokenize_ahead([text for example in texts
                                  for text in (example.prompt, example.prompt + example.completion)])
            self._tokenize_ahead([example.completion for example in texts
                                  if self._in_one_piece(example) is None])
            for example in chunk:
                yield self.encode(example)
            self._cache.clear()

    def encode(self, example: Example) -> tuple[TokenRow, bool]:
        """The example as tokens, and whether it exceeded `max_length` (then it is cut, without end token)."""
        row, ends = self._chat(example) if example.messages is not None else self._plain_text(example)
        ids, loss_mask = row.ids, row.loss_mask
        if self.rules.append_eos and not ends and self.eos is not None:
            ids, loss_mask = [*ids, self.eos], [*loss_mask, True]
        overlong = len(ids) > self.rules.max_length
        ids, loss_mask = ids[: self.rules.max_length], loss_mask[: self.rules.max_length]
        if loss_mask:
            loss_mask[0] = False
        return TokenRow(ids, loss_mask, row.prompt_ids, row.prompt, row.reference, row.place), overlong

    def _plain_text(self, example: Example) -> tuple[TokenRow, bool]:
        prompt_ids = self.prompt_ids(example.prompt)
        ids = self._in_one_piece(example)
        if ids is None:
            ids = prompt_ids + self._token_ids(example.completion)
        first = 0 if self.rules.loss_on == "all" else len(prompt_ids)
        loss_mask = [False] * first + [True] * (len(ids) - first)
        return TokenRow(ids, loss_mask, prompt_ids, example.prompt, example.completion, example.place), False

    def _in_one_piece(self, example: Example) -> list[int] | None:
        """The whole text as tokens; None where the completion would merge into the prompt's last token."""
        prompt_ids = self.prompt_ids(example.prompt)
        ids = self.beginning + self._token_ids(example.prompt + example.completion)
        as_the_notebook = self.rules.loss_on == "all" and not self.rules.append_eos
        return ids if as_the_notebook or ids[: len(prompt_ids)] == prompt_ids else None

    def _render(self, messages: list[dict[str, str]], example: Example, prompt: bool = False) -> str:
        if not messages:
            return ""
        try:
            return self._renderer.render(messages, generation_prompt=prompt)
        except TemplateRefused as error:  # what the template's author raised
            raise DataError(f"{example.place}: the chat template refuses these messages: {error}",
                            "Order the turns as the template wants them.") from None
        except TemplateUnbounded as error:
            raise DataError(f"{example.place}: the chat template {error}",
                            "The template came with the base: take another copy of it, "
                            "or another base.") from None

    def _chat(self, example: Example) -> tuple[TokenRow, bool]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise RecipeError("this base's tokenizer has no chat template",
                              "Use a chat model as model.base, or data.prompt and data.completion.",
                              setting="data.messages")
        turns = [{"role": role, "content": text} for role, text in example.messages or ()]
        answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        if not answers:
            raise DataError(f"{example.place}: no message of the assistant, so nothing to learn")
        text = self._render(turns, example)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        before = self._render(turns[: answers[-1]], example, prompt=True)
        if self.rules.loss_on == "all":
            loss_mask = [True] * len(ids)
        else:
            spans = [self._answer_span(turns, i, text, example) for i in answers]
            loss_mask = [any(start < last and end > first for first, last in spans) for start, end in offsets]
        ends = answers[-1] != len(turns) - 1 or self._ends(text)
        row = TokenRow(ids, loss_mask, self._token_ids(before), before, turns[answers[-1]]["content"],
                       example.place)
        return row, ends

    def _answer_span(self, turns: list[dict[str, str]], index: int, text: str,
                     example: Example) -> tuple[int, int]:
        """Where the answer of one turn stands in the whole text: after its header, up to its end mark."""
        before = self._render(turns[:index], example, prompt=True)
        through = self._render(turns[: index + 1], example)
        if not (text.startswith(through) and through.startswith(before)):
            raise DataError(f"{example.place}: the chat template writes message {index + 1} differently once "
                            "more follow, so its answer cannot be told apart",
                            "Set data.loss_on to all, or split the conversation.")
        return len(before), len(through)

    def _ends(self, text: str) -> bool:
        """Whether the template itself closed the last turn with the end token."""
        return self.tokenizer.eos_token is not None and text.rstrip().endswith(self.tokenizer.eos_token)
