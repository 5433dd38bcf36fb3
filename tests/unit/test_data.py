from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.examples import Example, Form, make_examples
from tunesmith.data.rows import Row
from tunesmith.data.sources import read_source
from tunesmith.data.split import hold_out
from tunesmith.data.template import Template, text_of
from tunesmith.errors import DataError, RecipeError

VALUES = [{"quote": "a \u2028 b", "tags": ["x", "y"], "n": 1}, {"quote": "c, \"d\"\ne", "tags": [], "n": 2}]


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    jsonl = write(tmp_path, "a.jsonl", "\n".join(json.dumps(v, ensure_ascii=False) for v in VALUES) + "\n\n")
    whole = write(tmp_path, "a.json", json.dumps(VALUES))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(VALUES), tmp_path / "a.parquet")
    for source in (jsonl, whole, str(tmp_path / "a.parquet")):
        assert [row.values for row in read_source(source, "train")] == VALUES
    table = write(tmp_path, "a.csv", 'quote,n\r\n"a, b",1\r\n"c ""d""\ne",2\r\n')
    assert [row.values for row in read_source(table, "train")] == [
        {"quote": "a, b", "n": "1"}, {"quote": 'c "d"\ne', "n": "2"}]
    bom = write(tmp_path, "b.jsonl", b"\xef\xbb\xbf" + b'{"a": 1}\n')
    assert read_source(bom, "train")[0].values == {"a": 1}


def test_folder_and_glob(tmp_path: Path) -> None:
    write(tmp_path, "1.jsonl", '{"a": 1}')
    write(tmp_path, "2.jsonl", '{"a": 2}')
    write(tmp_path, "readme.txt", "not data")
    assert [row.values["a"] for row in read_source(str(tmp_path), "train")] == [1, 2]
    assert [row.values["a"] for row in read_source(str(tmp_path / "*.jsonl"), "train")] == [1, 2]


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl, line 2: broken JSON"),
    ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl, line 2: a row is a JSON object"),
    ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', "a.jsonl, line 2: not UTF-8"),
    ("a.jsonl", "\n \n", "empty"),
    ("a.json", '[{"a": 1},\n {"a": }]', "a.json, line 2: broken JSON"),
    ("a.json", '"text"', "a list of objects, or an object"),
    ("a.json", "[]", "no rows"),
    ("a.json", "[" * 100_000, "nested too deep"),
    ("a.csv", "a,b\n1,2\n3\n", "a.csv, line 3: 1 fields"),
    ("a.csv", 'a\n"unclosed\n', "broken CSV"),
    ("a.parquet", "not parquet", "parquet"),
    ("a.doc", "text", "files end in"),
])
def test_broken_files_name_the_line(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_source(write(tmp_path, name, content), "train")
    assert said in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("source",
                         ["missing.jsonl", "/no/such/folder", "./nothing", "none*.jsonl", "embedded:nothing"])
def test_missing_sources(source: str) -> None:
    with pytest.raises(DataError):
        read_source(source, "train")


def test_template_fills_as_the_notebook_does() -> None:
    row = Row({"quote": "Be {kind}.", "tags": ["a", "b"], "my col": 3}, "here")
    assert Template("{quote} ->: {tags}", "k").fill(row) == "Be {kind}. ->: ['a', 'b']"
    assert Template("{{{my col}}} {{x}}", "k").fill(row) == "{3} {x}"


@pytest.mark.parametrize("text", ["{", "}", "{}", "{a", "a}", "{{a}"])
def test_unbalanced_braces(text: str) -> None:
    with pytest.raises(RecipeError, match="brace"):
        Template(text, "data.prompt")


@given(st.text())
def test_escaped_text_is_itself(text: str) -> None:
    assert Template(text.replace("{", "{{").replace("}", "}}"), "k").fill(Row({}, "here")) == text


def test_missing_column_and_null_name_row_and_fix() -> None:
    rows = [Row({"quote": "q", "tags": ["t"]}, "quotes.jsonl, line 1"),
            Row({"quote": "q", "tags": None}, "quotes.jsonl, line 2")]
    with pytest.raises(DataError) as caught:
        make_examples(rows, Form("{quote}", "{tag}", None))
    assert 'quotes.jsonl, line 1: no column "tag" (columns: quote, tags). The template is "{tag}".' in str(
        caught.value
    )
    assert "--set data.completion='{tags}'" in str(caught.value)
    with pytest.raises(DataError, match='line 2: the column "tags" is null'):
        make_examples(rows, Form("{quote}", "{tags}", None))


@pytest.mark.parametrize("value",
                         [float("nan"), [float("inf")], ["a", {"b": [1.0, float("-inf")]}]])
def test_numbers_that_are_none_never_become_text(value: Any) -> None:
    with pytest.raises(DataError, match=r'line 1: the column "tags" (is|holds) (nan|-?inf|null)'):
        make_examples([Row({"tags": value}, "line 1")], Form("", "{tags}", None))


def test_both_chat_forms_give_the_same_messages() -> None:
    a = Row({"m": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}, "a")
    b = Row({"m": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}, "b")
    one, two = make_examples([a, b], Form("", None, "m"))
    assert one.conversation
    assert one.conversation == two.conversation
    assert one.conversation.messages == ({"role": "user", "content": "hi"},
                                         {"role": "assistant", "content": "yo"})
    assert one.content_hash == two.content_hash


@pytest.mark.parametrize("value", [None, "text", [], [1], [{"role": "user"}], [{"text": "x"}],
                                   [{"from": "alien", "value": "x"}], [{"role": "user", "content": None}]])
def test_broken_chats(value: object) -> None:
    with pytest.raises(DataError, match="here"):
        make_examples([Row({"m": value}, "here")], Form("", None, "m"))


def example(text: str, place: str = "p") -> Example:
    return Example(text, "c", None, place)


@given(st.lists(st.text(max_size=3), min_size=2, max_size=60),
       st.one_of(st.floats(0.01, 0.9), st.integers(1, 50)), st.randoms())
def test_split_is_by_content_alone(texts: list[str], amount: float, rng: object) -> None:
    examples = [example(text) for text in texts]
    try:
        train, held = hold_out(examples, amount)
    except DataError:
        assert len(set(texts)) == 1 or amount >= len(texts) or round(amount * len(texts)) >= len(texts)
        return
    assert sorted(e.prompt for e in train + held) == sorted(texts)
    assert not {e.content_hash for e in train} & {e.content_hash for e in held}
    count = max(1, round(amount * len(texts))) if amount < 1 else amount
    sizes = {text: texts.count(text) for text in texts}
    assert held
    assert len(held) <= max(count, min(sizes.values()))
    for text in {e.prompt for e in train}:  # each of them would have been too much when its turn came
        before = [e for e in held if example(e.prompt).content_hash < example(text).content_hash]
        assert len(before) + sizes[text] > count
    shuffled = examples[:]
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    again = hold_out(shuffled, amount)[1]
    assert {e.prompt for e in again} == {e.prompt for e in held}


def test_split_zero_holds_nothing_out() -> None:
    examples = [example("a"), example("b")]
    assert hold_out(examples, 0) == (examples, [])


@settings(max_examples=30)
@given(st.lists(st.dictionaries(st.text(min_size=1, max_size=4), st.text(max_size=8), min_size=1, max_size=3),
                min_size=1, max_size=5))
def test_jsonl_of_anything_is_read_back(tmp_path_factory: pytest.TempPathFactory,
                                        values: list[dict[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    path = write(folder, "rows.jsonl", "\n".join(json.dumps(v) for v in values))
    assert [row.values for row in read_source(path, "train")] == values


def test_forms_of_a_value() -> None:
    row = Row({"l": ["a", "b"], "o": {"x": None, "y": True}, "b": True, "n": [1, None], "t": {"u": "deep"}},
              "r")
    for text, wanted in (("{l}", "['a', 'b']"), ("{o}", '{"x": null, "y": true}'), ("{b}", "true"),
                         ("{n}", "[1, null]"), ("{l|json}", '["a", "b"]'), ("{l|join(' + ')}", "a + b"),
                         ("{o|python}", "{'x': None, 'y': True}"), ("{t.u}", "deep")):
        assert Template(text, "data.prompt").fill(row) == wanted
    template = Template("{l} {o} {l|json}", "data.prompt")
    template.fill(row)
    assert template.written == {("l", "as Python writes it"): 1, ("o", "as JSON"): 1}
    with pytest.raises(RecipeError, match="'upper' is no form of a value"):
        Template("{t|upper}", "data.prompt").fill(Row({"t": "text"}, "r"))


def test_a_column_in_double_braces_is_told() -> None:
    template = Template("{{q}} ->", "data.prompt")
    assert template.fill(Row({"q": "x"}, "r")) == "{q} ->"
    assert template.written == {("q", "literal"): 1}
    other = Template("{{z}} {q}", "data.prompt")
    other.fill(Row({"q": "x"}, "r"))
    assert not other.written


def test_jinja_leaves_a_part_out() -> None:
    text = text_of("{{ a }}{% if b %}\n{{ b }}{% endif %}", "data.prompt")
    assert [text.fill(Row({"a": "x", "b": b}, "r")) for b in ("y", "", None)] == ["x\ny", "x", "x"]
    assert text.columns == ["a", "b"]
    assert text_of("{{ a }}", "k").fill(Row({"a": {"z": None}}, "r")) == '{"z": null}'
    with pytest.raises(DataError, match='r: no column "b"'):
        text.fill(Row({"a": "x"}, "r"))
    with pytest.raises(RecipeError, match="data.prompt: line 1"):
        text_of("{% if %}", "data.prompt")
    with pytest.raises(DataError, match="the text is longer than"):
        text_of("{{ 'x' * 99999999 }}", "data.prompt").fill(Row({}, "r"))
    with pytest.raises(DataError, match="r: data.prompt"):
        text_of("{{ a.__class__.__mro__ }}", "data.prompt").fill(Row({"a": "x"}, "r"))


def test_bytes_are_text_or_are_named() -> None:
    template = Template("{a}", "data.completion")
    assert template.fill(Row({"a": "é".encode()}, "r")) == "é"
    with pytest.raises(DataError, match='r: the column "a" holds bytes that are no UTF-8 text'):
        template.fill(Row({"a": b"\xff\xfe"}, "r"))
