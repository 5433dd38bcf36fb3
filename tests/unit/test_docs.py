"""The docs name what there is."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.recipe.load import section_fields

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_a_page_are_there(page: Path) -> None:
    for path in re.findall(r"`((?:src|tests|benchmarks|recipes)/[\w/.-]+)`",
                           page.read_text(encoding="utf-8")):
        if "NAME" not in path:
            assert (ROOT / path).exists(), path


def test_the_native_families_are_named() -> None:
    from tunesmith.model.families import FAMILIES

    said = re.sub(r"[^a-z0-9]", "", (ROOT / "docs" / "engines.md").read_text(encoding="utf-8").lower())
    assert [name for name in FAMILIES if name not in said] == []


def test_the_picture_of_the_house_has_every_package_and_nothing_above_the_diagonal() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import draw_house
    finally:
        sys.path.pop(0)
    order = draw_house.ORDER
    packages = {path.stem for path in (ROOT / "src" / "tunesmith").iterdir() if path.suffix in ("", ".py")}
    assert packages - {"__init__", "__main__", "__pycache__"} <= {name.partition(".")[0] for name in order}
    above = {pair for pair in draw_house.counts() if order.index(pair[0]) < order.index(pair[1])}
    assert all(what.startswith("model.") or who.startswith("model.") for who, what in above), above


def recipe_page() -> str:
    return (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")


def settings_in_the_table() -> dict[str, tuple[str, str]]:
    """Default and meaning of each setting, as docs/recipe.md has them."""
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (.+?) \| (.+) \|$", recipe_page(), re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: (default, meaning) for name, default, meaning in rows}


SETTINGS = {f"{section}.{key}": field for section in Recipe.model_fields
            for key, field in section_fields(section).items()}
#: A recipe that names only what has no default.
SHORTEST = {"model": {"base": "b"}, "data": {"source": "s", "completion": "{c}"}}


def test_the_table_of_settings_is_the_schema_s() -> None:
    assert list(settings_in_the_table()) == list(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_s_default_in_the_table_is_the_schema_s(name: str) -> None:
    said, field = settings_in_the_table()[name][0], SETTINGS[name]
    section, key = name.split(".")
    shortest = Recipe.model_validate(SHORTEST).model_dump()
    default = field.default if key in SHORTEST.get(section, {}) else shortest[section][key]
    if field.is_required():
        assert said == "required"
    else:
        value = yaml.safe_load(said.strip("`"))
        assert said == f"`{said.strip('`')}`"
        assert value == default
        assert isinstance(value, bool) == isinstance(default, bool)


def choices(annotation: Any) -> set[str]:
    """The words that a setting may be."""
    if get_origin(annotation) is Literal:
        return {word for word in get_args(annotation) if isinstance(word, str)}
    return set().union(*map(choices, get_args(annotation)))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_s_choices_are_in_the_table(name: str) -> None:
    default, meaning = settings_in_the_table()[name]
    said = default + meaning
    assert {word for word in choices(SETTINGS[name].annotation) if f"`{word}`" not in said} == set()


def test_the_recipe_that_the_page_begins_with_is_one() -> None:
    found = re.search(r"```yaml\n(.*?)```", recipe_page(), re.DOTALL)
    assert found
    assert parse_recipe(found.group(1)).data.completion == "{answer}"
