"""A data set on the Hub: configurations, splits and slices; what is not there is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from source_files import parquet

from hub.server import HubServer

CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*.parquet
  - split: test
    path: main/test.parquet
- config_name: other
  data_files: other/rows.parquet
---
"""
#: Opens each source of a list, and prints what came of it.
SCRIPT = """
import json, sys
from tunesmith.data.sources import open_sources
from tunesmith.errors import TunesmithError
for source, split, name in json.loads(sys.argv[1]):
    try:
        opened = open_sources(source, split, "data.source", name=name)
        rows = [[row.values["n"] for row in opened.rows()] for _ in range(2)]
        print(json.dumps([rows[0], opened.files, rows[0] == rows[1]]))
    except TunesmithError as error:
        print(json.dumps([error.exit_code, error.setting, str(error)]))
"""


def rows(start: int, stop: int) -> list[dict[str, int]]:
    return [{"n": number} for number in range(start, stop)]


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        hub.add("dataset", "maker/two", {
            "README.md": CARD.encode(), "main/train-0.parquet": parquet(rows(0, 60)),
            "main/train-1.parquet": parquet(rows(60, 100)), "main/test.parquet": parquet(rows(100, 110)),
            "other/rows.parquet": parquet(rows(7, 8))})
        hub.add("dataset", "maker/plain", {"data/train-00000-of-00001.parquet": parquet(rows(0, 3)),
                                           "data/validation-00000-of-00001.parquet": parquet(rows(3, 5))})
        yield hub


def results(hub: HubServer, folder: Path, *asked: tuple[str, str, str | None]) -> list[Any]:
    """What each question gives, all of them in one process."""
    env = {**os.environ, **hub.environment(), "HF_HOME": str(folder), "TUNESMITH_HUB_WAIT": "0.01"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(asked)], env=env, capture_output=True,
                          text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_configurations_splits_and_slices(hub: HubServer, tmp_path: Path) -> None:
    asked = [("train", "main"), ("test", "main"), ("train[:5%]", "main"), ("train[-2:]+test[:1]", "main"),
             ("all", "main"), ("train", "other")]
    found = results(hub, tmp_path, *(("maker/two", split, name) for split, name in asked))
    assert [each[0] for each in found] == [
        [*range(100)], [*range(100, 110)], [*range(5)], [98, 99, 100], [*range(110)], [7]]
    assert all(same for _, _, same in found)
    assert found[0][1] == ["maker/two/main/train-0.parquet", "maker/two/main/train-1.parquet"]
    assert found[1][1] == ["maker/two/main/test.parquet"]
    assert found[5][1] == ["maker/two/other/rows.parquet"]


def test_what_is_not_there_is_named(hub: HubServer, tmp_path: Path) -> None:
    several, unknown, split, odd, plain = results(
        hub, tmp_path, ("maker/two", "train", None), ("maker/two", "train", "mian"),
        ("maker/two", "held", "main"), ("maker/two", "train[x:]", "main"), ("maker/plain", "train", None))
    assert several[:2] == [4, "data.name"]
    assert "maker/two has several configurations: main, other" in several[2]
    assert "--set data.name='main'" in several[2]
    assert unknown[:2] == [4, "data.name"]
    assert "no configuration 'mian'" in unknown[2]
    assert split[:2] == [4, "data.split"]
    assert "has no split 'held'" in split[2]
    assert "It has train, test." in split[2]
    assert odd[0] == 4
    assert "train[x:]" in odd[2]
    assert plain[0] == [0, 1, 2]


def test_a_gated_data_set_says_so(hub: HubServer, tmp_path: Path) -> None:
    hub.add("dataset", "maker/gated", {"train.jsonl": b'{"n": 7}\n'}, gated=True)
    ((code, _, text),) = results(hub, tmp_path, ("maker/gated", "train", None))
    assert code == 8
    assert "data.source: maker/gated: the Hub asks you to accept its terms first" in text
