"""Files, folders, globs, splits, clones of Hub data sets, saved data sets: what is taken, and what is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from source_files import opened, parquet, put, values, without_permission

from tunesmith.data.sources import local, local_files
from tunesmith.data.sources.splits import split_of
from tunesmith.errors import DataError


def tree(folder: Path, *names: str) -> Path:
    """Files of one row each, which says the file's name."""
    for name in names:
        row = {"from": name}
        content = parquet([row]) if name.endswith("parquet") else f'{{"from": "{name}"}}\n'
        put(folder, name, content if not name.endswith(".csv") else f"from\n{name}\n")
    return folder


def taken(source: Any, split: str = "train", **how: Any) -> list[str]:
    return [row["from"] for row in values(source, split, **how)]


@pytest.mark.parametrize(("name", "split"), [
    ("train.jsonl", "train"), ("my_valid.csv", "validation"), ("dev-v2.json", "validation"),
    ("val/a.jsonl", "validation"), ("TEST.parquet", "test"), ("evaluation 1.jsonl", "test"),
    ("data/train-00000-of-00001.parquet", "train"), ("data/train_sft-00000-of-00002.parquet", "train_sft"),
    ("data/validation-00000-of-00001-ab12.parquet", "validation"), ("test_data/train.jsonl", "train"),
    ("train/validation_part.jsonl", "train"), ("part-00000-of-00010.parquet", None), ("contest.jsonl", None),
    ("latest.jsonl", None), ("trainer.jsonl", None), ("a/b/rows.jsonl", None)])
def test_the_split_that_a_name_says(name: str, split: str | None) -> None:
    assert split_of(Path(name)) == split


@pytest.mark.parametrize("names", [
    ("train.jsonl", "valid.jsonl", "test.jsonl"), ("train/a.jsonl", "valid/a.jsonl", "test/a.jsonl"),
    ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet",
     "data/test-00000-of-00001.parquet"),
    ("train.jsonl", "valid/a.jsonl", "test/b.jsonl"), ("my.train.csv", "my.dev.csv", "my.eval.csv")])
def test_a_folder_of_splits(tmp_path: Path, names: tuple[str, str, str]) -> None:
    train, valid, test = names
    told: list[str] = []
    assert taken(tree(tmp_path, *names), tell=told.append) == [train]
    assert len(told) == 1
    assert f"{train}; not taken: " in told[0]
    assert f"{valid} (validation)" in told[0]
    assert f"{test} (test)" in told[0]
    assert opened(tmp_path).files == [f"{tmp_path.name}/{train}"]
    assert taken(tmp_path, "validation") == taken(tmp_path, "valid") == taken(tmp_path, "dev") == [valid]
    assert taken(tmp_path, "test+train") == [test, train]
    assert sorted(taken(tmp_path, "all")) == sorted(names)
    with pytest.raises(DataError, match="has no split 'trian'") as caught:
        taken(tmp_path, "trian")
    assert caught.value.setting == "data.split"
    assert all(split in caught.value.hint for split in ("train", "validation", "test"))


def test_a_glob_takes_a_split_too_where_it_matches_several(tmp_path: Path) -> None:
    tree(tmp_path, "d/train.jsonl", "d/test.jsonl", "d/notes.txt")
    assert taken(tmp_path / "d" / "*.jsonl") == ["d/train.jsonl"]
    assert taken(tmp_path / "**" / "*.jsonl", "test") == ["d/test.jsonl"]
    assert taken(tmp_path / "d" / "te*.jsonl") == ["d/test.jsonl"], "what was asked for by name"
    with pytest.raises(DataError, match=r"no \.jsonl, .* file matches"):
        taken(tmp_path / "d" / "*.nothing")


def test_a_file_that_is_named_is_taken_whatever_its_split(tmp_path: Path) -> None:
    tree(tmp_path, "test.jsonl", "rows.jsonl")
    assert taken(tmp_path / "test.jsonl") == taken(tmp_path / "test.jsonl", "test") == ["test.jsonl"]
    assert taken(tmp_path / "rows.jsonl", "all") == ["rows.jsonl"]
    for name in ("test.jsonl", "rows.jsonl"):
        with pytest.raises(DataError, match="no split 'validation'"):
            taken(tmp_path / name, "validation")


def test_files_of_no_split_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    assert taken(tree(tmp_path, "train.jsonl", "extra.jsonl", "old/rows.jsonl"),
                 tell=told.append) == ["train.jsonl"]
    assert "not taken: old/rows.jsonl, extra.jsonl (of no split)" in told[0]


def test_files_of_no_split_are_train_where_nothing_else_is(tmp_path: Path) -> None:
    tree(tmp_path, "cooking.jsonl", "travel.jsonl", "my-test.jsonl")
    assert taken(tmp_path) == ["cooking.jsonl", "travel.jsonl"]


def test_a_plain_folder(tmp_path: Path) -> None:
    told: list[str] = []
    tree(tmp_path, "b.jsonl", "a.csv", "README.txt", ".hidden.jsonl", "dataset_info.json", ".cache/c.jsonl")
    assert taken(tmp_path, tell=told.append) == ["a.csv", "b.jsonl"]
    assert told == [f"data.source: {tmp_path}: a.csv, b.jsonl."]


def test_a_folder_of_texts(tmp_path: Path) -> None:
    for name in ("one.txt", "deep/two.txt.gz", "README.txt", "LICENSE.txt"):
        put(tmp_path, name, __import__("gzip").compress(b"2") if name.endswith("gz") else name)
    assert [row["text"] for row in values(tmp_path)] == ["one.txt"]
    (tmp_path / "one.txt").unlink()
    assert [row["text"] for row in values(tmp_path)] == ["2"]


def test_shards_further_down_are_found_in_order(tmp_path: Path) -> None:
    names = [f"data/part-0000{number}.parquet" for number in range(3)]
    assert taken(tree(tmp_path, *reversed(names), "data/_SUCCESS")) == names


def test_the_same_rows_in_two_formats_are_refused(tmp_path: Path) -> None:
    tree(tmp_path, "rows.csv", "rows.jsonl")
    with pytest.raises(DataError, match=r"rows\.csv and rows\.jsonl look like the same rows"):
        taken(tmp_path)
    assert taken(tmp_path / "*.csv") == ["rows.csv"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    tree(tmp_path, "store/a.jsonl")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shards").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "again").symlink_to(tmp_path / "data")
    assert taken(tmp_path / "data") == ["store/a.jsonl"]
    (tmp_path / "data" / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read: No such file"):
        taken(tmp_path / "data")


def test_an_unreadable_file_in_a_folder_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "a.jsonl", "c.jsonl")
    put(tmp_path, "b.jsonl", "")
    with pytest.raises(DataError, match=r"b\.jsonl: the file is empty"):
        taken(tmp_path)


def test_a_folder_without_permission(tmp_path: Path) -> None:
    without_permission(tree(tmp_path, "d/a.jsonl") / "d")
    try:
        with pytest.raises(DataError, match="cannot be read: Permission denied"):
            taken(tmp_path / "d")
    finally:
        (tmp_path / "d").chmod(0o700)


def test_a_folder_without_end_is_not_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_MOST_FILES", 5)
    with pytest.raises(DataError, match="more than 5 files"):
        taken(tree(tmp_path, *(f"{number}.jsonl" for number in range(9))))


def test_a_folder_without_data(tmp_path: Path) -> None:
    put(tmp_path, "README.md", "# nothing")
    with pytest.raises(DataError, match="has no .jsonl, "):
        taken(tmp_path)


# --- slices ---


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    return put(tmp_path, "rows.jsonl", "".join(f'{{"n": {number}}}\n' for number in range(101)))


@pytest.mark.parametrize("split",
                         ["train[:5%]", "train[10:20]", "train[-10:]", "train[50%:]", "train[:]", "train",
                                   "train[:33%](closest)", "train[5:1]", "train[:1000]",
                          "train[10:20]+train[:2]"])
def test_slices_are_those_of_datasets(hundred: Path, split: str) -> None:
    import datasets

    spec = datasets.ReadInstruction.from_spec(split).to_absolute({"train": 101})
    want = [n for each in spec for n in range(101)[each.from_ or 0:101 if each.to is None else each.to]]
    if not want:
        with pytest.raises(DataError, match="has no rows"):
            values(hundred, split)
        return
    source = opened(hundred, split)
    assert [row.values["n"] for row in source.rows()] == [row.values["n"] for row in source.rows()] == want


@pytest.mark.parametrize("split",
                         ["train[a:b]", "train[33%]", "train[", "", "+", "train[:5%][:2]", "train[:200%]"])
def test_what_is_no_slice(hundred: Path, split: str) -> None:
    with pytest.raises(DataError) as caught:
        values(hundred, split)
    assert caught.value.setting == "data.split"


# --- clones of Hub data sets ---

CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*.parquet
  - split: dev
    path: [main/dev.parquet]
- config_name: socratic
  data_files: socratic/*.parquet
- config_name: folder
  data_dir: more
---
# A data set
"""
CLONE = ("main/train-00000-of-00002.parquet", "main/train-00001-of-00002.parquet", "main/dev.parquet",
         "socratic/a.parquet", "more/train.jsonl", "more/test.jsonl")


def test_a_clone_with_configurations(tmp_path: Path) -> None:
    put(tree(tmp_path, *CLONE), "README.md", CARD)
    with pytest.raises(DataError, match="has several configurations: main, socratic, folder") as caught:
        taken(tmp_path)
    assert caught.value.hint == "Say which one: --set data.name='main'"
    assert taken(tmp_path, name="main") == list(CLONE[:2])
    assert taken(tmp_path, "validation", name="main") == taken(tmp_path, "dev", name="main") == [CLONE[2]]
    assert taken(tmp_path, name="socratic") == [CLONE[3]]
    assert taken(tmp_path, name="folder") == [CLONE[4]]
    assert taken(tmp_path, "test", name="folder") == [CLONE[5]]
    with pytest.raises(DataError, match="has no configuration 'mian'"):
        taken(tmp_path, name="mian")


@pytest.mark.parametrize("mark", ["default: true", "config_name: default"])
def test_the_configuration_that_is_marked(tmp_path: Path, mark: str) -> None:
    card = CARD.replace("config_name: socratic",
                        mark if "config" in mark else f"config_name: socratic\n  {mark}")
    put(tree(tmp_path, *CLONE), "README.md", card)
    assert taken(tmp_path) == [CLONE[3]]


@pytest.mark.parametrize("path",
                         ["../secret.jsonl", "/etc/passwd", "https://example.org/a.jsonl", "gone.jsonl"])
def test_a_card_that_names_other_places(tmp_path: Path, path: str) -> None:
    put(tmp_path, "secret.jsonl", '{"from": "secret"}')
    put(tmp_path, "clone/README.md", f"---\nconfigs:\n- config_name: a\n  data_files: {path}\n---\n")
    with pytest.raises(DataError, match=r"card \(README\.md\) names"):
        taken(tmp_path / "clone")


@pytest.mark.parametrize("card",
                         ["no front matter", "---\n: {[\n---\n", "---\nconfigs: 3\n---\n", "---\n- a\n---\n",
                                  "---\nconfigs: [3, {}]\n---\n", "---\n" + "a: &a [*a]\n---\n",
                          b"\xff\xfe\x00"])
def test_a_card_that_says_nothing(tmp_path: Path, card: str | bytes) -> None:
    put(tree(tmp_path, "data/train.jsonl", "data/test.jsonl"), "README.md", card)
    assert taken(tmp_path) == ["data/train.jsonl"]


def test_a_name_that_names_nothing_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "a.jsonl")
    with pytest.raises(DataError, match="neither configurations nor sheets") as caught:
        taken(tmp_path, name="main")
    assert caught.value.setting == "data.name"


# --- saved data sets ---


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    import datasets

    train = datasets.Dataset.from_list([{"from": f"train {number}"} for number in range(50)])
    test = datasets.Dataset.from_list([{"from": "test 0"}])
    train.shuffle(seed=1).save_to_disk(tmp_path / "one", num_shards=3)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    assert taken(tmp_path / "one") == datasets.load_from_disk(tmp_path / "one")["from"][:]
    assert taken(tmp_path / "both") == train["from"][:]
    assert taken(tmp_path / "both", "test") == ["test 0"]
    assert len(taken(tmp_path / "both", "all")) == 51
    with pytest.raises(DataError, match="no split 'validation'"):
        taken(tmp_path / "both", "validation")


def test_json_inside_a_table_is_what_it_says(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"a": datasets.Json(), "t": datasets.List(datasets.Json()),
                                  "m": datasets.List(
        {"role": datasets.Value("string"), "args": datasets.Json()})})
    rows = [{"a": {"x": 1}, "t": [{"n": 1}, {"n": "x"}], "m": [{"role": "u", "args": {"k": [1, "2"]}}]},
            {"a": "abc", "t": [], "m": []}, {"a": None, "t": None, "m": [{"role": "u", "args": None}]}]
    table = datasets.Dataset.from_list(rows, features=features)
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "a.parquet")
    assert values(tmp_path / "saved") == values(tmp_path / "a.parquet") == rows


@pytest.mark.parametrize(("name", "content"), [
    ("state.json", "{"), ("state.json", "[]"),
    ("state.json", '{"_data_files": [{"filename": "../a.arrow"}]}'),
    ("state.json", '{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}'),
    ("dataset_dict.json", '{"splits": ["../x"]}'), ("dataset_dict.json", "[")])
def test_a_saved_data_set_that_is_broken(tmp_path: Path, name: str, content: str) -> None:
    put(tmp_path, "dataset_info.json", "{}")
    put(tmp_path, name, content)
    with pytest.raises(DataError, match=name):
        taken(tmp_path)


def test_the_files_of_a_local_source_are_all_of_them(tmp_path: Path) -> None:
    tree(tmp_path, "train.jsonl", "test.jsonl")
    found = local_files(str(tmp_path))
    assert found is not None
    assert sorted(path.name for path in found) == ["test.jsonl", "train.jsonl"]
    assert local_files("maker/rows") is None


def test_a_name_with_odd_characters(tmp_path: Path) -> None:
    for name in ("a [1].jsonl", "über.csv", "sp ace.parquet", "x*y.jsonl"):
        assert taken(tree(tmp_path, name) / name) == [name]
    raw = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")
    Path(raw).write_text('{"from": "x"}')
    assert taken(raw) == ["x"]


def test_a_split_to_hold_out_that_is_not_there_is_the_validation_set_s(tmp_path: Path) -> None:
    from tunesmith.data import read_text
    from tunesmith.recipe import parse_recipe

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"q": "x", "a": "y"}\n')
    recipe = parse_recipe("model: {base: b}\ndata: {source: %s, prompt: '{q}', completion: '{a}', "
                          "validation: 'split:nope'}"
                          % (tmp_path / "data"))
    with pytest.raises(DataError, match="has no split 'nope'") as caught:
        read_text(recipe.data)
    assert caught.value.setting == "data.validation"
