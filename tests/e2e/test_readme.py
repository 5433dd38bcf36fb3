"""What the README and the docs show exists and means what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from conftest import ROOT
from tunesmith.cli.main import app
from tunesmith.recipe import parse_recipe, preset_text

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for line in page.read_text().splitlines():
            for match in re.finditer(r"(?:^\s*\$? ?(?:\.venv/bin/)?|`)(tunesmith [a-z][^`#]*)", line):
                found.append((page.name, match.group(1).strip()))
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_that_is_shown_exists(page: str, command: str) -> None:
    words = [w for w in shlex.split(command) if not w.startswith("[")
             and w not in ("...", "a.b=c]", "NAME]", "DIR]", "RECIPE]")]
    known = get_command(app).commands  # type: ignore[attr-defined]
    assert words[1] in known, command
    options = {name for parameter in known[words[1]].params
               for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words[2:]:
        if word.startswith("--"):
            assert word.split("=")[0].rstrip("]") in options, command


def test_the_readme_s_recipe_is_the_preset() -> None:
    text = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert text
    assert parse_recipe(text.group(1)) == parse_recipe(preset_text("bloom-7b1-quotes"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
