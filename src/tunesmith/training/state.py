"""state.json of a checkpoint, as a schema: what is not in it, or of another kind, is refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tunesmith.errors import IntegrityError
from tunesmith.rundir.ordinary import parse_json

Count = Annotated[int, Field(ge=0, lt=1 << 62)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class MicroBatchPlanState(_Strict):
    """How steps were split into micro-batches, see `step.MicroBatchPlan`. asked: as the recipe had it."""

    rows: Annotated[int, Field(ge=1, lt=1 << 31)] | None
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 62)]
    overhead_tokens: Count
    checkpointing: Annotated[float, Field(ge=0, le=1)] = 0.0
    may_checkpoint: bool = False
    offloading: bool = False
    may_offload: bool = False
    selective: bool = False
    asked: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None


class MetricsMark(_Strict):
    """How long metrics.jsonl was, and its hash."""

    bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ProgressState(_Strict):
    """How far the run was, see `resume.Progress`."""

    step: Count
    samples: Count
    tokens: Count
    loss_tokens: Count
    seconds: Annotated[float, Field(ge=0)]
    micro_batches: MicroBatchPlanState | dict[str, Any] = Field(default_factory=dict)
    metrics: MetricsMark | None = None

    @model_validator(mode="after")
    def _went_on(self) -> ProgressState:
        if self.step and not (self.seconds and self.samples and self.tokens):
            raise ValueError("steps were made, yet no time passed, or nothing was read")
        return self


class ScalerState(_Strict):
    """torch's GradScaler; all None where the run has none."""

    scale: Annotated[float, Field(gt=0)] | None = None
    growth_factor: Annotated[float, Field(gt=1)] | None = None
    backoff_factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    growth_interval: Annotated[int, Field(ge=1)] | None = None
    growth_tracker: Annotated[int, Field(ge=0)] | None = Field(None, alias="_growth_tracker")


class RandomState(_Strict):
    """What of numpy's and Python's generators is no tensor."""

    numpy: tuple[str, Count, int, float]
    python: tuple[int, float | None]


class State(_Strict):
    """The whole file. run_id: of the checkpoint's run; None for runs of before they had one."""

    progress: ProgressState
    scaler: ScalerState
    random: RandomState
    run_id: str | None = None


def read_state(content: bytes) -> State:
    """A checkpoint's state. Raises IntegrityError naming what is not as this program writes it."""
    parse_json(content, "state.json")  # for its words on JSON that is none
    try:
        state = State.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise IntegrityError(f"state.json: {where}: {first['msg']}",
                             "It was not written by this version of tunesmith. Start afresh in another --run "
                             "folder.") from None
    if isinstance(state.progress.micro_batches, dict) and state.progress.micro_batches:
        raise IntegrityError("state.json: progress.micro_batches: not as this version of tunesmith writes it",
                             "Start afresh in another --run folder.")
    return state
