"""An adapter whose base has moved: the message names the command's option, and the option works."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from conftest import RECIPE
from tunesmith import embedded
from tunesmith.errors import IntegrityError, RecipeError, TunesmithError, UsageError


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a finished run, where its base is now): it was trained on a folder that has been moved since."""
    folder = tmp_path_factory.mktemp("moved")
    here = embedded.path_of(embedded.BASE_NAME)
    assert here is not None
    shutil.copytree(here, folder / "old")
    (folder / "my.yaml").write_text(
        RECIPE.replace('"embedded:sprout"', f'"{folder / "old"}"').replace("max_steps: 6", "max_steps: 2")
    )
    tunesmith.train(folder / "my.yaml", run=folder / "run")
    (folder / "old").rename(folder / "new")
    return folder / "run", folder / "new"


ASKED: dict[str, dict[str, Any]] = {"generate": {"prompt": "x", "max_new_tokens": 1}, "merge": {},
                                    "export": {"what": "adapter"}, "evaluate": {}}


def call(verb: str, run: Path, out: Path, **more: Any) -> Any:
    function = getattr(tunesmith, verb)
    words = {"out": out} if "out" in inspect.signature(function).parameters else {}
    return function(run, **words, **ASKED[verb], **more)


@pytest.mark.parametrize("verb", sorted(ASKED))
def test_the_option_of_the_command_is_named(verb: str, moved: tuple[Path, Path], tmp_path: Path) -> None:
    run, _ = moved
    with pytest.raises(RecipeError) as error:
        call(verb, run, tmp_path / "out")
    assert "no such folder" in error.value.message
    assert "--base" in error.value.hint
    assert verb == "evaluate" or "model.base" not in str(error.value), "there is no recipe in this command"
    with pytest.raises(TunesmithError) as error:
        call(verb, run, tmp_path / "out", base=str(tmp_path / "nowhere"))
    assert error.value.message.startswith("--base: ")
    assert "model.base" not in str(error.value)


def test_evaluate_takes_the_base_from_elsewhere(moved: tuple[Path, Path]) -> None:
    run, new = moved
    kept = json.loads((run / "verdict.json").read_text())
    found = tunesmith.evaluate(run, base=str(new))
    assert (found["loss_base"], found["loss_tuned"]) == (kept["loss_base"], kept["loss_tuned"])
    assert tunesmith.evaluate(run, base=str(new), quantization="nf4",
                              device="cpu")["loss_base"] != kept["loss_base"]
    with pytest.raises(UsageError, match="--quantization"):
        tunesmith.evaluate(run, base=str(new), quantization="int9")


def test_evaluate_s_own_advice_can_be_followed(moved: tuple[Path, Path], tmp_path: Path) -> None:
    """Other weights than it was trained on: refused, with --base as the way out, which then works."""
    import safetensors.torch

    run, new = moved
    shutil.copytree(new, tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    safetensors.torch.save_file({name: tensor * 1.5
                                 for name, tensor in safetensors.torch.load_file(path).items()}, path,
                                {"format": "pt"})
    with pytest.raises(IntegrityError, match="--base"):
        tunesmith.evaluate(run, overrides=(f"model.base={tmp_path / 'other'}",))
    assert tunesmith.evaluate(run, base=str(tmp_path / "other"))["rows"] == 12


def test_the_command_line_has_it() -> None:
    from typer.testing import CliRunner

    from tunesmith.cli.main import app

    told = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert all(option in told for option in ("--base", "--quantization", "--device"))


@pytest.mark.parametrize("named", [True, False])
def test_what_a_recipe_calls_its_revision_is_not_advised_to_a_command_without_one(
    named: bool, tmp_path: Path
) -> None:
    """A base is found by `--base`, or by what the adapter names; neither command knows model.revision."""
    from tunesmith.errors import OutOfMemory
    from tunesmith.model.files import locate_base
    from tunesmith.verbs.adapters import base_option

    with pytest.raises(RecipeError) as error, base_option(tmp_path, named=named):
        locate_base("maker/base@main", None)
    assert "revision" not in error.value.hint or named
    assert "model." not in str(error.value)
    assert "--base" in str(error.value)
    with pytest.raises(OutOfMemory) as full, base_option(tmp_path, named=named):
        raise OutOfMemory("x does not fit", "Take a smaller one.", setting="model.base")
    assert full.value.hint == "Take a smaller one.", "another place of the same base is as large"
    with pytest.raises(IntegrityError, match="^model.base: in a file$"), base_option(tmp_path, named=named):
        raise IntegrityError("model.base: in a file")
