"""`tunesmith evaluate`: an adapter against its bare base on held-out rows."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from tunesmith.errors import DataError, UsageError
from tunesmith.recipe import load_recipe
from tunesmith.verbs.adapters import find_adapter, require_base
from tunesmith.verbs.prepare import prepare
from tunesmith.verbs.show import Show, Silent


def evaluate(target: str | os.PathLike[str], *, recipe: str | os.PathLike[str] | None = None,
             overrides: tuple[str, ...] = (), show: Show | None = None) -> dict[str, Any]:
    """Judge a run, or any PEFT LoRA adapter, in a folder or by Hub id, on the recipe's held-out rows.

    recipe: names base, data and judge; needed for an adapter that does not stand in its run folder.
    Returns loss_base, loss_tuned (nats a token), stop_rate_base, stop_rate_tuned, verdict, interval (of tuned - base,
    95%), rows, modules (how many the adapter sits on), and the samples.
    Raises UsageError, DataError (nothing is held out), IntegrityError, RecipeError, EnvironmentFault.
    """
    show = show or Silent()
    found = find_adapter(os.fspath(target), show)
    path = recipe or found.recipe
    if path is None:
        raise UsageError(f"{os.fspath(target)}: nothing says on which rows to judge it",
                         "Name a recipe: tunesmith evaluate ADAPTER --recipe RECIPE")
    chosen = load_recipe(os.fspath(path), overrides)
    if not chosen.data.validation:
        raise DataError("data.validation is 0: nothing is held out to judge on",
                        "For example: --set data.validation=0.05, if the adapter was not trained on those rows.")
    from tunesmith.model.lora import read_adapter_config

    wants = read_adapter_config(found.folder).get("base_model_name_or_path")
    if wants and wants != chosen.model.base:
        show.note(f"The adapter names the base {wants}; the recipe says {chosen.model.base}.")
    prepared = prepare(chosen, show)
    require_base(found, prepared.base, show, named=False)
    from tunesmith.judge import judge
    from tunesmith.model.build import build_with_adapter, count_modules

    show.stage(f"loading {chosen.model.base} in {chosen.model.quantization}")
    engine = build_with_adapter(prepared.base, prepared.tokenizer, found.folder, engine=prepared.engine,
                                quantization=chosen.model.quantization,
                                dtype=chosen.model.dtype, device=chosen.model.device)
    judgement = judge(engine, prepared.data.held_out, max_new_tokens=chosen.judge.max_new_tokens,
                      samples=chosen.judge.samples, stop_rows=chosen.judge.stop_rows, matters=chosen.judge.matters,
                      on_stage=show.stage)
    return {**judgement.summary(), "modules": count_modules(engine),
            "samples": [asdict(sample) for sample in judgement.samples]}
