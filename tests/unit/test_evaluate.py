"""`evaluate` on other rows than those that a run held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tunesmith
from tunesmith import embedded
from tunesmith.data.dataset import read_text
from tunesmith.errors import DataError
from tunesmith.recipe import load_recipe, parse_recipe
from tunesmith.verbs.show import Silent

RECIPE = """
model: {{base: "embedded:sprout", quantization: none}}
data: {{source: {source}, prompt: "{{quote}} ->: ", completion: "{{tags}}", validation: 8}}
train: {{max_steps: 2, batch_size: 4, warmup_steps: 1, eval_steps: 0}}
judge: {{max_new_tokens: 4, samples: 1, stop_rows: 2}}
"""


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred rows, and ten others."""
    folder = tmp_path_factory.mktemp("rows")
    quotes = (embedded.path_of("embedded:quotes") or Path()).read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(quotes[:100]))
    (folder / "others.jsonl").write_text("".join(quotes[100:110]))
    return folder


@pytest.fixture(scope="module")
def run(rows: Path) -> Path:
    tunesmith.train(parse_recipe(RECIPE.format(source=rows / "train.jsonl")), run=rows / "run")
    return rows / "run"


def test_rows_that_the_run_was_trained_on_are_not_judged_on(run: Path, rows: Path) -> None:
    with pytest.raises(DataError,
                       match=r"of the 30 rows to judge on are among those that the run was trained on"):
        tunesmith.evaluate(run, overrides=("data.validation=30",))
    trained = read_text(load_recipe(str(run / "recipe.yaml")).data).train[3]
    mixed = rows / "mixed.jsonl"
    learnt = next(line for line in (rows / "train.jsonl").read_text().splitlines()
                  if trained.prompt.startswith(json.loads(line)["quote"]))
    mixed.write_text((rows / "others.jsonl").read_text() + learnt + "\n")
    with pytest.raises(DataError, match=r"data.validation: 1 of the 11 rows"):
        tunesmith.evaluate(run, overrides=(f"data.validation={mixed}", "data.prompt=Q: {quote} "))


def test_rows_that_it_has_not_seen_are(run: Path, rows: Path) -> None:
    assert tunesmith.evaluate(run, overrides=(f"data.validation={rows / 'others.jsonl'}",))["rows"] == 10
    assert tunesmith.evaluate(run)["rows"] == 8


def test_what_cannot_be_known_is_said(run: Path, rows: Path) -> None:
    show = Notes()
    (rows / "train.jsonl").rename(rows / "elsewhere.jsonl")
    try:
        source = f"data.source={rows / 'elsewhere.jsonl'}"
        tunesmith.evaluate(run, overrides=(source, f"data.validation={rows / 'others.jsonl'}"), show=show)
    finally:
        (rows / "elsewhere.jsonl").rename(rows / "train.jsonl")
    assert any("is not known" in note for note in show.notes)
