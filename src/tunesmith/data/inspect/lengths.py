"""How long the rows are, and what data.max_length costs."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np

from tunesmith.data.inspect.seen import SeenRow

_BARS = 12


class Lengths:
    """Counts rows and tokens; keeps each row's length."""

    def __init__(self) -> None:
        self.rows = self.held_out = self.tokens = self.loss_tokens = self.lost_tokens = self.token_rows = 0
        self._lengths = array("Q")

    def see(self, row: SeenRow) -> None:
        """One more row."""
        self.rows += 1
        self.held_out += row.held_out
        kept = sum(len(tokens.ids) for tokens in row.tokens)
        self.token_rows += len(row.tokens)
        self.tokens += kept
        self.loss_tokens += sum(tokens.loss_tokens for tokens in row.tokens)
        self._lengths.extend(row.lengths)
        if row.overlong:
            self.lost_tokens += max(0, sum(row.lengths) - kept)

    def as_dict(self) -> dict[str, Any]:
        """As `inspect --json` has it; lengths are those before anything is cut [tokens]."""
        lengths = np.array(self._lengths, np.int64)
        quantiles: dict[str, Any] = {}
        if len(lengths):
            names = {"min": 0, "p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95, "p99": 99, "max": 100}
            values = np.percentile(lengths, list(names.values()), method="inverted_cdf")
            quantiles = {name: int(value) for name, value in zip(names, values, strict=True)}
            quantiles["mean"] = round(float(lengths.mean()), 1)
        return {"rows": self.rows, "held_out": self.held_out, "token_rows": self.token_rows,
                "tokens": self.tokens, "loss_tokens": self.loss_tokens, "lost_tokens": self.lost_tokens,
                "lengths": quantiles, "histogram": histogram(lengths)}


def histogram(lengths: np.ndarray) -> list[dict[str, int | None]]:
    """Bars of equal width in round numbers; the last has no end where a few rows are much longer."""
    if not len(lengths):
        return []
    most = int(np.percentile(lengths, 99, method="inverted_cdf"))
    shortest, longest = int(lengths.min()), int(lengths.max())
    reach = longest if longest <= 1.5 * most else most
    width = _round_up((reach - shortest + 1) / _BARS)
    first, count = shortest // width, reach // width - shortest // width + 1
    bars = np.bincount(np.minimum(lengths // width - first, count), minlength=count + 1)
    result: list[dict[str, int | None]] = [
        {"from": (first + number) * width, "to": (first + number + 1) * width - 1, "rows": int(bars[number])}
        for number in range(count)]
    if bars[count]:
        result.append({"from": (first + count) * width, "to": None, "rows": int(bars[count])})
    return result


def _round_up(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    power = int(10 ** math.floor(math.log10(max(width, 1))))
    return min(step * power for step in (1, 2, 5, 10) if step * power >= width)
