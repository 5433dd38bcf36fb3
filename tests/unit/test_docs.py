"""The docs name what there is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_a_page_are_there(page: Path) -> None:
    for path in re.findall(r"`((?:src|tests|benchmarks|recipes)/[\w/.-]+)`", page.read_text(encoding="utf-8")):
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
