"""A large data set becomes the same rows as a small one, cached or not, and whatever ends its making."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunesmith
from conftest import RECIPE
from tunesmith import embedded
from tunesmith.data import dataset
from tunesmith.data.cache import cache_folder
from tunesmith.data.examples import Example, ExampleMaker, Form
from tunesmith.data.large_text import LargeText
from tunesmith.data.making import Loader, Making
from tunesmith.data.remarks import remarks_on
from tunesmith.data.rows import Row
from tunesmith.data.sets import Dataset, Texts
from tunesmith.data.split import HASH, held_out_by, stands_in
from tunesmith.data.token_worker import error_as_json, error_from
from tunesmith.data.tokenize import rules_of
from tunesmith.errors import DataError, EnvironmentFault, Interrupted, Kind, RecipeError
from tunesmith.model.files import locate_base, stop_ids
from tunesmith.model.tokenizer import load_tokenizer, tokenizer_fingerprint
from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.training.signals import StopSignal
from tunesmith.verbs.prepare import loader_of

CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


@pytest.fixture(autouse=True)
def cache_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def recipe_of(base: str = embedded.BASE_NAME, **data: Any) -> Recipe:
    data = {"source": embedded.QUOTES_NAME, "prompt": "{quote} ->: ", "completion": "{tags}"} | data
    return parse_recipe(json.dumps({"model": {"base": base}, "data": data}))


def read(recipe: Recipe, tell: Any, training: bool = True) -> tuple[Texts, Dataset]:
    """As `prepare` does."""
    base = locate_base(recipe.model.base, None)
    tokenizer = load_tokenizer(base)
    text = dataset.read_text(recipe.data, tell)
    making = Making(loader_of(base), tokenizer_fingerprint(base, tokenizer), tell)
    rules = rules_of(recipe.data, stop_ids(base, tokenizer))
    return text, dataset.tokens_of(text, tokenizer, rules, making, training=training)


def seen(recipe: Recipe, training: bool = True) -> tuple[dict[str, Any], list[str]]:
    """Everything that a run takes from its data, and what it says of it; without where the cache is."""
    said: list[str] = []
    text, data = read(recipe, said.append, training)
    said += remarks_on(recipe.data, text, data)
    found = {"train": list(data.train), "validation": list(data.validation), "counts": data.counts,
             "remarks": data.remarks, "special": data.special, "content": text.content_hash,
             "written": dict(text.written), "skipped": text.skipped, "repeated": text.repeated,
             "texts": (list(text.train), list(text.validation))}
    # which of the bad rows are named first depends on who finds them
    return found, [re.sub(r"(\d+ rows skipped).*", r"\1", line) for line in said
                   if str(cache_folder()) not in line]


@pytest.fixture
def chat_base(tmp_path: Path) -> str:
    """The embedded base with a chat template."""
    folder = tmp_path / "chat-base"
    shutil.copytree(str(embedded.path_of(embedded.BASE_NAME)), folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    return str(folder)


def chats(path: Path) -> str:
    """A file of conversations, some of two turns, some with keys that nothing reads."""
    rows = []
    for n in range(60):
        turns = [{"role": "user", "content": f"Question {n} </s>?"},
                 {"role": "assistant", "content": f"Answer {n}."}] * (1 + n % 2)
        rows.append({"messages": [{**turn, "mood": "good"} if n % 7 == 0 else turn for turn in turns]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def quotes(path: Path, count: int, bad: int = 0) -> str:
    """A file of rows, one of them often; bad: so many are no JSON, and as many lack a column."""
    rows = [json.dumps({"quote": f"quote {n % 37}", "tags": [n % 37]}) for n in range(count)]
    rows += ["{broken"] * bad + [json.dumps({"tags": []})] * bad
    random.Random(0).shuffle(rows)
    path.write_text("".join(row + "\n" for row in rows))
    return str(path)


CASES: dict[str, dict[str, Any]] = {
    "share": {"validation": 0.05, "max_length": 64},
    "windows": {"validation": 7, "max_length": 16, "overlong": "split", "stride": 4, "loss_on": "all"},
    "cut": {"validation": 0.1, "max_length": 24, "overlong": "truncate", "loss_on": "all"},
    "dropped": {"validation": 0.1, "max_length": 40, "overlong": "drop"},
    "nothing held out": {"validation": 0}}


def assert_the_same(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, made, and from the cache."""
    small = {training: seen(recipe, training) for training in (True, False)}
    monkeypatch.setattr(dataset, "IN_MEMORY_ROWS", 10)
    assert isinstance(dataset.read_text(recipe.data), LargeText)
    for training in (True, True, False):
        assert seen(recipe, training) == small[training]
    text = dataset.read_text(recipe.data)  # of which nothing is known from the cache
    assert text.content_hash == small[True][0]["content"]
    assert (list(text.train), list(text.validation)) == small[True][0]["texts"]


@pytest.mark.parametrize("case", CASES)
def test_large_is_as_small(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_the_same(recipe_of(**CASES[case]), monkeypatch)


def test_large_is_as_small_for_rows_that_are_held_out_too(tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = tmp_path / "held.jsonl"
    held_out.write_text("".join(json.dumps({"quote": f"quote {n}", "tags": [n]}) + "\n"
                                for n in (1, 3, 99)))
    recipe = recipe_of(source=quotes(tmp_path / "q.jsonl", 200), validation=str(held_out))
    # what repeated rows would say of columns is not told apart, what they are is
    assert_the_same(recipe, monkeypatch)


def test_large_is_as_small_for_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(source=quotes(tmp_path / "q.jsonl", 1000, bad=4), bad_rows="skip", validation=0.1)
    assert_the_same(recipe, monkeypatch)
    assert "8 rows skipped" in " ".join(seen(recipe)[1])


def test_large_is_as_small_for_mixtures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [quotes(tmp_path / "a.jsonl", 90), quotes(tmp_path / "b.jsonl", 60)]
    assert_the_same(recipe_of(source=sources, weights=[2.0, 1.0], validation=0.1), monkeypatch)


def test_large_is_as_small_for_chats(tmp_path: Path, chat_base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(chat_base, source=chats(tmp_path / "c.jsonl"), prompt="", completion=None,
                       messages="messages", validation=0.1)
    assert_the_same(recipe, monkeypatch)
    assert '"mood" of' in " ".join(seen(recipe)[1])


def test_a_large_run_is_as_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe(RECIPE)
    adapters = []
    for name in ("small", "made", "cached"):
        if name == "made":
            monkeypatch.setattr(dataset, "IN_MEMORY_ROWS", 10)
        result = tunesmith.train(recipe, run=tmp_path / name)
        adapters.append((Path(result["adapter"]) / "adapter_model.safetensors").read_bytes())
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        adapters[-1] += json.dumps([manifest["data"], result["eval_loss_after"]]).encode()
    assert adapters[0] == adapters[1] == adapters[2]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "IN_MEMORY_ROWS", 10)


@pytest.mark.usefixtures("large")
def test_what_makes_the_tokens_names_the_cache(tmp_path: Path, chat_base: str, cache_place: Path) -> None:
    source = Path(quotes(tmp_path / "q.jsonl", 40))
    plain = {"source": str(source), "validation": 4}
    count = 0
    for changes in ({}, {"prompt": "{quote}: "}, {"max_length": 100}, {"loss_on": "all"},
                    {"append_eos": False}):
        seen(recipe_of(**plain | changes))
        count += 1
        assert len(os.listdir(cache_place)) == count, changes
    for same in ({}, {"validation": 0}, {"validation": 0.2}):  # which rows are held out is no part of it
        seen(recipe_of(**plain | same))
        assert len(os.listdir(cache_place)) == count, same
    source.write_text(source.read_text() + json.dumps({"quote": "new", "tags": []}) + "\n")
    seen(recipe_of(**plain))
    assert len(os.listdir(cache_place)) == count + 1
    seen(recipe_of(chat_base, **plain))
    assert len(os.listdir(cache_place)) == count + 2
    Path(chat_base, "chat_template.jinja").write_text(CHATML + " ")
    seen(recipe_of(chat_base, **plain))
    assert len(os.listdir(cache_place)) == count + 3


@pytest.mark.usefixtures("large")
def test_a_damaged_cache_is_made_again_and_said(cache_place: Path) -> None:
    recipe, said = recipe_of(validation=4), []
    whole = seen(recipe)
    (entry,) = cache_place.iterdir()
    with open(entry / "rows.arrow", "r+b") as file:
        file.truncate(1000)
    text, data = read(recipe, said.append)
    assert list(data.train) == whole[0]["train"]
    assert any("are damaged (rows.arrow is not as it was written): they are made again" in line
               for line in said)
    assert list(cache_place.iterdir()) == [entry]
    assert len(text.train) == len(data.train)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(("changes", "message"), [
    ({"max_length": 12, "overlong": "error"}, "line 1: longer than data.max_length, 12 tokens"),
    ({"completion": "{nothing}"}, 'no column "nothing"'),
    ({"max_length": 2, "overlong": "drop"}, "rows are longer than 2 tokens")])
def test_an_error_in_a_row_is_the_same(changes: dict[str, Any], message: str, cache_place: Path) -> None:
    with pytest.raises(DataError, match=message):
        seen(recipe_of(validation=0, **changes))
    assert not [each for each in cache_place.glob("*") if each.name.startswith(".tmp")]
    assert not workers_of(os.getpid())


@pytest.mark.usefixtures("large")
def test_a_worker_that_is_killed_ends_it_in_words(cache_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(self: Any, rows: Any) -> Any:
        os.kill(self._processes[0].pid, signal.SIGKILL)
        return real(self, rows)

    from tunesmith.data.token_workers import TokenWorkers

    real = TokenWorkers.run
    monkeypatch.setattr(TokenWorkers, "run", kill)
    with pytest.raises(EnvironmentFault, match=r"was ended by signal 9 \(Killed\)") as caught:
        seen(recipe_of(validation=4))
    assert "memory is full" in caught.value.hint
    assert not list(cache_place.iterdir())
    assert not workers_of(os.getpid())


@pytest.mark.usefixtures("large")
def test_a_bug_in_a_worker_is_a_bug_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loads_badly.py").write_text("def load():\n    raise ZeroDivisionError('a bug')\n")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = recipe_of(validation=4)
    text = dataset.read_text(recipe.data)
    making, rules = Making(Loader("loads_badly", "load", {}), "t"), rules_of(recipe.data, (2,))
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        dataset.tokens_of(text, None, rules, making)


def start(tmp_path: Path, cache_place: Path) -> subprocess.Popen[str]:
    """A run that tokenizes long enough to be ended."""
    path = tmp_path / "many.jsonl"
    with open(path, "w") as file:
        for n in range(60_000):
            file.write(json.dumps({"quote": f"the quote {n} " * 30, "tags": ["a"]}) + "\n")
    (tmp_path / "r.yaml").write_text(RECIPE.replace("embedded:quotes", str(path)))
    process = subprocess.Popen([sys.executable, "-m", "tunesmith.cli.main", "train", "r.yaml"], cwd=tmp_path,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(cache_place.glob(".tmp-*/rows.arrow")) or not workers_of(process.pid):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    return process


def workers_of(pid: int) -> list[psutil.Process]:
    return [each for each in psutil.Process(pid).children() if "token_worker" in " ".join(each.cmdline())]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143),
                                              (signal.SIGKILL, -9)])
def test_a_signal_leaves_nothing_that_is_read(tmp_path: Path, cache_place: Path, number: int,
                                              code: int) -> None:
    process = start(tmp_path, cache_place)
    workers = workers_of(process.pid)
    process.send_signal(number)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(30) == code
    assert "Traceback" not in said, said
    psutil.wait_procs(workers, timeout=20)
    assert not [each for each in workers if each.is_running()]
    left = list(cache_place.iterdir())
    assert all(each.name.startswith(".tmp-") for each in left)
    assert bool(left) == (number == signal.SIGKILL)
    from tunesmith.data.cache import new_entry

    with new_entry("other") as writer:
        writer.finish({"written": [], "said": [], "skipped": 0})
    assert [each.name for each in cache_place.iterdir()] == ["other"]


@pytest.mark.usefixtures("large")
def test_a_signal_that_fell_into_a_callback_stops_it_yet(cache_place: Path,
                                                         capfd: pytest.CaptureFixture[str]) -> None:
    class Falls:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    recipe, base = recipe_of(validation=4), locate_base(embedded.BASE_NAME, None)
    tokenizer, text = load_tokenizer(base), dataset.read_text(recipe.data)
    with StopSignal() as stop:
        Falls()  # and Python drops the exception
        making = Making(loader_of(base), "t", progress=lambda done, whole: stop.check())
        with pytest.raises(Interrupted, match="Stopped"):
            dataset.tokens_of(text, tokenizer, rules_of(recipe.data, (2,)), making)
    assert not list(cache_place.iterdir())
    assert "Traceback" not in capfd.readouterr().err


def as_it_was_defined(hashes: list[bytes], amount: float | int) -> list[bool]:
    """Hold-out as its words say: groups in the order of their hashes, as long as they fit."""
    count = max(1, round(amount * len(hashes))) if amount < 1 else int(amount)
    sizes = {each: hashes.count(each) for each in hashes}
    held_out: set[bytes] = set()
    total = 0
    for each in sorted(sizes):
        if total + sizes[each] <= count:
            held_out.add(each)
            total += sizes[each]
    held_out = held_out or {min(sizes, key=lambda each: (sizes[each], each))}
    return [each in held_out for each in hashes]


contents = st.lists(st.sampled_from([bytes([n]) * 8 + bytes([m]) * 24 for n in (0, 1, 255) for m in (0, 9)]),
                    min_size=1, max_size=20)


@given(contents, st.one_of(st.floats(0.01, 0.99), st.integers(1, 20)))
def test_hold_out_by_hashes(hashes: list[bytes], amount: float | int) -> None:
    expected = as_it_was_defined(hashes, amount)
    array = np.frombuffer(b"".join(hashes), dtype=HASH)
    if all(expected):
        with pytest.raises(DataError, match="leaves none to learn from"):
            held_out_by(array, amount)
        return
    assert held_out_by(array, amount).tolist() == expected


@given(contents, contents)
def test_stands_in(hashes: list[bytes], others: list[bytes]) -> None:
    arrays = [np.frombuffer(b"".join(each), dtype=HASH) for each in (hashes, others)]
    assert stands_in(*arrays).tolist() == [each in others for each in hashes]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_hundred_thousand_rows_in_bounded_memory(tmp_path: Path) -> None:
    """60 million tokens; every process that takes part is looked at."""
    path = tmp_path / "many.jsonl"
    with open(path, "w") as file:
        for n in range(300_000):
            file.write(json.dumps({"quote": f"the quote of {n} " * 40, "tags": ["a"]}) + "\n")
    (tmp_path / "r.yaml").write_text(RECIPE.replace("embedded:quotes", str(path)))
    peaks = []
    for name in ("made", "cached"):
        process = psutil.Popen([sys.executable, "-m", "tunesmith.cli.main", "train", "r.yaml", "--run", name],
                               cwd=tmp_path)
        peak = 0
        while process.poll() is None:
            try:
                parts = [process, *process.children(recursive=True)]
                peak = max(peak, sum(each.memory_info().rss for each in parts))
            except psutil.Error:
                continue
            time.sleep(0.1)
        assert process.returncode == 0
        peaks.append(peak)
    assert max(peaks) < 2 << 30, peaks  # with torch and the base


def test_an_example_goes_to_another_process_and_back_as_it_is() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"when": [1.5, None, "\u2028"]}}}
    row = Row({"m": [{"role": "user", "content": "é\n"},
                     {"role": "assistant", "content": None, "tool_calls": [call]}],
               "tools": [{"name": "f"}], "chat_template_kwargs": {"x": True}, "id": 3}, "rows, line 1")
    for example in (ExampleMaker(Form(messages="m")).make(row), Example("a\n", "b", None, "p")):
        assert "\n" not in example.to_json()
        again = Example.from_json(example.to_json().encode())
        assert again == example
        assert again.content_hash == example.content_hash


def test_an_error_goes_back_from_another_process_as_it_is() -> None:
    for error in (DataError("a", "b"), RecipeError("c", setting="data.x"),
                  DataError("d", kind=Kind.DISK_FULL)):
        again = error_from(error_as_json(error))
        assert (type(again), str(again), again.kind) == (type(error), str(error), error.kind)
