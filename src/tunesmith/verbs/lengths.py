"""How long rows are in tokens: measured with the base's tokenizer where it is here, else estimated."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.chat.render import TemplateRefused, TemplateRenderer, TemplateUnbounded
from tunesmith.data.columns import Holds
from tunesmith.data.examples import ExampleMaker
from tunesmith.data.rows import Row
from tunesmith.data.sets import form_of
from tunesmith.data.shapes import Shape
from tunesmith.data.tokenize import Encoder, TokenRow, rules_of
from tunesmith.errors import DataError, NetworkError
from tunesmith.model.base_config import DEQUANTIZED, own_quantization
from tunesmith.model.files import BaseFiles, locate_tokenizer, read_config, stop_ids
from tunesmith.model.quantization import AS_THEY_ARE, WAYS
from tunesmith.planning import can_count, count_parameters
from tunesmith.recipe.schema import DataSection
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
    stop_ids: tuple[int, ...] = ()


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
                _suitable_quantization(config), stop_ids(files, tokenizer))


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


def refuses_system_turns(tokenizer: Any) -> bool:
    """Whether a chat template refuses a system turn, or leaves it out without a word."""
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    try:
        return "Be brief." not in TemplateRenderer(tokenizer).render(chat, generation_prompt=True)
    except (TemplateRefused, TemplateUnbounded):
        return True


def written_out(tokenizer: Any, shape: Shape, rows: Sequence[Row]) -> list[str]:
    """The special tokens that stand in the text of most rows, as texts made for one base have them."""
    if tokenizer is None or any(column.holds is not Holds.TEXT for column in shape.parts.values()):
        return []
    texts = ["\n".join(str(row.values.get(column.name)) for column in shape.parts.values()) for row in rows]
    special = list(map(str, tokenizer.all_special_tokens))
    count = Counter(token for text in texts for token in special if token in text)
    return [token for token, times in count.most_common() if times > len(rows) / 2]


def token_lengths(settings: DataSection, first: Sequence[Row], others: Sequence[Row],
                  base: Base) -> tuple[Lengths, list[str]]:
    """Lengths as training will have them, and what is wrong with rows that it will refuse.

    settings: the recipe's data section; its `max_length` is not looked at. Raises DataError where rows that
    are refused are many, RecipeError for templates that are none.
    """
    maker = ExampleMaker(form_of(settings))
    encoder = Encoder(base.tokenizer, replace(rules_of(settings, base.stop_ids), max_length=1 << 40))
    refused: list[str] = []
    rows, longest = (list(_encoded(some, maker, encoder, refused)) for some in (first, others))
    return Lengths(tuple(len(row.ids) for row in rows), tuple(len(row.ids) for row in longest),
                   tuple(row.loss_tokens for row in rows), True), refused


def _encoded(rows: Sequence[Row], maker: ExampleMaker, encoder: Encoder,
             refused: list[str]) -> Iterator[TokenRow]:
    """Rows as tokens, without those that cannot be trained on; `refused` receives why."""
    left = len(rows)
    for row in rows:
        try:
            made = encoder.encode(maker.make(row))
            if not any(each.loss_tokens for each, _ in made):
                raise DataError(f"{row.place}: no token to learn from: the answer is empty")
        except DataError as error:
            refused.append(error.message)
            left -= 1
            if not left or len(refused) > _MOST_REFUSED:
                more = f" (and {len(refused) - 1} more of the first rows)" if len(refused) > 1 else ""
                raise DataError(f"cannot be trained on{more}: {refused[0]}", error.hint) from None
            continue
        yield from (each for each, _ in made)


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
