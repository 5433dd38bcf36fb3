"""Texts to tokens, where what is a special token in the text of a row is text, not a token."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cached_property
from typing import Any

#: Stands within a special token's text where that came from a row; a code point that no text may have.
_MARK = "\ufdd0"
#: What a tokenizer's call goes through in transformers.
_CALLED = ("__call__", "_encode_plus", "set_truncation_and_padding")


class PlainTokens:
    """A tokenizer without its own beginning and end.

    special_tokens: whether the text of a special token is taken for the token.
    """

    def __init__(self, tokenizer: Any, *, special_tokens: bool) -> None:
        self.tokenizer, self.special_tokens = tokenizer, special_tokens
        self._cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """The tokens of a row's text."""
        if text in self._cache:
            return list(self._cache[text])
        return self._tokenized([text])[0]

    def ahead(self, texts: list[str]) -> None:
        """Tokenize texts in one call, on every core, for `ids` to give when it is asked for them."""
        if texts_left := [text for text in dict.fromkeys(texts) if text not in self._cache]:
            self._cache |= zip(texts_left, self._tokenized(texts_left), strict=True)

    def forget(self) -> None:
        """Let the texts go that were tokenized ahead."""
        self._cache.clear()

    @cached_property
    def _backend(self) -> Any:
        """What tokenizes within transformers, where a call adds nothing of its own to it: it need not say
        where in the text each token stands, which takes an eighth of the time.
        """
        from transformers import PreTrainedTokenizerFast

        kind = type(self.tokenizer)
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        plain = issubclass(kind, PreTrainedTokenizerFast) and all(
            getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in _CALLED)
        return backend if plain and hasattr(backend, "encode_batch_fast") else None

    @cached_property
    def beginning(self) -> list[int]:
        """What the tokenizer puts before a text, such as a BOS token."""
        plain, special = self.ids("a"), list(self.tokenizer("a")["input_ids"])
        starts = [i for i in range(len(special)) if special[i:i + len(plain)] == plain]
        return special[:starts[0]] if starts else []

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        """What is a special token's text."""
        return re.compile("|".join(map(re.escape, self._special_texts))) if self._special_texts else None

    @cached_property
    def _special_texts(self) -> list[str]:
        """The texts of the special tokens, the longest first: one may be the beginning of another."""
        return sorted({str(token) for token in self.tokenizer.all_special_tokens if str(token)}, key=len,
                      reverse=True)

    def holds_special(self, text: str) -> bool:
        """Whether there is a special token's text in a text."""
        return self._special is not None and self._special.search(text) is not None

    def holds_stop(self, text: str, stop_ids: Collection[int]) -> bool:
        """Whether a text holds the text of one of these tokens, with more behind it."""
        stops = [str(token) for token in self.tokenizer.convert_ids_to_tokens(sorted(stop_ids))]
        return any(stop in text.rstrip()[:-1] and not text.rstrip().endswith(stop) for stop in stops)

    def _tokenized(self, texts: list[str]) -> list[list[int]]:
        kwargs: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False,
                                  "return_token_type_ids": False}
        if not self.special_tokens and any(map(self.holds_special, texts)):
            kwargs["split_special_tokens"] = True
        elif self._backend is not None and len(texts) > 1:
            self.tokenizer("a", **kwargs)  # sets it to what a call sets it to
            return [each.ids for each in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        return [list(ids) for ids in self.tokenizer(texts, **kwargs)["input_ids"]]

    def marked(self, text: str) -> str:
        """A row's text for a chat template, in which special tokens are text: see `rendered_ids`."""
        if self.special_tokens or self._special is None:
            return text
        return self._special.sub(lambda found: found[0][0] + _MARK + found[0][1:], text)

    def unmarked(self, text: str) -> str:
        """The same as it was."""
        return text if _MARK not in text or self._special is None else self._marked_special.sub(
            lambda found: found[0][0] + found[0][2:], text)

    @cached_property
    def _marked_special(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(text[0] + _MARK + text[1:]) for text in self._special_texts))

    def rendered_ids(self, text: str) -> list[int]:
        """The tokens of what a chat template wrote: its own special tokens are tokens, those of marked texts
        are not.
        """
        if _MARK not in text or self._special is None:
            return self._as_template(text)
        ids: list[int] = []
        at = 0
        for match in self._special.finditer(text):  # those of the template: the others are marked
            ids += self._segment(text[at:match.start()], first=not at)
            ids.append(int(self.tokenizer.convert_tokens_to_ids(match[0])))
            at = match.end()
        return ids + self._segment(text[at:], first=not at)

    def _segment(self, text: str, *, first: bool) -> list[int]:
        """A text between two special tokens, as the tokenizer takes it there."""
        text = self.unmarked(text)
        if first or not text or self._segments_stand_alone:
            return self._as_text(text)
        anchor, whole = self._as_text("a"), self._as_text(f"a{text}")
        return whole[len(anchor):] if whole[:len(anchor)] == anchor else self._as_text(text)

    @cached_property
    def _segments_stand_alone(self) -> bool:
        """Whether a text is taken behind a special token as it is alone, with a blank put before it, for
        example.
        """
        return self._as_template(f"{self._special_texts[0]}a b")[1:] == self._as_text("a b")

    def _as_template(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _as_text(self, text: str) -> list[int]:
        if not text:
            return []
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
