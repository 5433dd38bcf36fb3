"""How long rows are in tokens: measured with the base's tokenizer where it is here, else estimated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.examples import Form, make_examples
from tunesmith.data.rows import Row
from tunesmith.data.tokenize import Encoder, Rules, TokenRow
from tunesmith.errors import DataError, NetworkError
from tunesmith.model.base_config import DEQUANTIZED, own_quantization
from tunesmith.model.files import BaseFiles, locate_tokenizer, read_config
from tunesmith.model.quantization import AS_THEY_ARE, WAYS
from tunesmith.planning import can_count, count_parameters
from tunesmith.verbs.show import Show

#: A token is about so many bytes of UTF-8; fewer than in most text, so that the estimate is not too short.
_BYTES_A_TOKEN = 3.0
#: What a chat template or the words around the columns add to a row, about [tokens].
_AROUND = 48
#: A base of fewer parameters is not quantised: there is nothing to save.
_SMALL = 1_000_000_000
#: So many rows that cannot be trained on are named; more end it.
_MOST_REFUSED = 5


@dataclass(frozen=True)
class Base:
    """A base without its weights.

    tokenizer: None where its files are not here. is_chat: whether it has a chat template, or is called as
    bases that have one are. quantization: what suits it; None where that is not known.
    """

    name: str
    tokenizer: Any
    is_chat: bool
    positions: int | None
    quantization: str | None


@dataclass(frozen=True)
class Lengths:
    """Rows in tokens.

    first: of each of the first rows; others: of the longest of the rest. answers: of the answers of the first
    rows. measured: with the base's tokenizer, not estimated.
    """

    first: tuple[int, ...]
    others: tuple[int, ...]
    answers: tuple[int, ...]
    measured: bool

    @property
    def half(self) -> int:
        """The length that half of the rows do not exceed."""
        return quantile(self.first, 0.5)

    @property
    def most(self) -> int:
        """The length that 95% of the rows do not exceed."""
        return quantile(self.first, 0.95)

    @property
    def longest(self) -> int:
        """The longest row."""
        return max(self.first + self.others)

    @property
    def most_answers(self) -> int:
        """The length that 95% of the answers do not exceed."""
        return quantile(self.answers, 0.95)

    def longer_than(self, limit: int) -> int:
        """How many of the rows are longer."""
        return sum(tokens > limit for tokens in self.first + self.others)


def look_at_base(name: str, show: Show) -> Base:
    """A base's config and tokenizer. Without network a base on the Hub is known by its name alone.

    Raises RecipeError for what is no base, IntegrityError.
    """
    show.stage("looking at the base")
    try:
        folder = locate_tokenizer(name, None, show.note)
    except NetworkError as error:
        show.note(f"{error.message}. So lengths are estimated.")
        return unseen_base(name)
    from tunesmith.model.tokenizer import load_tokenizer

    config = read_config(folder)
    files = BaseFiles(name, None, folder, config)
    tokenizer = load_tokenizer(files)
    return Base(name, tokenizer, bool(getattr(tokenizer, "chat_template", None)), files.positions,
                _suitable_quantization(config))


def unseen_base(name: str, quantization: str | None = None) -> Base:
    """A base of which only the name is known."""
    is_chat = re.search(r"(?i)(^|[-_./])(instruct|chat|it|rlhf|dpo|sft)($|[-_.])", name) is not None
    return Base(name, None, is_chat, None, quantization)


def _suitable_quantization(config: Mapping[str, Any]) -> str | None:
    own = own_quantization(config)
    if own in WAYS:
        return own
    if own in DEQUANTIZED:
        return AS_THEY_ARE
    if not can_count(dict(config), "auto"):
        return None
    parameters = count_parameters(dict(config), r=1, target_modules="auto").all
    return AS_THEY_ARE if parameters < _SMALL else None


def token_lengths(settings: Mapping[str, Any], first: Sequence[Row], others: Sequence[Row],
                  tokenizer: Any) -> tuple[Lengths, list[str]]:
    """Lengths as training will have them, and what is wrong with rows that it will refuse.

    Raises DataError where those are many.
    """
    encoder = Encoder(tokenizer, Rules("completion", tokenizer.eos_token_id is not None, 1 << 40, "error"))
    refused: list[str] = []
    rows, longest = (_encoded(settings, some, encoder, refused) for some in (first, others))
    return Lengths(tuple(len(row.ids) for row in rows), tuple(len(row.ids) for row in longest),
                   tuple(row.loss_tokens for row in rows), True), refused


def _encoded(settings: Mapping[str, Any], rows: Sequence[Row], encoder: Encoder,
             refused: list[str]) -> list[TokenRow]:
    """Rows as tokens, without those that cannot be trained on; `refused` receives why. Raises DataError."""
    while rows:
        try:
            form = Form(settings.get("prompt", ""), settings.get("completion"), settings.get("messages"),
                        chat=settings.get("chat"))
            return [row for made in encoder.encode_all(make_examples(rows, form)) for row, _ in made]
        except DataError as error:
            refused.append(error.message)
            kept = [row for row in rows if not error.message.startswith(f"{row.place}:")]
            if len(kept) == len(rows) or not kept or len(refused) > _MOST_REFUSED:
                raise
            rows = kept
    return []


def estimated_lengths(first: Sequence[tuple[str, str]], others: Sequence[tuple[str, str]]) -> Lengths:
    """The same for rows as (all that is learnt or given, the answer), from how many bytes they have."""
    def tokens(text: str) -> int:
        return round(len(text.encode("utf-8", "surrogatepass")) / _BYTES_A_TOKEN)

    return Lengths(tuple(tokens(text) + _AROUND for text, _ in first),
                   tuple(tokens(text) + _AROUND for text, _ in others),
                   tuple(tokens(answer) for _, answer in first), False)


def quantile(values: Sequence[int], share: float) -> int:
    """The value that a share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
