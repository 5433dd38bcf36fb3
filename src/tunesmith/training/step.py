"""One optimiser step: its samples, split to fit, give exactly the gradient of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.data import TokenRow
from tunesmith.data.batches import plan_micro_batches
from tunesmith.errors import DivergedError, OutOfMemory
from tunesmith.model.engine import Engine
from tunesmith.model.memory import attempt
from tunesmith.model.quantization import smallest
from tunesmith.planning import MicroBatchLimits
from tunesmith.training.optim import AdamW
from tunesmith.training.state import MicroBatchPlanState

#: What to do when a run diverged. Checkpoints are only written while the adapter is finite: from before.
LOWER_THE_RATE = ("Lower train.learning_rate or lengthen train.warmup_steps, in a folder of its own (--run): "
                  "that is another experiment.")


@dataclass
class MicroBatchPlan:
    """How steps are split into micro-batches; shrinks when memory runs out, and then stays so for the run.

    rows: samples at once, or None to choose by length. max_tokens: tokens at once when chosen.
    overhead_tokens: what a micro-batch costs beyond its tokens, in tokens. checkpointing: the share of the
    layers that are recomputed in the backward pass; selective: whether it may be a part of them. offloading:
    what is kept even so waits in the host's memory. may_checkpoint, may_offload: whether these may be
    switched on, one after the other, when nothing smaller is left. asked: the recipe's micro_batch_size, None
    for auto.
    """

    rows: int | None
    max_tokens: int
    overhead_tokens: int
    checkpointing: float = 0.0
    may_checkpoint: bool = False
    offloading: bool = False
    may_offload: bool = False
    selective: bool = False
    asked: int | None = None

    @classmethod
    def of(cls, limits: MicroBatchLimits, *, selective: bool) -> MicroBatchPlan:
        """The plan that a run begins with."""
        return cls(limits.rows, limits.max_tokens, limits.overhead_tokens, checkpointing=limits.checkpointing,
                   may_checkpoint=limits.may_checkpoint, may_offload=limits.may_offload, selective=selective,
                   asked=limits.rows)

    def take_over(self, saved: MicroBatchPlanState) -> bool:
        """Go on with a checkpoint's plan; True where another micro-batch was asked for since: it then holds.

        What the engine here can do stays, which may be on another device than the checkpoint's; what memory
        had forced to be recomputed still is.
        """
        changed = "asked" in saved.model_fields_set and self.asked != saved.asked
        if not changed:
            self.rows, self.max_tokens = saved.rows, saved.max_tokens
            self.overhead_tokens = saved.overhead_tokens
        self.checkpointing, self.may_checkpoint = saved.checkpointing, saved.may_checkpoint
        self.offloading = saved.offloading and self.may_offload
        return changed

    def shrink(self, longest: int) -> bool:
        """Take the next smaller plan; False when there is none. longest: tokens of the step's longest row."""
        if self.rows is not None and self.rows > 1:
            self.rows //= 2
        elif self.rows is None and self.max_tokens > longest:
            self.max_tokens = max(longest, self.max_tokens // 2)
        elif self.may_checkpoint and self.checkpointing < 1:
            self.checkpointing = 0.5 if self.checkpointing < 0.5 and self.selective else 1.0
        elif self.may_offload and self.checkpointing and not self.offloading:
            self.offloading = True
        else:
            return False
        return True

    def described(self) -> str:
        """How steps are split, for people."""
        size = f"{self.rows} samples" if self.rows is not None else f"{self.max_tokens:,} tokens"
        said = f"micro-batches of at most {size}"
        if self.checkpointing:
            said += f", gradient checkpointing on {100 * self.checkpointing:.0f}% of the layers"
        return said + (", the inputs of their halves kept in the host's memory" if self.offloading else "")


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    loss: nats a loss-bearing token. grad_norm: before clipping; None where fp16 overflowed and the step was
    passed over. tokens: without padding.
    """

    loss: float
    grad_norm: float | None
    tokens: int
    loss_tokens: int


def optimiser_step(engine: Engine, optimizer: AdamW, scaler: torch.amp.GradScaler,
                   rows: Sequence[TokenRow], *, step: int, plan: MicroBatchPlan, max_grad_norm: float,
                   dropout_seeds: Sequence[int] | None = None) -> StepResult:
    """Accumulate the gradient of `rows` over micro-batches, clip it, and step.

    The loss of every micro-batch is divided by the loss-bearing tokens of the whole step, so any split gives
    the same step. dropout_seeds: of each row, see `model.dropout`. Raises DivergedError with the step and the
    rows when the loss or the gradient is not finite.
    """
    loss_tokens = sum(row.loss_tokens for row in rows)
    optimizer.zero_grad(set_to_none=False)
    weight = scaler.scale(torch.full((), 1 / loss_tokens, device=engine.device))
    micro_batches = plan_micro_batches(
        [len(row.ids) for row in rows], rows=plan.rows, max_tokens=plan.max_tokens,
        overhead_tokens=plan.overhead_tokens, padded=engine.padded)
    losses = torch.cat([
        engine.accumulate([rows[i] for i in indices], weight,
                          dropout_seeds and [dropout_seeds[i] for i in indices])
        for indices in micro_batches])

    torch_optimizer: Any = optimizer  # it has what the scaler asks an optimiser for
    scaler.unscale_(torch_optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if max_grad_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, grad_norm)
    loss = losses.double().sum() / loss_tokens
    if scaler.is_enabled():
        scaler.step(torch_optimizer)  # passed over when the scaled gradient overflowed
        scaler.update()
    else:
        # Nothing is learnt from a step that is not finite; the device decides, so the host need not wait.
        torch_optimizer.found_inf = (~torch.isfinite(loss + grad_norm)).float()
        optimizer.step()
        del torch_optimizer.found_inf

    # The one place in a step where the host waits for the device.
    loss_value, norm_value = torch.stack([loss, grad_norm.to(loss)]).tolist()
    if not math.isfinite(loss_value):
        order = [i for indices in micro_batches for i in indices]
        offending = [order[place] for place in (~torch.isfinite(losses)).nonzero()[:, 0].tolist()] or order
        raise _diverged(f"the loss is {loss_value}", step, [rows[i] for i in offending])
    if not math.isfinite(norm_value) and not scaler.is_enabled():
        raise _diverged(f"the gradient's norm is {norm_value}", step, rows)
    tokens = sum(len(row.ids) for row in rows)
    return StepResult(loss_value, norm_value if math.isfinite(norm_value) else None, tokens, loss_tokens)


def step_that_fits(engine: Engine, optimizer: AdamW, scaler: torch.amp.GradScaler,
                   rows: Sequence[TokenRow], *, step: int, plan: MicroBatchPlan, max_grad_norm: float,
                   dropout_seeds: Sequence[int] | None = None,
                   notify: Callable[[str], None] = lambda text: None) -> StepResult:
    """The same step, split smaller each time memory runs out. notify: hears how steps are split from then on.

    Raises OutOfMemory when one row alone does not fit.
    """
    def once() -> StepResult:
        return optimiser_step(engine, optimizer, scaler, rows, step=step, plan=plan,
                              max_grad_norm=max_grad_norm, dropout_seeds=dropout_seeds)

    before = plan.described()
    while (result := attempt(once)) is None:
        longest = max(len(row.ids) for row in rows)
        if not plan.shrink(longest):
            raise OutOfMemory(
                f"step {step}: one row of {longest} tokens alone does not fit in the GPU's memory",
                f"Lower data.max_length, quantise the base ({smallest()}), or take a smaller one.")
        optimizer.zero_grad(set_to_none=True)
        scaler.update(scaler.get_scale())  # forgets that this step's gradients may be unscaled already
        if plan.checkpointing:
            engine.checkpoint_gradients(plan.checkpointing, offload=plan.offloading)
    if plan.described() != before:
        notify(f"Step {step} did not fit in memory. From here on: {plan.described()}. The gradients stay the "
               "same.")
    return result


def _diverged(what: str, step: int, rows: Sequence[TokenRow]) -> DivergedError:
    places = "\n  ".join(row.place for row in rows)
    return DivergedError(
        f"step {step}: {what}, so nothing after it would mean anything. Its rows:\n  {places}",
        f"{LOWER_THE_RATE} Or look at these rows.")
