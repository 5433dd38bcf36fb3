"""The end of a run: adapter, verdict, result and report are written, sealed, and pushed if so asked."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tunesmith.errors import IntegrityError, TunesmithError, UsageError
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunFolder, write_atomically
from tunesmith.rundir.manifest import read_manifest
from tunesmith.rundir.result import RunResult
from tunesmith.rundir.schema import as_json, read_as
from tunesmith.verbs.adapters import weight_hashes
from tunesmith.verbs.show import Show

if TYPE_CHECKING:
    from tunesmith.data import Dataset
    from tunesmith.judge import Judgement
    from tunesmith.model.engine import Engine
    from tunesmith.share.adapter import Asked


def with_paths(result: RunResult, folder: RunFolder) -> dict[str, Any]:
    """A result with paths as they are now: in its file they are relative to the run, which may move."""
    return result.model_dump(mode="json") | {"run": str(folder.path), "adapter": str(folder.adapter)}


def read_result(folder: RunFolder) -> RunResult:
    """What came out of a finished run. Raises IntegrityError where it is not as this program writes it."""
    return read_as(RunResult, folder.result, "Start another run with --run.")


def write_results(recipe: Recipe, folder: RunFolder, engine: Engine, result: RunResult,
                  judgement: Judgement | None, asked: Asked) -> None:
    """Adapter, verdict, samples, result and report; the seal over everything comes last."""
    from tunesmith.judge.report import write_report  # late: it imports the library of charts
    from tunesmith.share import write_adapter_folder

    manifest = read_manifest(folder.path)
    write_adapter_folder(folder.adapter, engine, base_name=recipe.model.base, revision=engine.base.pinned,
                         asked=asked, result=result,
                         recipe=recipe.model_dump(mode="json"),
                         base_weights=weight_hashes(manifest.base.files))
    verdict = result.judgement.model_dump(mode="json") if result.judgement else None
    folder.write_json(folder.verdict, verdict or {"verdict": None, "reason": "nothing was held out"})
    lines = [json.dumps(asdict(sample), ensure_ascii=False) + "\n"
             for sample in (judgement.samples if judgement else [])]
    write_atomically(folder.samples, "".join(lines))
    write_atomically(folder.result, as_json(result))
    write_report(folder, manifest=manifest, result=result, judgement=judgement,
                 recipe_text=folder.recipe_text())
    folder.finish()


def how_asked(recipe: Recipe, data: Dataset) -> Asked:
    """How the model was asked in training, for whoever asks it later."""
    from tunesmith.share.adapter import Asked

    return Asked(recipe.data.prompt, data.conversations,
                 data.remarks.generation_kwargs(recipe.data.template_kwargs), recipe.data.special_tokens)


def prompt_to_try(recipe: Recipe, asked: Asked, judgement: Judgement | None) -> str:
    """A prompt to try the adapter with: a short held-out one, else the template with its columns' names."""
    from tunesmith.share.metadata import example_prompt
    from tunesmith.share.scan import problems

    if problems("", recipe.data.prompt.encode()):
        return "..."
    short = [sample.prompt for sample in (judgement.samples if judgement else [])
             if len(sample.prompt) <= 110]
    if not asked.messages and short:
        return short[0]
    return example_prompt({"prompt": recipe.data.prompt, "messages": asked.messages})


def push_if_asked(recipe: Recipe, folder: RunFolder, result: dict[str, Any], show: Show) -> dict[str, Any]:
    """The result, and with share.repo where the adapter went; a failed push does not fail the run."""
    from tunesmith.verbs.push import push

    if not recipe.share.repo:
        return result
    try:
        done = push(folder.path, recipe.share.repo, private=recipe.share.private,
                    message=recipe.share.message, keep_card=True, show=show)
    except TunesmithError as error:
        show.note(f"The run is whole, but was not pushed. {error}")
        visible = "" if recipe.share.private else " --public"
        if not isinstance(error, IntegrityError | UsageError):  # the same command would be refused again
            show.note("Push it with: tunesmith push "
                      f"{shlex.quote(str(folder.path))} {recipe.share.repo}{visible}")
        return result | {"pushed": None}
    return result | {"pushed": {key: done[key] for key in ("repo", "commit", "url", "private", "changed")}}
