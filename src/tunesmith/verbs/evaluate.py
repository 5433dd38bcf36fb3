"""`tunesmith evaluate`: an adapter against its bare base on held-out rows."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.dataset import read_text
from tunesmith.errors import DataError, RecipeError, TunesmithError, UsageError
from tunesmith.recipe import Recipe, dump, load_recipe
from tunesmith.rundir.evaluations import Evaluation, keep_evaluation
from tunesmith.rundir.result import JudgementSummary
from tunesmith.verbs.adapters import (
    ANOTHER_PLACE,
    AdapterFiles,
    base_option,
    find_adapter,
    require_base,
    require_choices,
)
from tunesmith.verbs.decide import decide
from tunesmith.verbs.prepare import prepare
from tunesmith.verbs.show import Show, Silent

if TYPE_CHECKING:
    from tunesmith.model.placement import Placement


def evaluate(target: str | os.PathLike[str], *, recipe: str | os.PathLike[str] | None = None,
             base: str | None = None, quantization: str | None = None, device: str | None = None,
             overrides: tuple[str, ...] = (), show: Show | None = None) -> dict[str, Any]:
    """Judge a run, or any PEFT LoRA adapter, in a folder or by Hub id, on the recipe's held-out rows.

    recipe: names base, data and judge; needed for an adapter that does not stand in its run folder. base:
    another place of the base than the recipe's. quantization, device: as in a recipe, in place of what it
    says. Returns loss_base, loss_tuned (nats a token), stop_rate_base, stop_rate_tuned, verdict, interval (of
    tuned - base, 95%), rows, modules (how many the adapter applies to), the samples, and kept: the folder in
    the run where all this is kept (None for an adapter without its run). Raises UsageError, DataError
    (nothing is held out), IntegrityError, RecipeError, EnvironmentFault.
    """
    show = show or Silent()
    require_choices(quantization=quantization, device=device or "auto")
    adapter = find_adapter(os.fspath(target), show)
    path = recipe or adapter.recipe
    if path is None:
        raise UsageError(f"{os.fspath(target)}: nothing says on which rows to judge it",
                         "Name a recipe: tunesmith evaluate ADAPTER --recipe RECIPE")
    chosen = load_recipe(os.fspath(path), overrides)
    overridden: dict[str, str | None] = {"base": base, "quantization": quantization, "device": device}
    overridden = {name: value for name, value in overridden.items() if value is not None}
    if base is not None:
        overridden["revision"] = None
    chosen = chosen.model_copy(update={"model": chosen.model.model_copy(update=overridden)})
    if not chosen.data.validation:
        raise DataError("data.validation is 0: nothing is held out to judge on",
                        "For example: --set data.validation=0.05, "
                        "if the adapter was not trained on those rows.")
    _require_unseen(adapter, chosen, show)
    from tunesmith.model.lora import read_adapter_config

    named_base = read_adapter_config(adapter.folder).get("base_model_name_or_path")
    if base is None and named_base and named_base != chosen.model.base:
        show.note(f"The adapter names the base {named_base}; the recipe says {chosen.model.base}.")
    try:
        with base_option(adapter.folder, named=True) if base is not None else nullcontext():
            prepared = prepare(chosen, decide(chosen, show, adapter=adapter.folder), show, training=False)
    except RecipeError as error:
        if base is None and error.setting == "model.base":
            error.reword(hint=f"{error.hint} {ANOTHER_PLACE}".strip())
        raise
    require_base(adapter, prepared.base, show, named=base is not None)
    from tunesmith.judge import judge
    from tunesmith.model.build import build_with_adapter, count_modules

    show.stage(f"loading {chosen.model.base} in {chosen.model.quantization}")
    placement = prepared.decisions.placement
    engine = build_with_adapter(prepared.base, prepared.tokenizer, adapter.folder, placement)
    for note in engine.notes:
        show.note(note)
    judgement = judge(engine, prepared.data.validation, max_new_tokens=chosen.judge.max_new_tokens,
                      samples=chosen.judge.samples, stop_rows=chosen.judge.stop_rows,
                      matters=chosen.judge.matters, on_stage=show.stage)
    modules, samples = count_modules(engine), [asdict(sample) for sample in judgement.samples]
    kept = _keep(adapter.run, chosen, placement, judgement.summary(), modules, samples, show)
    return {**judgement.summary().model_dump(mode="json"), "modules": modules, "samples": samples,
            "kept": str(kept) if kept else None}


def _keep(run: Path | None, recipe: Recipe, placement: Placement, judgement: JudgementSummary, modules: int,
          samples: list[dict[str, Any]], show: Show) -> Path | None:
    """The folder in the run where this is kept; None without a run, or (told) where it cannot be written."""
    if run is None:
        return None
    evaluation = Evaluation(when=time.strftime("%Y-%m-%d %H:%M:%S %z"), engine=placement.engine,
                            device=placement.device, dtype=placement.dtype_name,
                            quantization=placement.quantization, modules=modules, judgement=judgement)
    try:
        return keep_evaluation(run, evaluation, dump(recipe), samples)
    except TunesmithError as error:
        show.note(f"What follows was not kept in the run: {error.message}")
        return None


def _require_unseen(adapter: AdapterFiles, recipe: Recipe, show: Show) -> None:
    """Raise DataError where data other than the run's own holds out rows that the run was trained on."""
    if adapter.recipe is None:
        return
    run_recipe = load_recipe(os.fspath(adapter.recipe))
    if run_recipe.data == recipe.data:
        return
    templates = {name: getattr(run_recipe.data, name)
                 for name in ("prompt", "completion", "messages", "tools", "chat")}
    try:
        trained = {example.content_hash for example in read_text(run_recipe.data, show.note).train}
        judged = read_text(recipe.data.model_copy(update=templates), show.note).validation
    except TunesmithError as error:
        show.note("Whether the run was trained on some of the rows that are judged on is not known: "
                  f"{error.message}")
        return
    seen = sum(example.content_hash in trained for example in judged)
    if seen:
        raise DataError(f"{seen} of the {len(judged)} rows to judge on are among those that the run was "
                        "trained on, where a low loss shows nothing",
                        "Name rows that it has not seen (--set data.validation=FILE), "
                        "or leave data as the run has it.",
                        setting="data.validation")
