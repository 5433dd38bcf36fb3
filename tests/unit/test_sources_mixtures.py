"""Several sources as one, held-out splits, skipped rows: from the recipe to the rows of a run."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_files import opened, put, values

from conftest import RECIPE, tunesmith
from tunesmith.data import read_text
from tunesmith.data.rows import Row
from tunesmith.data.sources.mixture import interleave
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe import load_recipe, parse_recipe


def numbered(folder: Path, name: str, count: int) -> Path:
    return put(folder, name, "".join(f'{{"p": "{name} {number}", "c": "x"}}\n' for number in range(count)))


def recipe(**data: Any) -> str:
    data = {"prompt": "{p}", "completion": "{c}", "validation": 0} | data
    return json.dumps({"model": {"base": "embedded:sprout"}, "data": data})


def read(folder: Path, tell: Any = print, **data: Any) -> Any:
    put(folder, "r.yaml", recipe(**data))
    return read_text(load_recipe(folder / "r.yaml").data, tell)


@given(counts=st.lists(st.integers(0, 30), min_size=2, max_size=4), data=st.data())
def test_each_source_has_its_share_at_every_point(counts: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.sampled_from([1.0, 0.1, 0.3, 2.5, 7.0]), min_size=len(counts),
                                 max_size=len(counts)))
    sources = [[Row({"n": n}, f"{number}") for n in range(count)] for number, count in enumerate(counts)]
    ends: list[tuple[int, list[int]]] = []
    mixed = list(interleave([iter(rows) for rows in sources], weights, lambda *end: ends.append(end)))
    shares = [Fraction(str(weight)) / sum(Fraction(str(each)) for each in weights) for weight in weights]
    taken: Counter[str] = Counter()
    for position, row in enumerate(mixed, start=1):
        taken[row.place] += 1
        for number, share in enumerate(shares):
            assert abs(taken[str(number)] - share * position) < len(counts)
    for number, rows in enumerate(sources):
        own = [row.values["n"] for row in mixed if row.place == str(number)]
        assert own == [row.values["n"] for row in rows][:len(own)], "in their order, none twice"
    ((ended, counted),) = ends
    assert counted == [taken[str(number)] for number in range(len(counts))]
    assert taken[str(ended)] == counts[ended]
    assert mixed == list(interleave([iter(rows) for rows in sources], weights))


def test_a_mixture_s_order_is_known(tmp_path: Path) -> None:
    a, b = numbered(tmp_path, "a.jsonl", 6), numbered(tmp_path, "b.jsonl", 9)
    told: list[str] = []
    source = opened([a, b], weights=[3, 1], tell=told.append)
    for _ in range(2):
        assert [row.values["p"][0] for row in source.rows()] == list("aabaaaba")
    assert told == [f"data.weights: the mixture ends with the last of 6 rows of {a}; with them are 2 of {b}."]
    assert [row["p"][0] for row in values([a, b])] == list("a" * 6 + "b" * 9)
    assert source.files == [f"{tmp_path.name}/a.jsonl", f"{tmp_path.name}/b.jsonl"]


def test_an_empty_source_of_a_mixture_is_named(tmp_path: Path) -> None:
    a, b = numbered(tmp_path, "a.jsonl", 6), put(tmp_path, "b.json", "[]")
    with pytest.raises(DataError, match=r"b\.json has no rows"):
        values([a, b], weights=[1, 1])


@pytest.mark.parametrize(("data", "says"), [
    ({"source": []}, "data.source"), ({"source": [""]}, "empty name"), ({"source": ""}, "data.source"),
    ({"source": "a", "weights": [1]}, "several sources"),
    ({"source": ["a", "b"], "weights": [1]}, "`weights` has 1"),
    ({"source": ["a", "b"], "weights": [1, 0]}, "above 0"),
    ({"source": ["a", "b"], "weights": [1, -2]}, "above 0"),
    ({"source": "a", "validation": "split:"}, "name a split"),
    ({"source": "a", "validation": []}, "name a split"),
    ({"source": "a", "bad_rows": "ignore"}, "data.bad_rows"), ({"source": 3}, "data.source"),
    ({"source": "a", "name": ""}, "data.name")])
def test_what_the_recipe_refuses(data: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe(**data))
    assert says in str(caught.value)


def test_paths_of_a_list_are_looked_for_in_the_recipe_s_folder(tmp_path: Path) -> None:
    a, b = numbered(tmp_path, "a.jsonl", 2), numbered(tmp_path, "b.jsonl", 2)
    put(tmp_path, "r.yaml", recipe(source=["a.jsonl", "b.jsonl", "maker/rows"], validation=["b.jsonl"]))
    data = load_recipe(tmp_path / "r.yaml").data
    assert data.source == [str(a), str(b), "maker/rows"]
    assert data.validation == [str(b)]


def test_held_out_is_a_split_of_the_same_data_set(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        numbered(tmp_path, f"d/{name}.jsonl", 3)
    told: list[str] = []
    text = read(tmp_path, told.append, source="d", validation="split:valid")
    assert [example.prompt for example in text.validation] == [f"d/valid.jsonl {number}"
                                                               for number in range(3)]
    assert [example.prompt for example in text.train] == [f"d/train.jsonl {number}" for number in range(3)]
    assert (text.files, text.validation_files) == (["d/train.jsonl"], ["d/valid.jsonl"])
    assert len(told) == 2
    with pytest.raises(DataError, match="no split 'held'"):
        read(tmp_path, source="d", validation="split:held")
    with pytest.raises(DataError, match="no split 'test'"):
        read(tmp_path, source="d/train.jsonl", validation="split:test")


def test_held_out_may_be_a_mixture(tmp_path: Path) -> None:
    for name in "abc":
        numbered(tmp_path, f"{name}.jsonl", 3)
    text = read(tmp_path, source=["a.jsonl", "b.jsonl"], validation=["b.jsonl", "c.jsonl"])
    assert len(text.train) == 3
    assert len(text.validation) == 6
    assert text.repeated == 3


def test_rows_that_the_template_cannot_use_are_skipped_too(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", '{"p": "1", "c": "x"}\n{broken\n{"p": "2"}\n{"p": "3", "c": null}\n')
    told: list[str] = []
    text = read(tmp_path, told.append, source="a.jsonl", bad_rows="skip")
    assert [example.prompt for example in text.train] == ["1"]
    assert text.skipped == 3
    assert len(told) == 1
    for said in ("3 rows skipped", "line 2: broken JSON", 'line 3: no column "c"',
                 'line 4: the column "c" is null'):
        assert said in told[0]
    with pytest.raises(DataError, match="line 2: broken JSON"):
        read(tmp_path, source="a.jsonl")


def test_a_template_that_fits_no_row_is_not_skipped_over(tmp_path: Path) -> None:
    numbered(tmp_path, "a.jsonl", 3)
    with pytest.raises(DataError, match='has no rows: .* no column "q"'):
        read(tmp_path, source="a.jsonl", bad_rows="skip", prompt="{q}")
    numbered(tmp_path, "a.jsonl", 300)
    put(tmp_path, "b.jsonl", '{"q": "1", "c": "x"}\n')
    with pytest.raises(DataError, match="300 of 301 rows cannot be used"):
        read(tmp_path, source=["a.jsonl", "b.jsonl"], bad_rows="skip", prompt="{q}")


# --- the command line ---


QUOTES = [{"quote": f"a quiet lamp {number}", "tags": ["light"]} for number in range(30)]


def test_train_says_which_files_it_took(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in QUOTES)
    put(tmp_path, "d/train.jsonl", lines + "{broken\n")
    put(tmp_path, "d/test.jsonl", lines.replace("quiet", "loud"))
    put(tmp_path, "my.yaml", RECIPE)
    words = ["--set", "data.source=d", "--set", "data.validation=split:test", "--set", "data.bad_rows=skip",
             "--set", "train.max_steps=1", "--run", "run"]
    done = tunesmith("train", "my.yaml", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "train.jsonl; not taken: test.jsonl (test)" in said
    assert "1 row skipped (data.bad_rows)" in said
    facts = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]
    assert facts["files"] == ["d/train.jsonl"]
    assert facts["validation_files"] == ["d/test.jsonl"]
    assert (facts["counts"]["train"], facts["counts"]["validation"]) == (30, 30)
    assert tunesmith("verify", "run", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(("words", "says"), [
    (["data.source=gone.jsonl.gz"], "gone.jsonl.gz: no such file"), (["data.source=[]"], "data.source"),
    (["data.source=d", "data.split=dev"], "has no split 'dev'"),
    (["data.source=a.jsonl", "data.name=x"], "data.name"),
    (["data.source=d/pointer.csv"], "Git LFS pointer")])
def test_what_is_wrong_ends_with_its_code(tmp_path: Path, words: list[str], says: str) -> None:
    put(tmp_path, "a.jsonl", json.dumps(QUOTES[0]))
    put(tmp_path, "d/train.jsonl", json.dumps(QUOTES[0]))
    put(tmp_path, "d/pointer.csv", "version https://git-lfs.github.com/spec/v1\n")
    put(tmp_path, "my.yaml", RECIPE)
    done = tunesmith("inspect", "my.yaml", *(each for word in words for each in ("--set", word)),
                     cwd=tmp_path)
    assert done.returncode == (3 if "[]" in words[0] else 4)
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
