"""`tunesmith train`: the main road, from a recipe to a judged adapter. The same call again resumes."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.token_rows import lengths_of
from tunesmith.errors import IntegrityError, Interrupted
from tunesmith.paths import require_utf8
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.rundir import RunFolder, check_seal
from tunesmith.rundir.result import RunResult
from tunesmith.training.signals import StopSignal
from tunesmith.verbs.begin import (
    advise_to_resume,
    open_run,
    refuse_another,
    tell_changed,
    tell_judged_otherwise,
    warn_of_sharing,
)
from tunesmith.verbs.decide import decide
from tunesmith.verbs.facts import tell_busy, tell_facts
from tunesmith.verbs.finish import (
    how_asked,
    prompt_to_try,
    push_if_asked,
    read_result,
    with_paths,
    write_results,
)
from tunesmith.verbs.prepare import Prepared, prepare
from tunesmith.verbs.show import Show, Silent


def train(recipe: str | os.PathLike[str] | Recipe, *, run: str | os.PathLike[str] | None = None,
          overrides: Sequence[str] = (), show: Show | None = None) -> dict[str, Any]:
    """Train a recipe, judge the adapter against its bare base, write the run folder.

    recipe: a file, or a Recipe. run: the run folder; by default runs/ and the recipe's name. overrides:
    `section.key=value` words. show: is told what happens. Returns run, engine, trainable_parameters,
    all_parameters, steps, train_loss, eval_loss_before, eval_loss_after, seconds (of training),
    tokens_per_second (without padding), peak_memory_bytes, adapter, verdict, judgement (all that the judge
    measured; None when nothing was held out), prompt (one to try it with), and with share.repo pushed (where
    to; None where that failed). Raises a TunesmithError for every expected failure; Interrupted after a
    signal, once the run is saved.
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
        refuse_another(folder, chosen)
        decisions = decide(chosen, show)
        if chosen.train.engine == "auto" and decisions.placement.engine == "hf":
            show.note(f"Engine hf: {decisions.placement.reason}.")
        prepared = prepare(chosen, decisions, show, check=stop.check)
        warn_of_sharing(chosen, show)
        with folder, advise_to_resume(folder):
            refuse_another(folder, chosen)
            if folder.finished():
                damaged = check_seal(folder.path, cards=False)
                if not damaged:
                    show.note(f"{path} is finished; this is what came out. Another run: --run DIR.")
                    tell_judged_otherwise(folder, chosen, show)
                    tell_changed(folder, chosen, prepared, show)
                    return push_if_asked(chosen, folder, with_paths(read_result(folder), folder), show)
                if not folder.checkpoints().any_whole():
                    raise IntegrityError(f"{damaged[0]}: damaged, "
                                         "and no whole checkpoint is left to end the run from again",
                                         "Put the file back from a copy, or start another run with --run.")
                show.note(f"{damaged[0]}: damaged; the run ends again from its newest whole checkpoint.")
            open_run(folder, chosen, prepared, show)
            result = _run(chosen, prepared, folder, stop, show)
        return push_if_asked(chosen, folder, result, show)


def _run(recipe: Recipe, prepared: Prepared, folder: RunFolder, stop: StopSignal,
         show: Show) -> dict[str, Any]:
    from tunesmith.judge import judge, mean_validation_loss
    from tunesmith.model.build import build_for_training
    from tunesmith.model.lora import LoraSettings
    from tunesmith.training.loop import TrainSettings, peak_memory_bytes
    from tunesmith.training.loop import train as train_loop
    from tunesmith.training.step import MicroBatchPlan

    decisions = prepared.decisions
    tell_busy(decisions.placement.device, show)
    show.stage(f"loading {recipe.model.base} in {recipe.model.quantization}")
    engine = build_for_training(
        prepared.base, prepared.tokenizer, decisions.placement, seed=recipe.train.seed,
        lora=LoraSettings(recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout, recipe.lora.target_modules))
    settings = TrainSettings.of(recipe.train, rows=len(prepared.data.train))
    longest = max(lengths_of(prepared.data.train))
    plan = MicroBatchPlan.of(decisions.micro_batches(longest), selective=engine.selective)
    tell_facts(recipe, prepared, engine, settings.total_steps, show)
    validation = prepared.data.validation

    with stop.deferred():
        progress = train_loop(engine, prepared.data.train, settings, folder, plan, stop, notify=show.note,
                              validation_loss=(lambda: mean_validation_loss(engine, validation)) if validation
                              else None, on_step=lambda record: show.step(record, settings.total_steps))
    if stop.number is not None:
        raise Interrupted(stop.number, "Stopped after the last step, before judging.",
                          "The same command judges it.")

    peak_bytes = peak_memory_bytes(engine.device)
    judgement = None
    if validation:
        judgement = judge(engine, validation, max_new_tokens=recipe.judge.max_new_tokens,
                          samples=recipe.judge.samples, stop_rows=recipe.judge.stop_rows,
                          matters=recipe.judge.matters, on_stage=show.stage)
    trainable, everything = engine.parameter_counts()
    asked = how_asked(recipe, prepared.data)
    metrics = folder.metrics.read()  # of earlier processes of this run, too
    result = RunResult(
        engine=engine.name, trainable_parameters=trainable, all_parameters=everything, steps=progress.step,
        train_loss=statistics.fmean(each["loss"] for each in metrics) if metrics else None,
        eval_loss_before=judgement.loss_base if judgement else None,
        eval_loss_after=judgement.loss_tuned if judgement else None, seconds=progress.seconds,
        tokens_per_second=progress.tokens / progress.seconds, kept=engine.values_by_format(),
        peak_memory_bytes=max([peak_bytes, *(each["peak_memory_bytes"] for each in metrics)]),
        verdict=judgement.verdict if judgement else None,
        judgement=judgement.summary() if judgement else None, prompt=prompt_to_try(recipe, asked, judgement))
    write_results(recipe, folder, engine, result, judgement, asked)
    return with_paths(result, folder)
