"""What cannot be read is named, with what to do, in bounded memory and time; or skipped and counted."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import PACKED, arrow, opened, parquet, put, values, without_permission, xlsx, zstd

from tunesmith.data.sources import inputs, json_document, json_lines
from tunesmith.data.sources.bad_rows import BadRows
from tunesmith.errors import DataError, EnvironmentFault, TunesmithError

GOOD = '{"a": 1}\n'
LINES = b"".join(b'{"a": "%d"}\n' % number for number in range(50))
POINTER = ("version https://git-lfs.github.com/spec/v1\noid "
           "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa"
           "5e2ca24d17e2393\nsize 123456789\n")


def refused(path: Path, says: str, **how: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        values(path, **how)
    assert says in str(caught.value), caught.value
    assert path.name in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.txt", "a.xlsx",
                                  "a.jsonl.gz", "a.parquet.zst"])
def test_a_large_file_s_pointer_is_named(tmp_path: Path, name: str) -> None:
    error = refused(put(tmp_path, name, POINTER),
                    "a Git LFS pointer, not the file itself of 123,456,789 bytes")
    assert "git lfs pull" in error.hint


@pytest.mark.parametrize(("name", "content", "says"), [
    ("a.json", '[{"a": 1}', "line 1: broken JSON: the text ends too early, so the file is cut short"),
    ("a.json", '[{"a": 1} {"a": 2}]', "line 1: broken JSON: , or ] expected, column 11"),
    ("a.json", '[{"a": 1}]\n[{"a": 2}]', "line 2: broken JSON: more text after the end of the list"),
    ("a.json", '[\n{"a": 1},\n]', "line 3: broken JSON: Expecting value, column 1"),
    ("a.json", '[{"a": 1}, 7]', "row 2: a row is a JSON object with columns, this is int"),
    ("a.json", '{"a": ["x"], "b": ["y", "z"]}', "columns of different lengths: a 1, b 2"),
    ("a.json", '{"train": [{"a": 1}], "test": [{"a": 2}]}', "several lists of objects: train, test"),
    ("a.json", '{"a": 1, "a": 2}', "'a' stands twice"),
    ("a.json", "12", "is a list of objects, or an object"),
    ("a.json", '{"a": {"b": ' * 50_000, "nested too deep"),
    ("a.jsonl", '{"a": ' + "[" * 50_000, "line 1: broken JSON: nested too deep"),
    ("a.jsonl", "<!DOCTYPE html>\n<html>", "it is a web page"), ("a.csv", "  <html>", "it is a web page"),
    ("a.csv", 'a,b\n1,2\n"3,4\n5,6\n', "line 3: broken CSV: unexpected end"),
    ("a.csv", 'a,b\n"x"y,2\n', "line 2: broken CSV"),
    ("a.csv", "a,b,,\n1,2,,3\n", "line 2: 1 fields in columns"), ("a.csv", "", "the file is empty"),
    ("a.csv", "\n\n", "the file is empty"), ("a.csv", "a,b\n", "has no rows"),
    ("a.txt", " \n", "the file is empty"), ("a.jsonl", b"\xff\xfe", "the file is empty"),
    ("a.jsonl", b"\xff\xfe{\x00}", "not whole utf-16-le text"), ("a.jsonl", b"PK\x03\x04", "zip archive"),
    ("a.jsonl", gzip.compress(GOOD.encode(), mtime=0), "compressed by gzip"),
    ("a.csv", zstd(b"a"), "compressed by zstd"), ("a.jsonl", parquet([{"a": 1}]), "a parquet file"),
    ("a.json", arrow([{"a": 1}], True), "an Arrow file"), ("a.jsonl.gz", GOOD, "not a whole .gz file"),
    ("a.jsonl.zst", GOOD, "not a whole .zst file"),
    ("a.parquet", b"PAR1" + bytes(50), "not a readable parquet file"), ("a.parquet", b"", "parquet"),
    ("a.arrow", b"ARROW1\0\0" + bytes(50), "not a readable Arrow file"),
    ("a.arrow", b"", "the file is empty"), ("a.xlsx", b"PK\x03\x04" + bytes(50), "not a readable .xlsx file"),
    ("a.xlsx", b"old", ".xlsx"),
    ("a.xlsx", xlsx([["a", "a"], [1, 2]]), "the column 'a' stands in places 1, 2"),
    ("a.xlsx", xlsx([["a", None], [1, 2]]), "row 2: 1 cells in columns without a name"),
    ("a.xlsx", xlsx([["a"], ["=1+1"]]), "row 2: the cell A2 has a formula without a result"),
    ("a.xlsx", xlsx([["a"], ["#N/A"]]), "row 2: the cell A2 is an error, #N/A"),
    ("a.xlsx", xlsx([["a"], [1]], [["b"], [2]]), "has 2 sheets: Sheet1, Sheet2"),
    ("a.xlsx", xlsx([]), "the spreadsheet is empty"),
], ids=lambda value: repr(value)[:30])
def test_a_file_that_is_broken_is_named(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    began = time.monotonic()
    error = refused(put(tmp_path, name, content), says)
    assert error.exit_code == 4
    assert len(str(error)) < 800
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.txt"])
def test_a_compressed_file_that_is_cut_short(tmp_path: Path, name: str, packed: str) -> None:
    rows = [{"a": os.urandom(20).hex()} for _ in range(5000)]
    content = {"a.json": json.dumps(rows), "a.csv": "a\n" + "\n".join(row["a"] for row in rows)}.get(
        name, "\n".join(map(json.dumps, rows))).encode() if name != "a.parquet" else parquet(rows)
    whole = PACKED[packed](content)
    path = put(tmp_path, name + packed, whole[:len(whole) // 2])
    error = refused(path, f"not a whole {packed} file")
    assert "copy or download it again" in error.hint


def test_a_gzip_that_lies_about_its_content(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(GOOD.encode() * 1000))
    packed[-6] ^= 1  # its checksum
    refused(put(tmp_path, "a.jsonl.gz", bytes(packed)), "not a whole .gz file: CRC check failed")
    refused(put(tmp_path, "b.jsonl.gz", gzip.compress(GOOD.encode()) + b"more"), "not a whole .gz file")
    assert len(values(put(tmp_path, "c.jsonl.gz", gzip.compress(GOOD.encode()) * 3))) == 3, "members in a row"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet"])
@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_file_that_is_made_to_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str,
                                                packed: str) -> None:
    """As large as a day allows: the limits are as low here as the file is small."""
    monkeypatch.setattr(inputs, "_MOST_UNPACKED_BYTES", 1 << 20)
    path = put(tmp_path, name + packed, PACKED[packed](b" " * (8 << 20)))
    refused(path, "become more than" if name != "a.txt" else "")


@pytest.mark.parametrize(("name", "begins"), [
    ("a.jsonl", '{"a": "'), ("a.json", '[{"a": "'), ("a.json", '{"a": "'),
    ("a.json", "[" + '{"a": 1},' * 3 + '{"b": "'), ("a.csv", "a,b\n"), ("a.csv", 'a,b\n"'), ("a.txt", "")])
def test_a_line_of_a_gigabyte(tmp_path: Path, name: str, begins: str,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file with a hole in it, so that it needs no disk; zeros are what a crash leaves, too."""
    path = put(tmp_path, name, begins)
    os.truncate(path, 1 << 30)
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            values(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.name in caught.value.message
    assert len(str(caught.value)) < 800
    assert peak < 400 << 20
    assert time.monotonic() - began < 60


def test_after_a_line_that_is_too_long_reading_goes_on(tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (inputs, json_lines, json_document):
        monkeypatch.setattr(module, "LONGEST_ROW", 50)
    path = put(tmp_path, "a.jsonl", GOOD + '{"a": "' + "x" * 200 + '"}\n' + GOOD + '{"a": "' + "x" * 200)
    refused(path, "line 2: longer than")
    source = opened(path, skip=True)
    assert len(list(source.rows())) == 2
    assert source.skipped.count == 2
    monkeypatch.setattr(json_document, "_CHUNK", 8)
    refused(put(tmp_path, "a.json", "[" + GOOD + ',{"a": [1, ' + "2, " * 200 + '3]}]'),
            "line 2: broken JSON: a value")


PIECES = st.sampled_from([b'{"a": 1}', b'{"a": ', b"[", b"]", b"{", b"}", b",", b'"', b":", b"\n", b"\r\n",
                          b"\r", b" ", b"a", b"a,b", b";", b"\t", b"1e999", b"-", b"NaN", b"null", b"\\u",
                          b"\\ud800", b"\\", b"\0", b"\xff", b"\xe9", b"\xc3", b"\xc3\xa9", b"\xef\xbb\xbf",
                          b"\xff\xfe", b"sep=;", b"data", b'"data": [{', b'{"columns": ["a"], "data": [[1]]}',
                          b'{"0": {"a": 1}}'])
ENDINGS = ["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow", "xlsx", "ndjson.gz", "json.zst",
           "arrow.gz"]


@settings(max_examples=300)
@given(content=st.lists(PIECES, max_size=12).map(b"".join) | st.binary(max_size=40),
       ending=st.sampled_from(ENDINGS), skip=st.booleans(), pack=st.booleans(), chunk=st.integers(1, 30))
def test_any_bytes_are_rows_or_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes,
                                           ending: str, skip: bool, pack: bool, chunk: int) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{ending}"
    path.write_bytes(PACKED[path.suffix](content) if pack and path.suffix in PACKED else content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_document, "_CHUNK", chunk)
        try:
            source = opened(path, skip=skip)
            rows = [(row.values, row.place) for row in source.rows()]
            assert str(rows) == str([(row.values, row.place) for row in source.rows()]), "the same again"
            assert all(str(path) in place for _, place in rows)
        except TunesmithError as error:
            assert error.exit_code == 4
            assert path.name in error.message
            assert len(str(error)) < 1000


# --- encodings ---


ENCODED = [("cp1252", "“It’s” café"), ("cp1252", "Übergröße, naïve façade"), ("cp1251", "Привет, как дела?"),
           ("cp1250", "Zażółć gęślą jaźń, proszę pana"),
           ("cp932", "これは日本語の文章です。今日は天気がいいですね。"),
           ("gb18030", "这是一个中文句子，用来测试编码检测是否正确。")]


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(("encoding", "text"), ENCODED)
def test_the_advice_for_another_encoding_is_right(tmp_path: Path, encoding: str, text: str,
                                                  packed: str) -> None:
    """The command that it names is run, and gives the rows."""
    rows = [{"q": f"{text} {number}"} for number in range(3)]
    content = "\n".join(["{}", *(json.dumps(row, ensure_ascii=False) for row in rows)]).encode(encoding)
    path = put(tmp_path, f"my rows.jsonl{packed}", PACKED[packed](content))
    error = refused(path, "line 2: not UTF-8 text (byte 0x")
    assert text in error.hint, "the line as it would read"
    if shutil.which("iconv") is None:
        pytest.skip("iconv is not here, so the command cannot be run")
    subprocess.run(error.hint.splitlines()[-1], shell=True, check=True, cwd=tmp_path)
    assert values(tmp_path / f"my rows.utf8.jsonl{packed}")[1:] == rows


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark(tmp_path: Path, encoding: str) -> None:
    path = put(tmp_path, "a.csv", "q,n\n“It’s” café,1\n".encode(encoding))
    error = refused(path, "without a byte-order mark")
    if shutil.which("iconv") is None:
        pytest.skip("iconv is not here, so the command cannot be run")
    subprocess.run(error.hint, shell=True, check=True)
    assert values(tmp_path / "a.utf8.csv") == [{"q": "“It’s” café", "n": "1"}]


@pytest.mark.parametrize("content",
                         [b'{"q": "caf\xc3\xa9"}\n{"q": "caf\xe9"}\n', '{"q": "é"}\n{"q": "é'.encode()[:-1]])
def test_a_file_that_is_mostly_utf_8_is_not_converted(tmp_path: Path, content: bytes) -> None:
    error = refused(put(tmp_path, "a.jsonl", content), "line 2: not UTF-8 text")
    assert "iconv" not in error.hint
    assert "Other lines are UTF-8" in error.hint


@pytest.mark.parametrize("case", ["cp1252.jsonl"])
def test_what_windows_writes(assets: Path, tmp_path: Path, case: str) -> None:
    path = Path(shutil.copy(assets / "cases" / "22" / case, tmp_path))
    error = refused(path, "not UTF-8 text (byte 0x92)")
    assert f"iconv -f WINDOWS-1252 -t UTF-8 {path} > {tmp_path / 'cp1252.utf8.jsonl'}" in error.hint


# --- tables ---


def test_bytes_that_are_no_text_stay_bytes_of_their_row(tmp_path: Path) -> None:
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 2, [
        None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")])
    path = put(tmp_path, "a.parquet", parquet(pyarrow.table({"q": broken})))
    refused(path, "row 2: the column 'q' holds what Python cannot")
    source = opened(path, skip=True)
    assert [row.values for row in source.rows()] == [{"q": "a"}]
    assert source.skipped.count == 1


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_file_s_shared_values_are_bounded_as_they_are_read(tmp_path: Path, nested: bool) -> None:
    """A value of a mebibyte that a thousand rows share is stored once: no batch of them is held at once."""
    values_, indices = ["x" * (1 << 20), *map(str, range(2000))], [0] * 300 + [*range(1, 2000)]
    rows = [values_[index] for index in indices]
    path = put(tmp_path, "a.parquet", parquet([{"q": [row] if nested else row} for row in rows]))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        for count, row in enumerate(opened(path).rows()):
            assert row.values["q"] == ([rows[count]] if nested else rows[count])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == len(rows) - 1
    assert peak < 200 << 20


WHOLE = {"stream.arrow": arrow([{"q": "text" * 9, "l": [[1], []]}] * 20, False),
         "a.jsonl.gz": PACKED[".gz"](LINES), "file.arrow": arrow([{"q": "text" * 9, "l": [[1], []]}] * 20,
                                                                 True), "a.jsonl.zst": PACKED[".zst"](LINES),
         "a.parquet": parquet([{"q": "text" * 9, "l": [[1], []]}] * 20), "a.xlsx": xlsx([["q"], ["text"]])}


@pytest.mark.parametrize("name", WHOLE)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
       end=st.integers(0, 1 << 16))
def test_a_damaged_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str,
                                           changes: list[tuple[int, int]], end: int) -> None:
    content = bytearray(WHOLE[name])
    for at, byte in changes:
        content[at % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content[:end] if end % 3 == 0 else content)
    try:
        values(path)
    except TunesmithError as error:
        assert error.exit_code == 4
        assert name in error.message


def test_a_spreadsheet_that_is_made_to_fill_the_memory(tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.data.sources import spreadsheet

    monkeypatch.setattr(spreadsheet, "_MOST_UNPACKED_BYTES", 1 << 20)
    stream = io.BytesIO(xlsx([["a"], [1]]))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/more.xml", b" " * (16 << 20))
    refused(put(tmp_path, "a.xlsx", stream.getvalue()), "made to fill the memory")


def test_without_openpyxl_the_install_line_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "a.xlsx", xlsx([["a"], [1]]))
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(EnvironmentFault) as caught:
        values(path)
    assert caught.value.hint == "pip install 'tunesmith[xlsx]'"


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow", "a.xlsx", "a.jsonl.gz"])
def test_a_file_without_permission(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, name, GOOD)
    without_permission(path)
    error = refused(path, "cannot be read: Permission denied")
    assert f"chmod u+r {path}" in error.hint


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    refused(tmp_path / "a.jsonl", "a pipe or a device")
    put(tmp_path, "b.jsonl", GOOD)
    with pytest.raises(DataError, match="a pipe or a device"):
        values(tmp_path)


# --- skipping ---


@pytest.mark.parametrize(("name", "content", "good", "first"), [
    ("a.jsonl", GOOD + "{broken\n[1]\n" + GOOD + '{"a": 1, "a": 2}\n', 2, "a.jsonl, line 2: broken JSON"),
    ("a.jsonl", GOOD.encode() + b'{"a": "\xe9"}\n', 1, "a.jsonl, line 2: not UTF-8 text (byte 0xe9)"),
    ("a.json", '[{"a": 1}, 2, {"a": 3}]', 2, "a.json, row 2: a row is a JSON object"),
    ("lines.json", GOOD + GOOD + "{broken\n" + GOOD, 3, "lines.json, line 3: broken JSON"),
    ("a.csv", 'a,b\n1,2\n3\n"x"y,5\n6,7\n', 2, "a.csv, line 3: 1 fields, the header has 2"),
    ("a.csv", b"a,b\n1,\xe9\n6,7\n", 1, "a.csv, line 2: not UTF-8 text"),
    ("a.xlsx", xlsx([["a"], [1], [2, 3], [4]]), 2, "a.xlsx, sheet Sheet1, row 3: 1 cells"),
])
def test_bad_rows_are_skipped_counted_and_told(tmp_path: Path, name: str, content: str | bytes, good: int,
                                               first: str) -> None:
    path, told = put(tmp_path, name, content), list[str]()
    source = opened(path, skip=True, tell=told.append)
    for _ in range(2):
        assert len(list(source.rows())) == good
        assert source.skipped.count == len(source.skipped.first) > 0
        assert first in source.skipped.first[0]
    assert len(told) == 1
    assert f"{source.skipped.count} row" in told[0]
    assert first in told[0]
    refused(path, first)


@pytest.mark.parametrize("content", ['a,b\n1,2\n"3,4\n' + "5,6\n" * 10, 'a,b\n1,2\n"' + "x" * 100])
def test_a_quote_that_is_never_closed_is_not_skipped(tmp_path: Path, content: str) -> None:
    """All rows after it stand within the quotes."""
    refused(put(tmp_path, "a.csv", content), "line 3: broken CSV: unexpected end", skip=True)


@pytest.mark.parametrize(("good", "bad", "fine"), [
    (1, 100, True), (9899, 100, True), (5000, 101, False), (10_100, 102, True), (10_000, 102, False)])
def test_too_many_bad_rows_are_an_error(tmp_path: Path, good: int, bad: int, fine: bool) -> None:
    path = put(tmp_path, "a.jsonl", "{broken\n" * bad + GOOD * good)
    if fine:
        assert len(values(path, skip=True)) == good
    else:
        error = refused(path, f"{bad} of {good + bad:,} rows cannot be used", skip=True)
        assert "line 1: broken JSON" in error.message


def test_nothing_but_bad_rows_is_no_data(tmp_path: Path) -> None:
    refused(put(tmp_path, "a.jsonl", "{broken\n"), "has no rows", skip=True)


def test_a_thousand_rows_of_another_encoding_cost_no_advice_each(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", GOOD.encode() * 200_000 + b'{"a": "\xe9"}\n' * 1900)
    began = time.monotonic()
    source = opened(path, skip=True)
    assert sum(1 for _ in source.rows()) == 200_000
    assert source.skipped.count == 1900
    assert time.monotonic() - began < 60


def test_the_limit_does_not_count_what_was_read_before() -> None:
    bad = BadRows(skip=True)
    for _ in range(2):
        bad.begin()
        for _ in range(60):
            bad.reject(DataError("x"))
        bad.require_few(100)
    assert bad.count == 60
