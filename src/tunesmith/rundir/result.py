"""result.json and verdict.json: what came out of a run, as terminal, card, report and metadata show it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.rundir.schema import Count, Seconds, Share, Short, Strict

Finite = Annotated[float, Field(allow_inf_nan=False)]
#: A loss of a step whose update was skipped, because fp16 overflowed, may be infinite.
Loss = Annotated[float, Field(allow_inf_nan=True)]


class Measured(BaseModel):
    """What an adapter's metadata has to say of a comparison of the adapter with its base; it may say more.

    loss_base, loss_tuned: nats per token that the loss mask keeps. interval: 95% interval of tuned - base.
    stop_rate_*: the share of answers that ended by themselves.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    verdict: Annotated[str, Field(max_length=4096, pattern=r"\S")]
    rows: Count
    loss_base: Finite
    loss_tuned: Finite
    interval: tuple[Finite, Finite] | None = None
    stop_rate_base: Share | None = None
    stop_rate_tuned: Share | None = None


class JudgementSummary(Measured):
    """All that a comparison measured but the sample answers; see `judge.Judgement` for each key."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    interval: tuple[Finite, Finite] | None
    stop_rate_base: Share | None
    stop_rate_tuned: Share | None
    rows_better: Count
    tokens: Count
    stop_rows: Count
    max_new_tokens: Count
    right_base: Count
    right_tuned: Count
    smallest_change: Finite
    fewest_rows: Count
    list_f1_base: Share | None
    list_f1_tuned: Share | None


class RunResult(Strict):
    """result.json: what `train` returns, with places relative to the run folder.

    train_loss: mean over the steps, nats per token; eval_loss_*: of the validation set. seconds: of training.
    tokens_per_second: padding is not counted. kept: how many of the base's values are kept in which way.
    peak_memory_bytes: the most that any of the run's processes used while training. prompt: one to try the
    adapter with.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    run: Literal["."] = "."
    engine: Short
    trainable_parameters: Count
    all_parameters: Count
    steps: Count
    train_loss: Loss | None
    eval_loss_before: Finite | None
    eval_loss_after: Finite | None
    seconds: Seconds
    tokens_per_second: Seconds
    kept: dict[Short, Count]
    peak_memory_bytes: Count
    adapter: Literal["adapter"] = "adapter"
    verdict: Short | None
    judgement: JudgementSummary | None
    prompt: str
