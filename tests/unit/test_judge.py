from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.data import TokenRow
from tunesmith.judge.losses import RowLosses, row_losses
from tunesmith.judge.verdict import _interval, _verdict, list_f1
from tunesmith.serve import TextAnswer


def answers(*texts: str) -> list[TextAnswer]:
    return [TextAnswer(text, 1, True) for text in texts]


def test_list_f1() -> None:
    assert list_f1(answers("['a', 'b']"), ["['b', 'a']"]) == 1
    assert list_f1(answers("['a']"), ["['b', 'a']"]) == pytest.approx(2 / 3)
    assert list_f1(answers("a, b", "[]"), ["['a', 'b']", "[]"]) == 0.5
    assert list_f1(answers("__import__('os')"), ["['a']"]) == 0
    assert list_f1(answers("x"), ["not a list"]) is None
    assert list_f1([], []) is None


def losses(nats: Any, tokens: Any) -> RowLosses:
    return RowLosses(np.array(nats, dtype=float), np.array(tokens))


def test_verdict_follows_the_interval() -> None:
    base = losses([10.0, 20, 30, 12] * 5, [5, 9, 14, 6] * 5)
    better = losses(base.nats - base.tokens * 0.5, base.tokens)
    low, high = _interval(base, better) or (0, 0)
    assert low == pytest.approx(-0.5)
    assert high == pytest.approx(-0.5)
    assert _verdict((low, high)) == "helps"
    assert _verdict(_interval(better, base)) == "hurts"
    assert _verdict(_interval(base, base)) == "no difference"
    assert _interval(losses([1], [1]), losses([0], [1])) is None
    assert _verdict(None) == "no difference"


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(), 0
    for _ in range(200):
        tokens = rng.integers(5, 30, size=60)
        base = losses(tokens * 3.0, tokens)
        tuned = losses(tokens * (3.0 + rng.normal(-0.1, 0.3, size=60)), tokens)
        low, high = _interval(base, tuned) or (0, 0)
        covered += low <= -0.1 <= high
    assert 0.85 <= covered / 200 <= 1.0


class CountingEngine:
    """Costs each row its number of learnt tokens, and has memory for `room` padded tokens."""

    padded = True

    def __init__(self, room: int) -> None:
        self.room = room

    def losses(self, rows: list[TokenRow]) -> torch.Tensor:
        if len(rows) * max(len(row.ids) for row in rows) > self.room:
            raise torch.OutOfMemoryError("planted")
        return torch.tensor([sum(row.learnt) for row in rows]).float()


@pytest.mark.parametrize("room", [10_000, 60, 20])
def test_row_losses_keep_their_order_and_survive_little_memory(room: int) -> None:
    lengths = np.random.default_rng().integers(2, 20, size=40).tolist()
    rows = [TokenRow([1] * n, [False] + [True] * (n - 1), [1], "", "", "") for n in lengths]
    found = row_losses(CountingEngine(room), rows)  # type: ignore[arg-type]
    assert found.nats.tolist() == [n - 1 for n in lengths]
    assert found.mean == 1
