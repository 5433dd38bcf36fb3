"""Token rows on disk: what is written comes back, whole or not at all, whoever dies or writes at once."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import cache
from tunesmith.data.cache import EXAMPLE, Damaged, cache_folder, new_entry, open_entry
from tunesmith.data.store import batch_of
from tunesmith.data.token_rows import largest_of, lengths_of, loss_tokens_of, taken
from tunesmith.data.tokenize import TokenRow
from tunesmith.errors import DiskError

ABOUT: dict[str, Any] = {"written": [["tags", "as JSON", 3]], "said": ["2 rows skipped"], "skipped": 2}


@pytest.fixture(autouse=True)
def cache_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def a_row(ids: list[int], mask: list[bool], prompt: str, reference: str, place: str, begins: bool,
          other: list[int]) -> TokenRow:
    mask = (mask + [True] * len(ids))[:len(ids)]
    prompt_ids = ids[:len(other)] if begins else other
    return TokenRow(ids, mask, prompt_ids, prompt, reference, place)


tokens = st.lists(st.integers(0, 2**31 - 1), max_size=20)
texts = st.text(st.characters(codec="utf-8"), max_size=12)
token_rows = st.builds(a_row, tokens, st.lists(st.booleans(), max_size=20), texts, texts,
                       st.text(max_size=8), st.booleans(), tokens)


def windows(row: TokenRow, count: int) -> list[TokenRow]:
    """The rows of one example, which share its texts."""
    return [replace(row, ids=[n, *row.ids], loss_mask=[False, *row.loss_mask],
                    place=f"{row.place}, window {n}") for n in range(count)]


def write(key: str, batches: list[list[TokenRow]]) -> None:
    with new_entry(key) as writer:
        for rows in batches:
            examples = np.zeros(1, dtype=EXAMPLE)
            examples["rows"] = len(rows)
            writer.add(batch_of(rows), examples, ["{}"])
        writer.finish(ABOUT)


ROWS = [TokenRow([5, 6, 7, 8], [False, False, True, True], [5, 6], "p", "réf", "a.jsonl, line 1"),
        TokenRow([], [], [], "", "", "b\udcff.jsonl, line 2"),
        *windows(TokenRow([1, 2], [True, True], [], "", "a whole document", "c"), 3),
        TokenRow([9], [False], [4, 4], "other", "", "d")]


@given(st.lists(st.lists(st.one_of(token_rows.map(lambda row: [row]),
                                   token_rows.map(lambda row: windows(row, 3))), max_size=4), max_size=3))
def test_what_is_written_comes_back(batches: list[list[list[TokenRow]]]) -> None:
    rows = [[row for rows in batch for row in rows] for batch in batches]
    name = f"{len(os.listdir(cache_folder())) if cache_folder().exists() else 0}"
    write(name, rows)
    entry, flat = open_entry(name), [row for batch in rows for row in batch]
    assert entry is not None
    assert list(entry.rows) == flat
    assert lengths_of(entry.rows) == lengths_of(flat)
    assert loss_tokens_of(entry.rows).tolist() == loss_tokens_of(flat).tolist()
    assert largest_of(entry.rows).tolist() == largest_of(flat).tolist()
    assert entry.written == {("tags", "as JSON"): 3}
    assert (entry.said, entry.skipped) == (["2 rows skipped"], 2)


def test_rows_are_taken_without_copying_and_in_any_order() -> None:
    write("k", [ROWS[:2], ROWS[2:]])
    entry = open_entry("k")
    assert entry is not None
    table = entry.rows
    assert table[-1] == ROWS[-1]
    assert list(table[1:5:2]) == ROWS[1:5:2]
    some = taken(table, [4, 0, 4])
    assert list(some) == list(taken(ROWS, [4, 0, 4])) == [ROWS[4], ROWS[0], ROWS[4]]
    assert lengths_of(some) == [3, 4, 3]
    assert list(taken(some, [1])) == [ROWS[0]]
    with pytest.raises(IndexError):
        some[3]


def test_what_rows_share_is_kept_once() -> None:
    document = "x" * 1_000_000
    write("k", [windows(TokenRow([1], [True], [], "", document, "d"), 50)])
    entry = open_entry("k")
    assert entry is not None
    assert entry.rows[49].reference == document
    assert entry.bytes < 1_200_000


def test_there_is_no_entry_of_another_name(cache_place: Path) -> None:
    assert open_entry("k") is None
    write("k", [ROWS])
    assert open_entry("l") is None
    assert os.listdir(cache_place) == ["k"]


CALLS = ("write", "fsync", "rename", "mkdir")


class Trap:
    """Stands for functions of `os`; at the call with this number it does something else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, act: Any) -> None:
        self.count = 0
        for name in CALLS:
            monkeypatch.setattr(os, name, self._call(getattr(os, name), at, act))

    def _call(self, original: Any, at: int, act: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == at:
                act()
            return original(*args, **kwargs)
        return call


def calls_of_a_write(monkeypatch: pytest.MonkeyPatch) -> int:
    write("first", [ROWS])
    with monkeypatch.context() as patched:
        trap = Trap(patched, -1, None)
        write("counted", [ROWS])
    assert trap.count > 8  # the places where it can be broken off are not few
    return trap.count


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_failing_disk_leaves_nothing_at_any_moment(monkeypatch: pytest.MonkeyPatch, cache_place: Path,
                                                     number: int) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    count = calls_of_a_write(monkeypatch)
    for at in range(2, count):  # the first call finds the cache's folder, the last is its fsync
        with monkeypatch.context() as patched:
            Trap(patched, at, fail)
            with pytest.raises(DiskError, match="cache") as caught:
                write("k", [ROWS])
        assert caught.value.exit_code == 7
        assert "TUNESMITH_CACHE" in caught.value.hint
        assert sorted(os.listdir(cache_place)) == ["counted", "first"]
    write("k", [ROWS])
    entry = open_entry("k")
    assert entry is not None
    assert list(entry.rows) == ROWS


def test_killed_at_any_moment_it_leaves_nothing_that_is_read(monkeypatch: pytest.MonkeyPatch,
                                                             cache_place: Path) -> None:
    for at in range(1, calls_of_a_write(monkeypatch) + 1):
        child = os.fork()
        if child == 0:
            try:
                Trap(monkeypatch, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
                write("k", [ROWS])
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        try:
            entry = open_entry("k")
        except Damaged as error:
            pytest.fail(f"call {at}: {error}")
        assert entry is None or list(entry.rows) == ROWS
    write("l", [ROWS])
    assert not list(cache_place.glob(".tmp-*"))
    assert open_entry("l") is not None


def test_the_leftovers_of_the_living_stay(cache_place: Path) -> None:
    with new_entry("slow") as slow:
        write("fast", [ROWS])
        assert slow.folder.is_dir()
        slow.add(batch_of(ROWS), np.array([(b"", len(ROWS), 0, 0, False, 0)], dtype=EXAMPLE), ["{}"])
        slow.finish(ABOUT)
    assert sorted(os.listdir(cache_place)) == ["fast", "slow"]
    assert open_entry("slow") is not None


def _write_often(place: str, barrier: Any) -> None:
    os.environ["TUNESMITH_CACHE"] = place
    for n in range(10):
        barrier.wait()
        write(f"k{n}", [ROWS])
        entry = open_entry(f"k{n}")
        assert entry is not None
        assert list(entry.rows) == ROWS


def test_two_that_write_the_same_do_not_harm_each_other(tmp_path: Path, cache_place: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    both = [context.Process(target=_write_often, args=(str(tmp_path / "cache"), barrier)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    assert [each.exitcode for each in both] == [0, 0]
    assert sorted(os.listdir(cache_place)) == [f"k{n}" for n in range(10)]


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip_near_the_end(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-min(40, len(content))] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [_cut, _flip_near_the_end, _empty, _remove])
@pytest.mark.parametrize("name", ["rows.arrow", "examples.npy", "about.json"])
def test_damage_is_seen_and_a_new_one_takes_its_place(cache_place: Path, name: str, harm: Any) -> None:
    write("k", [ROWS])
    harm(cache_place / "k" / name)
    with pytest.raises(Damaged):
        open_entry("k")
    write("k", [ROWS])
    entry = open_entry("k")
    assert entry is not None
    assert list(entry.rows) == ROWS
    assert os.listdir(cache_place) == ["k"]


def test_an_entry_of_another_data_set_under_this_name_is_damage(cache_place: Path) -> None:
    write("k", [ROWS])
    about = json.loads((cache_place / "k" / "about.json").read_text())
    (cache_place / "k" / "about.json").write_text(json.dumps({**about, "skipped": 3}))
    with pytest.raises(Damaged, match=r"about.json is not as it was written"):
        open_entry("k")


def test_what_was_read_is_not_kept_in_memory() -> None:
    """30,000 rows of 1,000 tokens: 120 MB of them, of which a reader keeps a part."""
    program = """
import resource, sys
sys.path[:0] = [sys.argv[1]]
from test_store import *
rows = [TokenRow(list(range(n, n + 1000)), [True] * 1000, [], "", "", "") for n in range(100)]
batch = batch_of(rows)
with new_entry("k") as writer:
    examples = np.zeros(100, dtype=EXAMPLE)
    examples["rows"] = 1
    for _ in range(300):
        writer.add(batch, examples, ["{}"])
    writer.finish(ABOUT)
del rows, batch
table = open_entry("k").rows
before = resident = int(open("/proc/self/statm").read().split()[1])
for n in np.random.default_rng(0).permutation(len(table)).tolist():
    assert len(table[n].ids) == 1000
    if n % 16 == 0:
        resident = max(resident, int(open("/proc/self/statm").read().split()[1]))
print((resident - before) * resource.getpagesize() >> 20)
"""
    done = subprocess.run([sys.executable, "-c", program, str(Path(__file__).parent)], text=True, check=True,
                          capture_output=True, timeout=120)
    assert int(done.stdout) < 60


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.cache_folder() == Path("/x/tunesmith/tokens")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert cache.cache_folder() == Path("/h/.cache/tunesmith/tokens")
