"""`tunesmith train`: the main road, from a recipe to a judged adapter. The same call again resumes."""

from __future__ import annotations

import json
import math
import os
import shlex
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DiskError, IntegrityError, Interrupted, Kind, RecipeError, TunesmithError, UsageError
from tunesmith.model.quantization import AS_THEY_ARE, WAYS
from tunesmith.paths import require_utf8
from tunesmith.planning import micro_batch_limits
from tunesmith.recipe import Recipe, differences, dump, load_recipe, parse_recipe
from tunesmith.rundir import RunFolder, check_seal
from tunesmith.rundir.ordinary import require_kinds
from tunesmith.training.signals import StopSignal
from tunesmith.verbs.adapters import hub_name, weight_hashes
from tunesmith.verbs.decide import decide
from tunesmith.verbs.prepare import Prepared, prepare
from tunesmith.verbs.show import RunFacts, Show, Silent

if TYPE_CHECKING:
    from tunesmith.judge import Judgement
    from tunesmith.model.engine import Engine
    from tunesmith.training.step import MicroBatchPlan


def train(recipe: str | os.PathLike[str] | Recipe, *, run: str | os.PathLike[str] | None = None,
          overrides: Sequence[str] = (), show: Show | None = None) -> dict[str, Any]:
    """Train a recipe, judge the adapter against its bare base, write the run folder.

    recipe: a file, or a Recipe. run: the run folder; by default runs/ and the recipe's name.
    overrides: `section.key=value` words. show: is told what happens.
    Returns run, engine, trainable_parameters, all_parameters, steps, train_loss, eval_loss_before, eval_loss_after,
    seconds (of training), tokens_per_second (without padding), peak_memory_bytes, adapter, verdict,
    judgement (all that the judge measured; None when nothing was held out), prompt (one to try it with), and with share.repo
    pushed (where to; None where that failed).
    Raises a TunesmithError for every expected failure; Interrupted after a signal, once the run is saved.
    """
    show = show or Silent()
    if isinstance(recipe, Recipe):
        chosen, path = recipe, Path(run or "runs/recipe")
    else:
        chosen = load_recipe(os.fspath(recipe), overrides)
        path = Path(run) if run is not None else Path("runs") / Path(recipe).stem
    require_utf8(path, "--run")
    folder = RunFolder(path)
    with StopSignal(show.note) as stop:
        _refuse_another(folder, chosen)
        decisions = decide(chosen, show)
        if chosen.train.engine == "auto" and decisions.placement.engine == "hf":
            show.note(f"Engine hf: {decisions.placement.reason}.")
        prepared = prepare(chosen, decisions, show)
        _warn_of_sharing(chosen, show)
        with folder, _going_on(folder):
            _refuse_another(folder, chosen)
            if folder.finished():
                damaged = check_seal(folder.path, cards=False)
                if not damaged:
                    show.note(f"{path} is finished; this is what came out. Another run: --run DIR.")
                    _tell_judged_otherwise(folder, chosen, show)
                    return _shared(chosen, folder, _placed(_read_result(folder), folder), show)
                if not folder.checkpoints().any_whole():
                    raise IntegrityError(f"{damaged[0]}: damaged, and no whole checkpoint is left to end the run from again",
                                         "Put the file back from a copy, or start another run with --run.")
                show.note(f"{damaged[0]}: damaged; the run ends again from its newest whole checkpoint.")
            _open(folder, chosen, prepared, show)
            result = _run(chosen, prepared, folder, stop, show)
        return _shared(chosen, folder, result, show)


def _placed(result: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """A result with its places as they are now: in its file they are relative to the run, which may have been moved."""
    return result | {"run": str(folder.path), "adapter": str(folder.adapter)}


def _read_result(folder: RunFolder) -> dict[str, Any]:
    """What came out of a finished run. Raises IntegrityError where it is not as `_run` writes it."""
    result = folder.read_json(folder.result)
    require_kinds(result, {
        "engine": (str,), "steps": (int,), "trainable_parameters": (int,), "all_parameters": (int,), "seconds": (int, float),
        "judgement": (dict, NoneType), "verdict": (str, NoneType), "prompt": (str,),
    }, str(folder.result), "Start another run with --run.")
    return result


def _tell_judged_otherwise(folder: RunFolder, recipe: Recipe, show: Show) -> None:
    """A finished run is not judged again: say where the recipe asks for another measurement."""
    then = parse_recipe(folder.recipe_text(), name=str(folder.recipe)).judge.model_dump()
    changed = {key: value for key, value in recipe.judge.model_dump().items() if then[key] != value}
    for key in changed:
        show.note(f"judge.{key}: the run was judged with {then[key]!r}, and what follows was measured so.")
    if changed:
        words = " ".join(f"--set judge.{key}={value}" for key, value in changed.items())
        show.note(f"Measure again with: tunesmith evaluate {shlex.quote(str(folder.path))} {words}")


@contextmanager
def _going_on(folder: RunFolder) -> Iterator[None]:
    """A full disk costs no more than the steps since the last checkpoint: say so."""
    try:
        yield
    except DiskError as error:
        if error.kind is Kind.DISK_FULL and folder.checkpoints().paths():
            error.reword(hint="Free some space, then run the same command again: it goes on from the last whole "
                              "checkpoint.")
        raise


def _warn_of_sharing(recipe: Recipe, show: Show) -> None:
    """What will keep the adapter from being pushed is told before it is trained.

    Its note tells how prompts are written, so a prompt that may not leave keeps the adapter here.
    """
    from tunesmith.share.scan import problems

    for problem in problems("tunesmith.json", recipe.data.prompt.encode()):
        show.note(f"data.prompt {problem}: an adapter that was trained with it cannot be pushed.")
    if recipe.share.repo and hub_name(recipe.model.base) is None:
        show.note(f"share.repo: the base is {recipe.model.base}, which nobody else can load. Push the run when it is finished, "
                  f"and name the base's Hub id: tunesmith push RUN {recipe.share.repo} --base ORG/NAME")


def _shared(recipe: Recipe, folder: RunFolder, result: dict[str, Any], show: Show) -> dict[str, Any]:
    """The result, and with share.repo where the adapter was published; a push that fails does not fail the run."""
    from tunesmith.verbs.push import push

    if not recipe.share.repo:
        return result
    try:
        done = push(folder.path, recipe.share.repo, private=recipe.share.private, message=recipe.share.message, keep_card=True,
                    show=show)
    except TunesmithError as error:
        show.note(f"The run is whole, but was not pushed. {error}")
        visible = "" if recipe.share.private else " --public"
        if not isinstance(error, IntegrityError | UsageError):  # the same command would be refused again
            show.note(f"Push it with: tunesmith push {shlex.quote(str(folder.path))} {recipe.share.repo}{visible}")
        return result | {"pushed": None}
    return result | {"pushed": {key: done[key] for key in ("repo", "commit", "url", "private", "changed")}}


def _refuse_another(folder: RunFolder, recipe: Recipe) -> None:
    """Raise RecipeError when the folder holds the run of another recipe, naming each setting that differs."""
    if not os.path.lexists(folder.recipe):
        return
    folder.begun()  # a damaged recipe is damage, not another recipe
    before = parse_recipe(folder.recipe_text(), name=str(folder.recipe))
    if different := differences(before, recipe):
        raise RecipeError(f"{folder.path} is the run of another recipe:\n  " + "\n  ".join(different),
                          "Give this one its own folder with --run, or change the recipe (or --set) back.")


def _run(recipe: Recipe, prepared: Prepared, folder: RunFolder, stop: StopSignal, show: Show) -> dict[str, Any]:
    from tunesmith.judge import judge, mean_validation_loss
    from tunesmith.model.build import build_for_training
    from tunesmith.model.lora import LoraSettings
    from tunesmith.training.loop import peak_memory_bytes
    from tunesmith.training.loop import train as train_loop

    _tell_busy(prepared.decisions.placement.device, show)
    show.stage(f"loading {recipe.model.base} in {recipe.model.quantization}")
    engine = build_for_training(
        prepared.base, prepared.tokenizer, prepared.decisions.placement, seed=recipe.train.seed,
        lora=LoraSettings(recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout, recipe.lora.target_modules))
    settings = _settings(recipe, len(prepared.data.train))
    plan = _micro_batches(recipe, prepared)
    _show_facts(recipe, prepared, engine, settings.total_steps, show)
    validation = prepared.data.validation

    with stop.deferred():
        progress = train_loop(engine, prepared.data.train, settings, folder, plan, stop, notify=show.note,
                              validation_loss=(lambda: mean_validation_loss(engine, validation)) if validation else None,
                              on_step=lambda record: show.step(record, settings.total_steps))
    if stop.number is not None:
        raise Interrupted(stop.number, "Stopped after the last step, before judging.", "The same command judges it.")

    peak_bytes = peak_memory_bytes(engine.device)
    judgement = None
    if validation:
        judgement = judge(engine, validation, max_new_tokens=recipe.judge.max_new_tokens, samples=recipe.judge.samples,
                          stop_rows=recipe.judge.stop_rows, matters=recipe.judge.matters, on_stage=show.stage)
    trainable, everything = engine.parameter_counts()
    metrics = folder.metrics.read()
    result = {
        "run": ".", "engine": engine.name, "trainable_parameters": trainable, "all_parameters": everything,
        "steps": progress.step, "train_loss": statistics.fmean(m["loss"] for m in metrics) if metrics else None,
        "eval_loss_before": judgement.loss_base if judgement else None,
        "eval_loss_after": judgement.loss_tuned if judgement else None,
        "seconds": progress.seconds, "tokens_per_second": progress.tokens / progress.seconds,
        "kept": engine.kept(), "peak_memory_bytes": peak_bytes, "adapter": folder.adapter.name,
        "verdict": judgement.verdict if judgement else None, "judgement": judgement.summary() if judgement else None,
        "prompt": _example(recipe, judgement),
    }
    _write_results(recipe, folder, engine, result, judgement)
    return _placed(result, folder)


def _tell_busy(device: str, show: Show) -> None:
    """Say where other processes take the cores that a run on the CPU wants: its threads then wait for each other."""
    import torch

    if device.startswith("cuda") or not hasattr(os, "getloadavg"):
        return
    cores, load = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, os.getloadavg()[0]
    if load > max(0.75 * cores, 1.0) and torch.get_num_threads() > 1:
        show.note(f"This machine is busy (load {load:.1f} on {cores} cores): steps may take several times as long. "
                  "Fewer threads lose less: --threads 1")


def _example(recipe: Recipe, judgement: Judgement | None) -> str:
    """A prompt to try the adapter with: a short held-out one, else the template with the columns' names in their places."""
    from tunesmith.share.note import example_prompt
    from tunesmith.share.scan import problems

    if problems("", recipe.data.prompt.encode()):
        return "..."
    short = [sample.prompt for sample in (judgement.samples if judgement else []) if len(sample.prompt) <= 110]
    if recipe.data.messages is None and short:
        return short[0]
    return example_prompt({"prompt": recipe.data.prompt, "messages": recipe.data.messages is not None})


def _write_results(recipe: Recipe, folder: RunFolder, engine: Engine, result: dict[str, Any], judgement: Any) -> None:
    """Adapter, verdict, samples, result and report; the seal over everything comes last."""
    from dataclasses import asdict

    from tunesmith.judge.report import write_report  # late: it imports the library of charts
    from tunesmith.rundir import write_atomically
    from tunesmith.share import write_adapter_folder

    summary = judgement.summary() if judgement else None
    write_adapter_folder(folder.adapter, engine, base_name=recipe.model.base, revision=engine.base.pinned,
                         prompt=recipe.data.prompt, messages=recipe.data.messages is not None, judgement=summary, result=result,
                         recipe=recipe.model_dump(mode="json"),
                         base_weights=weight_hashes(folder.read_json(folder.manifest)["base"]["files"]))
    folder.write_json(folder.verdict, summary or {"verdict": None, "reason": "nothing was held out"})
    lines = [json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in (judgement.samples if judgement else [])]
    write_atomically(folder.samples, "".join(lines))
    folder.write_json(folder.result, result)
    write_report(folder, manifest=folder.read_json(folder.manifest), result=result, judgement=judgement,
                 recipe_text=folder.recipe_text())
    folder.finish()


def _open(folder: RunFolder, recipe: Recipe, prepared: Prepared, show: Show) -> None:
    """Write the recipe and manifest of a new run, or check that an old one starts from the same."""
    from tunesmith.rundir import write_atomically
    from tunesmith.verbs.manifest import build_manifest, check_same, sampled

    manifest = build_manifest(recipe, prepared)
    if folder.begun():
        differing = check_same(folder.read_json(folder.manifest), manifest, str(folder.path))
        if sampled(manifest):
            show.note("The base's weights are larger than 2 GiB: they were compared by size and samples, not byte by byte.")
        if differing:
            show.note(f"Not the same as when the run began, so the last bits may differ: {', '.join(differing)}.")
        if folder.recipe_text() != dump(recipe):  # only what does not make it another run
            folder.replace_recipe(dump(recipe))
        return
    # A checkpoint is the adapter and two moments in fp32; one more than is kept exists while it is written.
    parameters = prepared.decisions.counts.trainable
    folder.require_space(12 * parameters * (recipe.train.save_total_limit + 1) + 4 * parameters + (16 << 20))
    write_atomically(folder.recipe, dump(recipe))  # first: it is what makes a folder a run
    folder.write_json(folder.manifest, manifest)
    folder.begin()


def _settings(recipe: Recipe, rows: int) -> Any:
    from tunesmith.training.loop import TrainSettings

    chosen = recipe.train
    steps = chosen.max_steps or max(1, math.ceil((chosen.num_epochs or 1) * rows / chosen.batch_size))
    return TrainSettings(
        total_steps=steps, batch_size=chosen.batch_size, learning_rate=chosen.learning_rate,
        lr_scheduler=chosen.lr_scheduler, warmup_steps=chosen.warmup_steps, weight_decay=chosen.weight_decay,
        max_grad_norm=chosen.max_grad_norm, seed=chosen.seed, save_steps=chosen.save_steps,
        save_total_limit=chosen.save_total_limit, eval_steps=chosen.eval_steps)


def _micro_batches(recipe: Recipe, prepared: Prepared) -> MicroBatchPlan:
    """How steps are split into micro-batches. A GPU that still runs out splits smaller as it goes."""
    from tunesmith.training.step import MicroBatchPlan

    decided = prepared.decisions
    placement = decided.placement
    limits = micro_batch_limits(
        decided.config, engine=placement.engine, budget_bytes=decided.activation_budget_bytes,
        value_bytes=placement.dtype.itemsize, longest=max(len(row.ids) for row in prepared.data.train),
        on_gpu=placement.device.startswith("cuda"), micro_batch_size=recipe.train.micro_batch_size,
        gradient_checkpointing=recipe.train.gradient_checkpointing)
    return MicroBatchPlan(limits.rows, limits.max_tokens, limits.overhead_tokens, checkpointing=limits.checkpointing,
                          may_checkpoint=limits.may_checkpoint, selective=placement.engine == "native",
                          may_offload=limits.may_offload, asked=limits.rows)


def _show_facts(recipe: Recipe, prepared: Prepared, engine: Engine, steps: int, show: Show) -> None:
    import torch

    from tunesmith.model.base_config import DEQUANTIZED, own_quantization

    placement, kept, counts = prepared.decisions.placement, engine.kept(), prepared.data.counts
    trainable, everything = engine.parameter_counts()
    on_gpu = engine.device.type == "cuda"
    show.facts(RunFacts(
        base=recipe.model.base, base_parameters=everything - trainable, quantization=placement.quantization, kept=kept,
        train_rows=counts["train"], validation_rows=counts["validation"], rank=recipe.lora.r,
        targets=tuple(sorted({name.split(".lora_")[0].rpartition(".")[2] for name in engine.trainable()})),
        trainable_parameters=trainable, engine=placement.engine, dtype=placement.dtype_name, matmul=placement.matmul,
        gpu=torch.cuda.get_device_name(engine.device) if on_gpu else None, threads=torch.get_num_threads(), steps=steps,
        batch_size=recipe.train.batch_size))
    for note in engine.notes:
        show.note(note)
    own = own_quantization(prepared.base.config)
    if own in DEQUANTIZED:
        show.note(f"The checkpoint is kept in {own}; its weights were turned back to {placement.dtype_name}.")
    if WAYS[placement.quantization].quantised and not kept.get(placement.quantization):
        show.note(f"Nothing of this base is kept in {placement.quantization}: its layers are of kinds that bitsandbytes "
                  f"does not replace. It takes up as much memory as with model.quantization: {AS_THEY_ARE}.")
    if recipe.train.warmup_steps >= steps:
        show.note(f"train.warmup_steps is {recipe.train.warmup_steps}, the run has {steps}: "
                  "the learning rate never reaches its peak.")
