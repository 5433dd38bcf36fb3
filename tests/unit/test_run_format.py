"""The format of a run folder: another is refused by its name; only what this program writes is taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_files import begun, manifest

import tunesmith as api
from conftest import RECIPE
from tunesmith.errors import IntegrityError, RecipeError
from tunesmith.recipe import parse_recipe
from tunesmith.rundir import SEAL_NAME, RunFolder, read_seal, seal, verify_path
from tunesmith.rundir.manifest import RUN_FORMAT, Manifest, of_this_format, read_manifest, require_format
from tunesmith.rundir.schema import as_json
from tunesmith.verbs.adapters import find_adapter
from tunesmith.verbs.manifest import check_same
from tunesmith.verbs.show import Silent

SHORT = parse_recipe(RECIPE, overrides=["train.max_steps=2", "judge.stop_rows=1", "judge.max_new_tokens=2"])
#: What a manifest may say of its format, and how that run folder is called.
OTHERS: list[tuple[Any, str]] = [
    (RUN_FORMAT - 1, f"a run folder of format {RUN_FORMAT - 1};"),
    (RUN_FORMAT + 1, f"a run folder of format {RUN_FORMAT + 1};"), (None, "a run folder of format None;"),
    (True, "a run folder of format True;"), (str(RUN_FORMAT), "a run folder of format '"),
    (float(RUN_FORMAT), f"a run folder of format {RUN_FORMAT}.0;"), ([], r"a run folder of format \[\];"),
    (10**400, "a run folder of format 1"), ({"a": "b" * 9999}, "a run folder of format {'a': 'b")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "small"
    api.train(SHORT, run=run)
    return run


def rewrite(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest, and the seal with it."""
    found = json.loads((run / "manifest.json").read_text())
    change(found)
    (run / "manifest.json").write_text(json.dumps(found))
    seal(run, read_seal(run))


def files_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()
            and path.name != ".lock"}


@pytest.mark.parametrize(("number", "name"), OTHERS, ids=[str(number)[:12] for number, _ in OTHERS])
def test_a_run_of_another_format_is_refused_by_its_name(finished: Path, tmp_path: Path, number: Any,
                                                        name: str) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    rewrite(run, lambda found: found.update(format=number))
    before = files_of(run)
    for verb in (lambda: api.train(SHORT, run=run), lambda: api.evaluate(run), lambda: api.verify(run),
                 lambda: api.push(run, "me/it", base="org/base",
                                  dry_run=True), lambda: api.generate(run, prompt="a")):
        with pytest.raises(IntegrityError,
                           match=f"^{run}: {name}.* this version of tunesmith reads "
                                 f"and writes format {RUN_FORMAT}\n") as caught:
            verb()
        assert caught.value.exit_code == 9
        assert (
            f"another folder with --run. Its adapter works by itself: {run / 'adapter'}" in caught.value.hint
        )
        assert len(str(caught.value)) < 1000
    assert files_of(run) == before


def test_a_run_without_a_format_is_refused_and_its_adapter_works(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    rewrite(run, lambda found: (found.pop("format"), found.update(versions={"tunesmith": "0.0.9"})))
    with pytest.raises(IntegrityError, match="a run folder without a format number;") as caught:
        api.train(SHORT, run=run)
    assert "the version of tunesmith that wrote it (0.0.9)" in caught.value.hint
    assert find_adapter(str(finished / "adapter"), Silent()).run == finished
    assert find_adapter(str(run / "adapter"), Silent()).run is None
    assert api.generate(run / "adapter", prompt="a", max_new_tokens=1)
    with pytest.raises(api.TunesmithError, match="nothing says on which rows to judge it"):
        api.evaluate(run / "adapter")


def test_a_damaged_manifest_is_damage_whatever_it_says_of_its_format(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    run.manifest.write_text(as_json(manifest()).replace(f'"format": {RUN_FORMAT}', '"format": 9'))
    with pytest.raises(IntegrityError, match=r"manifest.json: damaged, so nothing says"):
        run.begun()
    assert verify_path(run.path).damaged == [run.manifest]
    (run.path / SEAL_NAME).write_text("{}")
    run.checkpoints().save(2, {"state.json": b"{}"})
    assert run.path / SEAL_NAME in verify_path(run.path).damaged


def test_a_folder_that_is_no_run_has_no_format(tmp_path: Path) -> None:
    require_format(tmp_path)
    assert not of_this_format(tmp_path)
    assert RunFolder(tmp_path).run_id() is None
    with pytest.raises(IntegrityError, match=r"manifest.json: missing"):
        read_manifest(tmp_path)


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    run, wanted = RunFolder(tmp_path), manifest(seed=-5, threads=0, machine="é 名 \u2028 \x00", versions={})
    run.manifest.write_text(as_json(wanted), encoding="utf-8")
    assert read_manifest(run.path) == wanted
    assert run.run_id() == "a"


def places(value: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a JSON object, and of those in it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*prefix, key)
            yield from places(inner, (*prefix, key))


WHOLE = json.loads(as_json(manifest()))


@pytest.mark.parametrize("place", [place for place in places(WHOLE) if len(place) == 1
                                   or not {"files", "versions"} & set(place[:-1])],
                         ids=".".join)
def test_each_key_is_wanted_and_no_other(tmp_path: Path, place: tuple[str, ...]) -> None:
    def section(found: Any) -> Any:
        for key in place[:-1]:
            found = found[key]
        return found

    def refusal(change: Callable[[Any], Any]) -> str:
        found = json.loads(json.dumps(WHOLE))
        change(section(found))
        (tmp_path / "manifest.json").write_text(json.dumps(found))
        with pytest.raises(IntegrityError) as caught:
            read_manifest(tmp_path)
        assert caught.value.hint
        return caught.value.message

    if place != ("format",):
        assert f"manifest.json: {'.'.join(place)}: not as this program writes it" in refusal(
            lambda here: here.pop(place[-1])
        )
        assert f"manifest.json: {'.'.join(place)}" in refusal(lambda here: here.update({place[-1]: [True]}))
    other = (*place[:-1], "extra")
    assert f"manifest.json: {'.'.join(other)}: not as" in refusal(lambda here: here.update(extra=1))


@given(st.data())
def test_a_manifest_of_anybody_s_making_is_taken_whole_or_refused(tmp_path_factory: pytest.TempPathFactory,
                                                                  data: st.DataObject) -> None:
    odd = st.sampled_from([None, True, "", "x", [], {}, 0, -1, 0.5, 10**30, float("nan"), float("inf"),
                           "a" * 5000, {"format": 3}])
    found = json.loads(json.dumps(WHOLE))
    for _ in range(data.draw(st.integers(0, 2))):
        *section, key = data.draw(st.sampled_from(list(places(WHOLE))))
        here = found
        for name in section:
            here = here.get(name, {}) if isinstance(here, dict) else {}
        if isinstance(here, dict):
            here[key] = data.draw(odd)
    content = bytearray(json.dumps(found).encode())
    if data.draw(st.booleans()):
        content = content[:data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 2))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    run = tmp_path_factory.mktemp("run")
    (run / "manifest.json").write_bytes(content)
    try:
        taken = read_manifest(run)
    except IntegrityError as error:
        assert str(run) in error.message
        assert "\n" not in error.message
    else:
        assert json.loads(as_json(taken)) == json.loads(content)


def test_what_changed_since_the_run_began() -> None:
    then = manifest()
    assert check_same(then, manifest(run_id="b", started="later", machine="another"), "run") == []
    assert check_same(then, manifest(threads=2, versions={"tunesmith": "0.2.0", "torch": "3"}), "run") == [
        "tunesmith 0.1.0 -> 0.2.0", "torch None -> 3", "threads 1 -> 2"]
    for change, said in (({"base": {**WHOLE["base"], "files": {"other": "x"}}},
                          "the base's files (model.safetensors, other)"),
                         ({"data": {**WHOLE["data"], "content": "9" * 64}}, "the rows of embedded:quotes"),
                         ({"data": {**WHOLE["data"], "template": "9" * 64}}, "the template")):
        with pytest.raises(RecipeError) as caught:
            check_same(then, manifest(**change), "run")
        assert caught.value.message == f"run: changed since the run began: {said}"


def test_a_manifest_with_other_keys_is_another_format() -> None:
    """If this fails, keys of manifest.json have changed: raise RUN_FORMAT, then write the new keys here."""
    assert RUN_FORMAT == 4
    assert set(Manifest.model_fields) == {
        "format", "run_id", "started", "seed", "quantization", "base", "data", "engine", "engine_reason",
        "device", "dtype", "matmul", "spread", "activation_budget_bytes", "trainable_parameters",
        "all_parameters", "threads", "machine", "versions"}
    assert {name: set(Manifest.model_fields[name].annotation.model_fields) for name in ("base", "data")} == {
        "base": {"name", "revision", "files"},
        "data": {"source", "files", "validation_files", "content", "counts", "template"}}
