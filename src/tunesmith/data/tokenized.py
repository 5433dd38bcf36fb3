"""Examples to the token rows that are kept of them: the rules of length, and what is to be said of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from tunesmith.data.chat.remarks import ChatRemarks
from tunesmith.data.examples import Example
from tunesmith.data.tokenize import Encoder, Rules, TokenRow
from tunesmith.errors import DataError

#: Examples that are tokenized together, at most.
_AT_ONCE = 4096


@dataclass
class Tokenized:
    """What became of one example.

    truncated, dropped: how many rows were cut, or left out, for their length. special: whether its text holds
    that of a special token, which was taken as text. remarks: of its conversation.
    """

    rows: list[TokenRow]
    truncated: int = 0
    dropped: int = 0
    special: bool = False
    remarks: ChatRemarks = field(default_factory=ChatRemarks)


def tokenized(examples: Iterable[Example], encoder: Encoder) -> Iterator[Tokenized]:
    """What becomes of each example.

    Raises DataError for an overlong row under `overlong: error`, and for a row with no token that bears loss;
    with `skip_bad` such rows are counted in the remarks.
    """
    remaining = iter(examples)
    while chunk := list(islice(remaining, _AT_ONCE)):
        yield from _tokenized(chunk, encoder)


def _tokenized(examples: Sequence[Example], encoder: Encoder) -> Iterator[Tokenized]:
    encoder.chat.remarks = ChatRemarks()
    for example, encoded in zip(examples, encoder.encode_all(examples), strict=True):
        try:
            if isinstance(encoded, DataError):
                raise encoded
            made = _kept(encoded, encoder.rules)
        except DataError as error:
            if not encoder.rules.skip_bad:
                raise
            encoder.chat.remarks = ChatRemarks()
            yield Tokenized([], remarks=ChatRemarks(refused=Counter([error.message])))
            continue
        made.remarks, encoder.chat.remarks = encoder.chat.remarks, ChatRemarks()
        made.special = (not encoder.rules.special_tokens
                        and any(map(encoder.plain.holds_special, example.texts())))
        yield made


def _kept(encoded: Sequence[tuple[TokenRow, bool]], rules: Rules) -> Tokenized:
    """The rows of an example that are kept."""
    made = Tokenized([])
    for row, overlong in encoded:
        if overlong and rules.overlong == "error":
            raise DataError(f"{row.place}: longer than data.max_length, {rules.max_length} tokens",
                            "Raise data.max_length, or set data.overlong to truncate, drop or split.")
        if overlong and rules.overlong == "drop":
            made.dropped += 1
            continue
        made.truncated += overlong and rules.overlong == "truncate"
        if not row.loss_tokens:
            raise _nothing_to_learn(row, rules, overlong)
        made.rows.append(row)
    return made


def none_left(examples: int, rules: Rules, refused: Mapping[str, int], *,
              held_out: bool = False) -> DataError:
    """The error for a side of which no row is left. refused: rows that were skipped, by what is wrong."""
    if refused:
        return DataError(f"none of {examples}{' held-out' if held_out else ''} rows can be used. The first: "
                         f"{next(iter(refused))}",
                         "So many are a fault of the file or of the recipe, not of single rows: correct it.",
                         setting="data.bad_rows")
    which = f"all {examples} held-out rows exceed" if held_out else f"all {examples} rows are longer than"
    return DataError(f"{which} {rules.max_length} tokens",
                     "Raise data.max_length, or set data.overlong to truncate.", setting="data.max_length")


def _nothing_to_learn(row: TokenRow, rules: Rules, overlong: bool) -> DataError:
    reason = (f"its prompt alone fills data.max_length, {rules.max_length} tokens" if overlong
              else "the completion is empty" if rules.loss_on == "completion"
              else "it is empty or one token long")
    return DataError(f"{row.place}: no token to learn from: {reason}",
                     "Remove the row" + (", or set data.overlong to drop." if overlong else "."))
