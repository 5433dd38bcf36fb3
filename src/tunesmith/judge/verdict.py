"""The verdict: the adapter against its bare base on rows that neither learnt from."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tunesmith.data import TokenRow
from tunesmith.errors import DivergedError
from tunesmith.judge.losses import RowLosses, row_losses
from tunesmith.model.engine import Engine
from tunesmith.serve import TextAnswer, answer_prompts

_RESAMPLES = 2000


@dataclass(frozen=True)
class Sample:
    """A held-out prompt, the answer in the data, and what the base and the tuned model answer."""

    prompt: str
    reference: str
    before: str
    after: str
    before_stopped: bool
    after_stopped: bool


@dataclass(frozen=True)
class Judgement:
    """What the judge found.

    loss_base, loss_tuned: nats a loss-bearing token. interval: 95% interval of tuned - base, bootstrapped over rows;
    None with fewer than two rows. stop_rate_*: share of the stop_rows answered prompts whose answer ended by itself within
    max_new_tokens. list_f1_*: mean F1 of the answers as sets, when the data's answers are lists; else None.
    rows_better: rows whose loss is lower after than before.
    """

    loss_base: float
    loss_tuned: float
    interval: tuple[float, float] | None
    verdict: str
    rows: int
    rows_better: int
    tokens: int
    stop_rate_base: float | None
    stop_rate_tuned: float | None
    stop_rows: int
    max_new_tokens: int
    list_f1_base: float | None
    list_f1_tuned: float | None
    samples: list[Sample]

    def summary(self) -> dict[str, Any]:
        """Everything but the samples, as JSON."""
        return {key: value for key, value in asdict(self).items() if key != "samples"}


def mean_held_out_loss(engine: Engine, rows: list[TokenRow]) -> float:
    """Nats a loss-bearing token over the held-out rows. The engine must be out of training."""
    return row_losses(engine, rows).mean


def judge(engine: Engine, rows: list[TokenRow], *, max_new_tokens: int, samples: int, stop_rows: int,
          on_stage: Callable[[str], None] = lambda stage: None) -> Judgement:
    """Compare the adapter with its bare base on held-out rows; `rows` must not be empty.

    stop_rows: how many prompts are answered at most; samples: how many of them are kept to be shown.
    """
    engine.training(False)
    answered = [row for row in rows if _can_be_answered(row, engine, max_new_tokens)][: max(stop_rows, samples)]
    prompts = [row.prompt_ids for row in answered]
    on_stage("judging the bare base")
    with engine.bare():
        base = row_losses(engine, rows)
        before = answer_prompts(engine, prompts, max_new_tokens)
    on_stage("judging the adapter")
    tuned = row_losses(engine, rows)
    if not np.isfinite(tuned.nats).all() or not np.isfinite(base.nats).all():
        raise DivergedError(f"a held-out loss is not finite (base {base.mean}, with the adapter {tuned.mean})",
                            "Lower train.learning_rate, or compute in float32 (model.dtype).")
    after = answer_prompts(engine, prompts, max_new_tokens)
    interval = _interval(base, tuned)
    references = [row.reference for row in answered]
    return Judgement(
        base.mean, tuned.mean, interval, _verdict(interval), len(rows), int((tuned.nats < base.nats).sum()),
        int(base.tokens.sum()), _share_stopped(before), _share_stopped(after), len(answered), max_new_tokens,
        list_f1(before, references), list_f1(after, references),
        [Sample(row.prompt, row.reference, b.text, a.text, b.stopped, a.stopped)
         for row, b, a in zip(answered[:samples], before, after, strict=False)])


def _can_be_answered(row: TokenRow, engine: Engine, max_new_tokens: int) -> bool:
    """Whether the row has a prompt (plain text has none) that leaves room for an answer in the base's positions."""
    room = engine.positions
    return bool(row.prompt_ids) and (room is None or len(row.prompt_ids) + max_new_tokens <= room)


def _share_stopped(answers: list[TextAnswer]) -> float | None:
    return sum(answer.stopped for answer in answers) / len(answers) if answers else None


def _interval(base: RowLosses, tuned: RowLosses) -> tuple[float, float] | None:
    """Percentile bootstrap (Efron 1979) of the difference in mean loss; rows are drawn, so their tokens stay together."""
    count = len(base.nats)
    if count < 2:
        return None
    drawn = np.random.default_rng(0).integers(0, count, size=(_RESAMPLES, count))
    tokens = base.tokens[drawn].sum(axis=1)
    differences = (tuned.nats - base.nats)[drawn].sum(axis=1) / tokens
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def _verdict(interval: tuple[float, float] | None) -> str:
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "no difference"
    return "helps" if interval[1] < 0 else "hurts"


def _as_set(text: str) -> set[str] | None:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return {str(item) for item in value} if isinstance(value, list) else None


def list_f1(answers: list[TextAnswer], references: list[str]) -> float | None:
    """Mean F1 of answers as sets of items; an answer that is no list scores 0. None unless every reference is a list."""
    wanted = [_as_set(reference) for reference in references]
    if not wanted or any(items is None for items in wanted):
        return None
    scores = []
    for answer, items in zip(answers, wanted, strict=True):
        given = _as_set(answer.text)
        if given is None or items is None:
            scores.append(0.0)
        else:
            scores.append(2 * len(given & items) / (len(given) + len(items)) if given or items else 1.0)
    return sum(scores) / len(scores)
