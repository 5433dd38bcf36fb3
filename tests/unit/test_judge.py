from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.data import TokenRow
from tunesmith.judge.interval import interval_of_mean, interval_of_ratio, t_quantile
from tunesmith.judge.losses import row_losses
from tunesmith.judge.verdict import _better_answers, _verdict, distinct, list_f1
from tunesmith.rundir.verdict import verdict_sentence
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


def test_verdict_follows_the_interval() -> None:
    tokens = np.array([5, 9, 14, 6] * 5)
    low, high = interval_of_ratio(-0.5 * tokens, tokens) or (0, 0)
    assert low == pytest.approx(-0.5)
    assert high == pytest.approx(-0.5)
    assert _verdict((low, high), 0.0, True) == "helps"
    assert _verdict((low, high), 0.0, False) == "loss only"
    assert _verdict((-high, -low), 0.0, True) == "hurts"
    assert _verdict((0.0, 0.0), 1e-4, True) == "no difference"
    assert _verdict((-2e-7, -1e-7), 1e-4, True) == "no difference", "too small to be anything"
    assert _verdict((-0.5, 0.1), 0.0, True) == "no difference"
    assert _verdict(None, 0.0, True) == "too few rows"
    assert interval_of_mean([1.0] * 4) is None
    assert interval_of_mean([1.0] * 5) == (1, 1)


def test_student_s_t_is_the_table_s() -> None:
    for p, freedom, want in ((0.975, 1, 12.7062), (0.975, 4, 2.7764), (0.995, 11, 3.1058),
                             (0.9975, 7, 4.0293), (0.975, 10**6, 1.95997)):
        assert t_quantile(p, freedom) == pytest.approx(want, rel=1e-4)


#: Differences of a row with mean 0, symmetric and skewed both ways.
SHAPES = {"normal": lambda rng, size: rng.normal(size=size),
          "exponential": lambda rng, size: rng.exponential(size=size) - 1,
          "turned": lambda rng, size: 1 - rng.exponential(size=size),
          "log-normal": lambda rng, size: math.exp(0.125) - rng.lognormal(0, 0.5, size=size)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [5, 8, 12, 25, 125])
def test_with_no_effect_a_verdict_is_rare(shape: str, rows: int) -> None:
    """At least 93% of intervals cover the truth, few lie below it; the limits allow for chance."""
    rng = np.random.default_rng(rows)
    found = [interval_of_mean(each) or (0, 0) for each in SHAPES[shape](rng, (600, rows))]
    assert sum(low <= 0 <= high for low, high in found) / 600 >= 0.93 - 0.02
    assert sum(high < 0 for _, high in found) / 600 <= 0.03 + 0.02


def test_rows_of_unequal_length_are_a_ratio() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(300):
        tokens = rng.integers(2, 60, size=30)
        low, high = interval_of_ratio(tokens * rng.normal(-0.1, 0.3, size=30), tokens) or (0, 0)
        covered += low <= -0.1 <= high
    assert covered / 300 >= 0.93


@pytest.mark.parametrize("rows", [5, 8, 12, 25])
def test_heavily_skewed_rows_of_unequal_length_are_covered(rows: int) -> None:
    """The hardest kind of benchmarks/verdict_coverage.py; 0.5% is left for chance in 3,000 trials."""
    rng, covered = np.random.default_rng(rows), 0
    for _ in range(3000):
        tokens = rng.geometric(1 / 20, size=rows)
        low, high = interval_of_ratio(tokens * (rng.lognormal(0, 1, size=rows) - math.exp(0.5)),
                                      tokens) or (1, 0)
        covered += low <= 0 <= high
    assert covered / 3000 >= 0.93 - 0.005


def test_an_interval_of_many_rows_needs_little_memory() -> None:
    values = np.random.default_rng(0).normal(size=200_000)
    tracemalloc.start()
    interval_of_ratio(values, np.ones_like(values))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 64 << 20


def test_equal_rows_count_once() -> None:
    def row(*ids: int, place: str = "") -> TokenRow:
        return TokenRow(list(ids), [False] + [True] * (len(ids) - 1), [ids[0]], "", "", place)

    rows = [row(1, 2, place="a"), row(1, 3, place="b"), row(1, 2, place="c"), row(1, 2, 3, place="d"),
            row(1, 3, place="e")]
    assert [each.place for each in distinct(rows)] == ["a", "b", "d"]


def test_answers_are_better_by_more_than_chance() -> None:
    wrong, right, wanted = answers(*["no"] * 8), answers(*["yes "] * 8), ["yes"] * 8
    assert _better_answers(wrong, right, wanted)
    assert not _better_answers(right, wrong, wanted)
    assert not _better_answers(wrong, wrong, wanted)
    assert not _better_answers(wrong, answers("yes", *["no"] * 7), wanted), "one of eight may be chance"
    assert not _better_answers(wrong[:4], right[:4], wanted[:4]), "too few"
    assert not _better_answers([], [], [])
    assert not _better_answers(answers(*[""] * 8), answers(*[""] * 8), [""] * 8)
    cut = [TextAnswer("yes", 1, False)] * 8
    assert not _better_answers(wrong, cut, wanted), "an answer that does not end is not the data's"


@pytest.mark.parametrize(("found", "says"), [
    ({"verdict": "helps", "rows_better": 7}, "the answers are better. The loss is lower on 7 of 8"),
    ({"verdict": "loss only", "stop_rows": 5, "right_tuned": 0}, "The loss fell, but no answer is right yet"),
    ({"verdict": "loss only", "stop_rows": 5, "right_tuned": 2},
     "no better answers could be told from chance"),
    ({"verdict": "loss only", "stop_rows": 0}, "answers were not compared"),
    ({"verdict": "hurts"}, "the loss rose"), ({"verdict": "no difference", "interval": [-0.5, 0.25]},
                                              "(change -0.500 to +0.250 nats a token, 95% interval)"),
    ({"verdict": "too few rows", "fewest_rows": 5}, "8, and at least 5 are needed")],
                         ids=lambda value: str(value)[:40])
def test_the_words_say_what_was_seen(found: dict[str, Any], says: str) -> None:
    sentence = verdict_sentence({"rows": 8, "loss_base": 3.0, "loss_tuned": 2.0, **found})
    assert says in sentence
    assert "It helped" not in sentence


class CountingEngine:
    """Costs each row its number of learnt tokens, and has memory for `room` padded tokens."""

    padded = True

    def __init__(self, room: int) -> None:
        self.room = room

    def losses(self, rows: list[TokenRow]) -> torch.Tensor:
        if len(rows) * max(len(row.ids) for row in rows) > self.room:
            raise torch.OutOfMemoryError("planted")
        return torch.tensor([sum(row.loss_mask) for row in rows]).float()


@pytest.mark.parametrize("room", [10_000, 60, 20])
def test_row_losses_keep_their_order_and_survive_little_memory(room: int) -> None:
    lengths = np.random.default_rng().integers(2, 20, size=40).tolist()
    rows = [TokenRow([1] * n, [False] + [True] * (n - 1), [1], "", "", "") for n in lengths]
    found = row_losses(CountingEngine(room), rows)  # type: ignore[arg-type]
    assert found.nats.tolist() == [n - 1 for n in lengths]
    assert found.mean == 1
