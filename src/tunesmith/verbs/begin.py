"""The beginning of a run: whose folder it is, what it starts from, what is said before it is trained."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.errors import DiskError, Kind, RecipeError
from tunesmith.recipe import Recipe, differences, dump, parse_recipe
from tunesmith.rundir import RunFolder, write_atomically
from tunesmith.rundir.manifest import read_manifest
from tunesmith.rundir.schema import as_json
from tunesmith.verbs.adapters import hub_name
from tunesmith.verbs.manifest import build_manifest, check_same
from tunesmith.verbs.prepare import Prepared
from tunesmith.verbs.show import Show


def refuse_another(folder: RunFolder, recipe: Recipe) -> None:
    """Raise RecipeError when the folder holds the run of another recipe, naming each setting that differs."""
    if not os.path.lexists(folder.recipe):
        return
    folder.begun()  # a damaged recipe is damage, not another recipe
    before = parse_recipe(folder.recipe_text(), name=str(folder.recipe))
    if different := differences(before, recipe):
        raise RecipeError(f"{folder.path} is the run of another recipe:\n  " + "\n  ".join(different),
                          "Give this one its own folder with --run, or change the recipe (or --set) back.")


def open_run(folder: RunFolder, recipe: Recipe, prepared: Prepared, show: Show) -> None:
    """Write the recipe and manifest of a new run, or check that an old one starts from the same."""
    manifest = build_manifest(recipe, prepared)
    if folder.begun():
        differing = check_same(read_manifest(folder.path), manifest, str(folder.path))
        if manifest.base.sampled:
            show.note("The base's weights are larger than 2 GiB: "
                      "they were compared by size and samples, not byte by byte.")
        if differing:
            show.note("Not the same as when the run began, so the last bits may differ: "
                      f"{', '.join(differing)}.")
        if folder.recipe_text() != dump(recipe):  # only what does not make it another run
            folder.replace_recipe(dump(recipe))
        folder.running()
        return
    # A checkpoint is the adapter and two moments in fp32; one more than is kept exists while it is written.
    parameters = prepared.decisions.counts.trainable
    folder.require_space(12 * parameters * (recipe.train.save_total_limit + 1) + 4 * parameters + (16 << 20))
    write_atomically(folder.recipe, dump(recipe))  # first: it is what makes a folder a run
    write_atomically(folder.manifest, as_json(manifest))
    folder.begin()
    folder.running()


@contextmanager
def advise_to_resume(folder: RunFolder) -> Iterator[None]:
    """A full disk costs no more than the steps since the last checkpoint: say so."""
    try:
        yield
    except DiskError as error:
        if error.kind is Kind.DISK_FULL and folder.checkpoints().paths():
            error.reword(hint="Free some space, then run the same command again: "
                              "it goes on from the last whole checkpoint.")
        raise


def tell_judged_otherwise(folder: RunFolder, recipe: Recipe, show: Show) -> None:
    """A finished run is not judged again: say where the recipe asks for another measurement."""
    judged_with = parse_recipe(folder.recipe_text(), name=str(folder.recipe)).judge.model_dump()
    changed = {key: value for key, value in recipe.judge.model_dump().items() if judged_with[key] != value}
    for key in changed:
        show.note(f"judge.{key}: the run was judged with {judged_with[key]!r}, "
                  "and what follows was measured so.")
    if changed:
        options = " ".join(f"--set judge.{key}={value}" for key, value in changed.items())
        show.note(f"Measure again with: tunesmith evaluate {shlex.quote(str(folder.path))} {options}")


def tell_changed(folder: RunFolder, recipe: Recipe, prepared: Prepared, show: Show) -> None:
    """A finished run is not trained again: say where its base or data are no longer what it was trained
    on.
    """
    try:
        check_same(read_manifest(folder.path), build_manifest(recipe, prepared), str(folder.path))
    except RecipeError as error:
        show.note(f"{error.problem}. What follows is from before. Train again in another folder: --run DIR.")


def warn_of_sharing(recipe: Recipe, show: Show) -> None:
    """What will keep the adapter from being pushed is told before it is trained.

    Its metadata tells how prompts are written, so a prompt that may not leave keeps the adapter here.
    """
    from tunesmith.share.scan import problems

    for problem in problems("tunesmith.json", recipe.data.prompt.encode()):
        show.note(f"data.prompt {problem}: an adapter that was trained with it cannot be pushed.")
    if recipe.share.repo and hub_name(recipe.model.base) is None:
        show.note(f"share.repo: the base is {recipe.model.base}, which nobody else can load. Push the run "
                  "when it is finished, and name the base's Hub id: "
                  f"tunesmith push RUN {recipe.share.repo} --base ORG/NAME")
