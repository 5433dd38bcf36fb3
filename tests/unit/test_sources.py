"""Every format gives the rows that were written, whatever its compression, encoding and shape."""

from __future__ import annotations

import csv
import datetime
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import PACKED, arrow, opened, parquet, put, values, xlsx

from tunesmith.data.examples import ExampleMaker, Form
from tunesmith.data.sources import json_document, read_source
from tunesmith.errors import DataError

ROWS: list[dict[str, Any]] = [{"q": "“a” \u2028 b", "n": 1, "tags": ["x", "y"]},
                              {"q": 'c, "d"\r\ne', "n": 2, "tags": []}, {"q": "", "n": 3, "tags": ["z"]}]
FLAT = [{"q": "“a”; b", "n": "01"}, {"q": 'c, "d"\ne\t', "n": "2026-03-01"}, {"q": "", "n": "1.50"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


def table(rows: list[dict[str, Any]], separator: str) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


FILES: dict[str, tuple[str | bytes, list[dict[str, Any]]]] = {
    "a.jsonl": (LINES, ROWS), "a.ndjson": (LINES + "\n\n", ROWS), "A.JSONL": (LINES, ROWS),
    "lines.json": (LINES, ROWS), "list.json": (json.dumps(ROWS), ROWS),
    "list.jsonl": (json.dumps(ROWS, indent=1), ROWS),
    "pretty.jsonl": ("\n".join(json.dumps(row, indent=2) for row in ROWS), ROWS),
    "pretty.json": ("\n".join(json.dumps(row, indent=2) for row in ROWS), ROWS),
    "wrapped.json": (json.dumps({"version": "1.1", "data": ROWS, "labels": ["p"]}, indent=1), ROWS),
    "columns.json": (json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}), ROWS),
    "one.json": (json.dumps(ROWS[0]), ROWS[:1]),
    "chat.json": (json.dumps({"messages": [{"role": "user", "content": "a"}]}),
                  [{"messages": [{"role": "user", "content": "a"}]}]),
    "by-column.json": (json.dumps({name: {str(i): row[name] for i, row in enumerate(ROWS)}
                                   for name in ROWS[0]}),
                       ROWS),
    "by-row.json": (json.dumps({str(i): row for i, row in enumerate(ROWS)}), ROWS),
    "split.json": (json.dumps({"columns": list(ROWS[0]), "index": [0, 1, 2],
                               "data": [list(row.values()) for row in ROWS]}), ROWS),
    "a.csv": (table(FLAT, ","), FLAT), "semicolon.csv": (table(FLAT, ";"), FLAT),
    "tab.csv": (table(FLAT, "\t"), FLAT), "a.tsv": (table(FLAT, "\t"), FLAT),
    "A.TSV": (table(FLAT, ","), FLAT), "excel.csv": ("sep=;\r\n" + table(FLAT, ";"), FLAT),
    "a.parquet": (parquet(ROWS), ROWS), "stream.arrow": (arrow(ROWS, file=False), ROWS),
    "file.arrow": (arrow(ROWS, file=True), ROWS), "a.txt": ("one\r\n\r\ntwo\r\n", [{"text": "one\n\ntwo\n"}]),
    "a.xlsx": (xlsx([[], ["q", "n"], ["a", 1], [], ["b", 2.5]]), [{"q": "a", "n": 1}, {"q": "b", "n": 2.5}]),
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_its_rows(tmp_path: Path, name: str, packed: str) -> None:
    content, rows = FILES[name]
    raw = content.encode() if isinstance(content, str) else content
    put(tmp_path, name + packed, PACKED[packed](raw))
    source = opened(tmp_path / (name + packed))
    assert [row.values for row in source.rows()] == rows
    assert [row.values for row in source.rows()] == rows, "the same again"
    assert source.files == [f"{tmp_path.name}/{name}{packed}"]


TEXTS = [name for name, (content, _) in FILES.items() if isinstance(content, str)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_byte_order_mark_is_read(tmp_path: Path, name: str, encoding: str) -> None:
    content, rows = FILES[name]
    assert isinstance(content, str)
    assert values(put(tmp_path, name, content.encode(encoding))) == rows


@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "lines.json", "pretty.jsonl", "columns.json"])
def test_windows_line_ends(tmp_path: Path, name: str) -> None:
    content, rows = FILES[name]
    assert isinstance(content, str)
    assert values(put(tmp_path, name, content.replace("\n", "\r\n"))) == rows


def test_places_say_the_line_where_a_row_begins(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", 'q,n\n"a\nb",1\n\nc,2\n')
    assert [row.place for row in opened(path).rows()] == [f"{path}, line 2", f"{path}, line 5"]
    path = put(tmp_path, "a.jsonl", '\n{"a": 1}\n\n{"a": 2}')
    assert [row.place for row in opened(path).rows()] == [f"{path}, line 2", f"{path}, line 4"]


def test_numbers_and_dates_of_a_csv_are_kept_as_written(tmp_path: Path) -> None:
    assert values(put(tmp_path, "a.csv", "id,when,n\n007,1/2/26,1e3\n")) == [
        {"id": "007", "when": "1/2/26", "n": "1e3"}]


@pytest.mark.parametrize("text", ["text\na, b; c\n", "text\n1;2\n3;4\n", "text\nplain\n"])
def test_a_table_of_one_column(tmp_path: Path, text: str) -> None:
    if "," in text:
        text = text.replace("a, b; c", '"a, b; c"')
    assert all(list(row) == ["text"] for row in values(put(tmp_path, "a.csv", text)))


def test_the_separator_is_told_by_all_rows_of_the_sample(tmp_path: Path) -> None:
    """A header in which two separators come equally often."""
    path = put(tmp_path, "a.csv", "name, first;age\nDoe, Jane;4\nRoe;5\n")
    assert values(path) == [{"name, first": "Doe, Jane", "age": "4"}, {"name, first": "Roe", "age": "5"}]


def test_columns_without_a_name_are_left_out_where_they_are_empty(tmp_path: Path) -> None:
    assert values(put(tmp_path, "a.csv", "q,n,,\na,1,,\n")) == [{"q": "a", "n": "1"}]
    assert values(put(tmp_path, "index.csv", ",q\n0,a\n")) == [{"": "0",
                                                                "q": "a"}], "pandas writes its index so"


def test_a_field_longer_than_the_module_s_limit(tmp_path: Path) -> None:
    long = "x" * 300_000
    assert values(put(tmp_path, "a.csv", f"q,n\n{long},1\n")) == [{"q": long, "n": "1"}]


def test_columns_of_bytes_that_are_text(tmp_path: Path) -> None:
    for column in (pyarrow.array([b"caf\xc3\xa9", None], pyarrow.binary()),
                   pyarrow.array([b"caf\xc3\xa9", None], pyarrow.large_binary())):
        path = put(tmp_path, "a.parquet", parquet(pyarrow.table({"q": column})))
        assert values(path) == [{"q": "café"}, {"q": None}]
    image = pyarrow.table({"q": pyarrow.array([b"\x89PNG\xff"], pyarrow.binary())})
    assert values(put(tmp_path, "b.parquet", parquet(image))) == [{"q": b"\x89PNG\xff"}]


def test_bytes_that_are_no_text_are_not_learnt(tmp_path: Path) -> None:
    rows = [{"q": b"\x89PNG\xff", "i": {"bytes": b"\xff"}, "c": "x"}]
    (row,) = opened(put(tmp_path, "a.parquet", parquet(rows))).rows()
    for template in ("{q}", "{i}", "{{ q }}", "{{ i }}", "{{ [q] }}"):
        with pytest.raises(DataError, match=r"a\.parquet, row 1: .* holds bytes that are no UTF-8 text"):
            ExampleMaker(Form(template, "{c}")).make(row)


def test_maps_are_objects(tmp_path: Path) -> None:
    maps = pyarrow.array([[("a", 1), ("b", None)], [], None], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    path = put(tmp_path, "a.parquet", parquet(pyarrow.table({"m": maps})))
    assert values(path) == [{"m": {"a": 1, "b": None}}, {"m": {}}, {"m": None}]
    twice = pyarrow.array([[("a", 1), ("a", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    with pytest.raises(DataError, match="row 1: the column 'm' holds what Python cannot"):
        values(put(tmp_path, "b.parquet", parquet(pyarrow.table({"m": twice}))))


def test_nested_lists_and_objects_in_parquet(tmp_path: Path) -> None:
    rows = [{"a": [[1, 2], [], None], "m": [{"role": "user", "content": None}]}, {"a": None, "m": []}]
    assert values(put(tmp_path, "a.parquet", parquet(rows))) == rows


def test_a_spreadsheet_s_dates_and_formulas(tmp_path: Path) -> None:
    path = put(tmp_path, "a.xlsx", xlsx([
        ["when", "at", "n"], [datetime.date(2026, 3, 1), datetime.datetime(2026, 3, 1, 12, 30), 7],
        [None, None, 8]]))
    assert values(path) == [{"when": "2026-03-01", "at": "2026-03-01 12:30:00", "n": 7},
                            {"when": None, "at": None, "n": 8}]


def test_the_sheet_is_chosen_by_name(tmp_path: Path) -> None:
    path = put(tmp_path, "a.xlsx", xlsx([["q"], ["one"]], [["q"], ["two"]]))
    assert values(path, name="Sheet2") == [{"q": "two"}]
    assert values(put(tmp_path, "b.xlsx",
                      xlsx([], [["q"], ["two"]]))) == [{"q": "two"}], "the only one with rows"


def test_a_document_is_read_item_by_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come before the end of the file is reached, however small the pieces it is read in."""
    monkeypatch.setattr(json_document, "_CHUNK", 7)
    rows = [{"a": "é" * 30, "b": [1.5, -2e9, True, None, {"c": "]}"}]},
            {"a": "\\\"", "b": [12345678901234567890]}]
    for text in (json.dumps(rows), json.dumps(rows, indent=3), json.dumps({"x": 12345, "rows": rows})):
        assert values(put(tmp_path, "a.json", text)) == rows
    path = put(tmp_path, "cut.json", json.dumps(rows)[:-30])
    assert next(iter(opened(path).rows())).values == rows[0]


@settings(max_examples=60)
@given(rows=st.lists(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5),
                                     st.recursive(st.none() | st.booleans() | st.integers() | st.text(
                                         st.characters(codec="utf-8")), lambda inner: st.lists(
                                             inner, max_size=3)
                                                  | st.dictionaries(st.text(max_size=2), inner)),
                                     min_size=1, max_size=3), min_size=2, max_size=5),
       form=st.sampled_from(["a.jsonl", "a.json", "list.json", "list.jsonl", "indented.json"]),
       chunk=st.integers(1, 40), escape=st.booleans(), crlf=st.booleans())
def test_json_of_any_form_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]],
                                       form: str, chunk: int, escape: bool, crlf: bool) -> None:
    text = (json.dumps(rows, ensure_ascii=escape, indent=1 if form == "list.jsonl" else None)
            if form.startswith("list") else "\n".join(
                json.dumps(row, ensure_ascii=escape, indent=2 if form == "indented.json" else None)
                for row in rows))
    path = tmp_path_factory.getbasetemp() / form
    path.write_bytes((text.replace("\n", "\r\n") if crlf else text).encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_document, "_CHUNK", chunk)
        assert values(path) == rows


@settings(max_examples=60)
@given(rows=st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1),
                              min_size=3, max_size=3), min_size=1, max_size=6),
       separator=st.sampled_from(",;\t"))
def test_a_table_with_any_fields_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]],
                                              separator: str) -> None:
    stream = io.StringIO()
    csv.writer(stream, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(stream.getvalue().encode())
    assert [list(row.values()) for row in values(path)] == rows


CASES = ["21/ROWS.JSONL", "21/columns.json", "21/list.jsonl", "21/really-lines.json", "21/rows.jsonl.gz",
         "21/rows.ndjson", "21/rows.tsv", "21/wrapped.json", "22/bom-crlf.jsonl", "22/utf16.jsonl", "20/one",
         "20/dict", "20/clone", "19/data"]


@pytest.mark.parametrize("case", CASES)
def test_what_was_refused_is_read(assets: Path, case: str) -> None:
    rows = read_source(str(assets / "cases" / case), "train")
    assert len(rows) == 6
    assert [list(row.values) for row in rows] == [["prompt", "completion"]] * 6
