"""The verdict: the adapter against its bare base on rows that neither learnt from."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tunesmith.data import TokenRow
from tunesmith.data.token_rows import taken
from tunesmith.errors import DivergedError
from tunesmith.judge.interval import FEWEST, interval_of_mean, interval_of_ratio
from tunesmith.judge.losses import row_losses
from tunesmith.model.engine import Engine
from tunesmith.rundir.result import JudgementSummary
from tunesmith.serve import TextAnswer, answer_prompts

#: A change of the loss that is a smaller share of it than this is rounding, or too small for anyone.
_SMALLEST_SHARE = 1e-4


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

    loss_base, loss_tuned: nats a loss-bearing token, over the different rows: equal ones count once.
    interval: 95% interval of tuned - base, see `interval`; None with fewer than `fewest_rows`.
    smallest_change: one nearer to zero is none. stop_rate_*: share of the stop_rows answered prompts whose
    answer ended by itself within max_new_tokens. right_*: how many of these answers are the data's, blanks at
    their ends aside. list_f1_*: mean F1 of the answers as sets, when the data's answers are lists; else None.
    rows: different rows; rows_better: those whose loss is lower after than before. verdict: helps (the loss
    fell and the answers are better) | loss only | no difference | hurts (the loss rose) | too few rows.
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
    right_base: int
    right_tuned: int
    smallest_change: float
    fewest_rows: int
    list_f1_base: float | None
    list_f1_tuned: float | None
    samples: list[Sample]

    def summary(self) -> JudgementSummary:
        """Everything but the samples, as the run and the adapter's metadata keep it."""
        return JudgementSummary(**{key: value for key, value in vars(self).items() if key != "samples"})


def mean_validation_loss(engine: Engine, rows: Sequence[TokenRow]) -> float:
    """Nats a loss-bearing token over the held-out rows. The engine must be out of training."""
    return row_losses(engine, rows).mean


def judge(engine: Engine, rows: Sequence[TokenRow], *, max_new_tokens: int, samples: int,
          stop_rows: int, matters: float = 0.0,
          on_stage: Callable[[str], None] = lambda stage: None) -> Judgement:
    """Compare the adapter with its bare base on held-out rows; `rows` must not be empty.

    stop_rows: how many prompts are answered at most; samples: how many of them are kept to be shown. matters:
    a change of the loss that is smaller than this is none [nats a token].
    """
    engine.training(False)
    rows = distinct(rows)
    answered = list(islice((row for row in rows if _can_be_answered(row, engine, max_new_tokens)),
                           max(stop_rows, samples)))
    prompts = [row.prompt_ids for row in answered]
    on_stage("judging the bare base")
    with engine.adapter_disabled():
        base = row_losses(engine, rows)
        before = answer_prompts(engine, prompts, max_new_tokens)
    on_stage("judging the adapter")
    tuned = row_losses(engine, rows)
    if not np.isfinite(tuned.nats).all() or not np.isfinite(base.nats).all():
        raise DivergedError(f"a held-out loss is not finite (base {base.mean}, "
                            f"with the adapter {tuned.mean})",
                            "Lower train.learning_rate, or compute in float32 (model.dtype).")
    after = answer_prompts(engine, prompts, max_new_tokens)
    references = [row.reference for row in answered]
    right = [int(sum(_exact_matches(answers, references))) for answers in (before, after)]
    interval = interval_of_ratio(tuned.nats - base.nats, base.tokens)
    smallest = max(matters, _SMALLEST_SHARE * base.mean)
    return Judgement(
        loss_base=base.mean, loss_tuned=tuned.mean, interval=interval,
        verdict=_verdict(interval, smallest, _better_answers(before, after, references)), rows=len(rows),
        rows_better=int((tuned.nats < base.nats).sum()), tokens=int(base.tokens.sum()),
        stop_rate_base=_share_stopped(before), stop_rate_tuned=_share_stopped(after), stop_rows=len(answered),
        max_new_tokens=max_new_tokens, right_base=right[0], right_tuned=right[1], smallest_change=smallest,
        fewest_rows=FEWEST, list_f1_base=list_f1(before, references),
        list_f1_tuned=list_f1(after, references),
        samples=[Sample(row.prompt, row.reference, b.text, a.text, b.stopped, a.stopped)
                 for row, b, a in zip(answered[:samples], before, after, strict=False)])


def distinct(rows: Sequence[TokenRow]) -> Sequence[TokenRow]:
    """The rows, equal ones once: a row that is repeated says no more than it does alone."""
    first: dict[bytes, int] = {}
    for number, row in enumerate(rows):
        content = np.array(row.ids, dtype=np.int64).tobytes() + bytes(row.loss_mask)
        first.setdefault(hashlib.sha256(content).digest(), number)
    return rows if len(first) == len(rows) else taken(rows, first.values())


def _exact_matches(answers: list[TextAnswer], references: list[str]) -> list[float]:
    """Of each answer whether it is the data's: 1 or 0."""
    return [float(answer.stopped and answer.text.strip() == reference.strip()) if reference.strip() else 0.0
            for answer, reference in zip(answers, references, strict=True)]


def _better_answers(before: list[TextAnswer], after: list[TextAnswer], references: list[str]) -> bool:
    """Whether the answers came nearer to the data's by more than chance; lists are compared as sets."""
    scored = [_list_scores(answers, references) or _exact_matches(answers, references)
              for answers in (before, after)]
    interval = interval_of_mean(np.subtract(scored[1], scored[0])) if references else None
    return interval is not None and interval[0] > 0


def _can_be_answered(row: TokenRow, engine: Engine, max_new_tokens: int) -> bool:
    """Whether the row has a prompt, as plain text has not, that leaves positions for an answer."""
    positions = engine.positions
    return bool(row.prompt_ids) and (positions is None or len(row.prompt_ids) + max_new_tokens <= positions)


def _share_stopped(answers: list[TextAnswer]) -> float | None:
    return sum(answer.stopped for answer in answers) / len(answers) if answers else None


def _verdict(interval: tuple[float, float] | None, smallest: float, better_answers: bool) -> str:
    if interval is None:
        return "too few rows"
    if interval[1] < -smallest:
        return "helps" if better_answers else "loss only"
    return "hurts" if interval[0] > smallest else "no difference"


def _as_set(text: str) -> set[str] | None:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return {str(item) for item in value} if isinstance(value, list) else None


def list_f1(answers: list[TextAnswer], references: list[str]) -> float | None:
    """Mean F1 of answers as sets of items (no list: 0). None unless every reference is a list."""
    scores = _list_scores(answers, references)
    return sum(scores) / len(scores) if scores else None


def _list_scores(answers: list[TextAnswer], references: list[str]) -> list[float] | None:
    reference_sets = [_as_set(reference) for reference in references]
    if not reference_sets or any(items is None for items in reference_sets):
        return None
    scores = []
    for answer, items in zip(answers, reference_sets, strict=True):
        given = _as_set(answer.text)
        if given is None or items is None:
            scores.append(0.0)
        else:
            scores.append(2 * len(given & items) / (len(given) + len(items)) if given or items else 1.0)
    return scores
