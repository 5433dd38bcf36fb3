"""The training loop, read from top to bottom."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from tunesmith.data import Batches, SampleOrder, TokenRow
from tunesmith.errors import DivergedError, IntegrityError, Interrupted
from tunesmith.model.dropout import sample_seeds
from tunesmith.model.engine import Engine
from tunesmith.recipe.schema import TrainSection
from tunesmith.rundir import RunFolder
from tunesmith.training.optim import AdamW, build_optimizer, build_scaler, learning_rate_at
from tunesmith.training.resume import Progress, checkpoint_files, restore, seed_everything
from tunesmith.training.signals import StopSignal
from tunesmith.training.state import MicroBatchPlanState
from tunesmith.training.step import LOWER_THE_RATE, MicroBatchPlan, step_that_fits

#: fp16 skips a step that overflowed; the scale halves each time, so a healthy run skips far fewer in a row.
_MOST_SKIPPED = 25


@dataclass(frozen=True)
class TrainSettings:
    """The experiment as the recipe says it. total_steps: the resolved length of the run [optimiser steps]."""

    total_steps: int
    batches: Batches
    learning_rate: float
    lr_scheduler: str
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    seed: int
    save_steps: int
    save_total_limit: int
    eval_steps: int

    @classmethod
    def of(cls, section: TrainSection, *, rows: int) -> TrainSettings:
        """Of a recipe's section. rows: to learn from; they make an epoch."""
        batches = Batches(rows, section.batch_size, None if section.max_steps else section.num_epochs or 1)
        names = [each.name for each in fields(cls) if each.name not in ("total_steps", "batches")]
        return cls(total_steps=section.max_steps or batches.total_steps or 1, batches=batches,
                   **{name: getattr(section, name) for name in names})


def train(engine: Engine, rows: Sequence[TokenRow], settings: TrainSettings, run: RunFolder,
          plan: MicroBatchPlan, stop: StopSignal, *, validation_loss: Callable[[], float] | None,
          on_step: Callable[[dict[str, Any]], None], notify: Callable[[str], None]) -> Progress:
    """Train the engine's adapter to the last step, from the newest whole checkpoint of `run` if it has one.

    validation_loss: the judge, asked every `eval_steps`. on_step: sees each step's record as metrics.jsonl
    gets it. Raises Interrupted after saving when a signal came, DivergedError, OutOfMemory, DiskError,
    IntegrityError.
    """
    optimizer = build_optimizer(engine.trainable().values(), learning_rate=settings.learning_rate,
                                weight_decay=settings.weight_decay)
    scaler = build_scaler(engine.dtype, engine.device)
    order = SampleOrder(len(rows), settings.seed)
    checkpoints = run.checkpoints(settings.save_total_limit)
    run_id = run.run_id()
    progress = _start(engine, optimizer, scaler, run, plan, settings, notify)

    skipped = 0
    engine.training(True)
    while progress.step < settings.total_steps:
        started = time.perf_counter()
        rate = learning_rate_at(progress.step, kind=settings.lr_scheduler, peak=settings.learning_rate,
                                warmup_steps=settings.warmup_steps, total_steps=settings.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = [rows[i] for i in order.take(progress.samples, settings.batches.size_at(progress.samples))]
        result = step_that_fits(engine, optimizer, scaler, batch, step=progress.step + 1, plan=plan,
                                max_grad_norm=settings.max_grad_norm,
                                dropout_seeds=sample_seeds(settings.seed, progress.samples, len(batch)),
                                notify=notify)
        seconds = time.perf_counter() - started

        progress.step += 1
        progress.samples += len(batch)
        progress.tokens += result.tokens
        progress.loss_tokens += result.loss_tokens
        progress.seconds += seconds
        record = {"step": progress.step, "loss": result.loss, "learning_rate": rate,
                  "grad_norm": result.grad_norm, "tokens": result.tokens,
                  "tokens_per_second": result.tokens / seconds,
                  "peak_memory_bytes": peak_memory_bytes(engine.device), "seconds": seconds}
        last = progress.step == settings.total_steps
        skipped = skipped + 1 if result.grad_norm is None else 0
        if skipped:
            notify(f"Step {progress.step}: the gradient overflowed in float16, so the step changed nothing; "
                   "the loss scale is halved.")
        if skipped >= _MOST_SKIPPED:
            raise DivergedError(
                f"step {progress.step}: fp16 overflowed in {skipped} steps in a row, so nothing is learnt",
                "Set model.dtype to bfloat16 or float32, or lower train.learning_rate.")
        if validation_loss and settings.eval_steps and not last and progress.step % settings.eval_steps == 0:
            engine.training(False)
            record["eval_loss"] = validation = validation_loss()
            engine.training(True)
            if not math.isfinite(validation):
                raise DivergedError(f"step {progress.step}: the held-out loss is {record['eval_loss']}",
                                    LOWER_THE_RATE)
        run.metrics.append(record)
        on_step(record)

        if last or progress.step % settings.save_steps == 0 or stop.number is not None:
            _require_finite(engine, progress.step)
            progress.micro_batches, progress.metrics = MicroBatchPlanState(**asdict(plan)), run.metrics.mark()
            checkpoints.save(progress.step, checkpoint_files(engine, optimizer, scaler, progress, run_id))
        if stop.number is not None and not last:
            raise Interrupted(stop.number,
                              f"Stopped and saved at step {progress.step} of {settings.total_steps}.",
                              "The same command goes on from there.")
    engine.training(False)
    return progress


def _start(engine: Engine, optimizer: AdamW, scaler: torch.amp.GradScaler, run: RunFolder,
           plan: MicroBatchPlan, settings: TrainSettings, notify: Callable[[str], None]) -> Progress:
    """Where the run begins: at its newest whole checkpoint, or at the beginning."""
    path, files, damaged = run.checkpoints(settings.save_total_limit).newest_whole()
    for reason in damaged:
        notify(f"{reason}; falling back to "
               f"{'an older checkpoint' if path else 'the beginning: no checkpoint is whole'}.")
    if path is None:
        run.metrics.rewind(None)
        seed_everything(settings.seed)
        progress = Progress()
    else:
        try:
            progress = restore(files, engine, optimizer, scaler, run.run_id())
        except IntegrityError as error:
            raise error.at(str(path)) from None
        if (progress.samples != settings.batches.samples_after(progress.step)
                or path.name != f"step-{progress.step:06d}"):
            raise IntegrityError(
                f"{path}: state.json: {progress.step} steps and {progress.samples} samples do not fit this "
                f"checkpoint of a run with {settings.batches.batch_size} samples a step",
                "Start afresh in another --run folder.")
        if not run.metrics.rewind(progress.metrics):
            notify(f"{run.metrics.path}: not as it was at the checkpoint; its curve may have gaps.")
        if progress.micro_batches is not None and plan.take_over(progress.micro_batches):
            notify(f"train.micro_batch_size was {progress.micro_batches.asked or 'auto'} until this "
                   f"checkpoint and is {plan.asked or 'auto'} from here on: the same experiment, but its "
                   "last bits may differ.")
        if progress.step < settings.total_steps:
            notify(f"Resuming {_short(run.path)} at step {progress.step} of {settings.total_steps} "
                   f"(checkpoint of {time.strftime('%H:%M', time.localtime(path.stat().st_mtime))}, whole).")
    if plan.checkpointing:
        engine.checkpoint_gradients(plan.checkpointing, offload=plan.offloading)
    return progress


def _require_finite(engine: Engine, step: int) -> None:
    """A checkpoint never holds NaN: what the last update wrote is looked at before it is kept."""
    for name, parameter in engine.trainable().items():
        if not torch.isfinite(parameter).all():
            raise DivergedError(f"step {step}: {name} became NaN or infinite", LOWER_THE_RATE)


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: allocated on the GPUs together, or resident in this process on a CPU."""
    if device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
