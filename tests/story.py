"""Fixtures of the notebook's story on the tests' Hub: base and data by id, a run that pushed its adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import tunesmith
from hub.server import HubServer
from tunesmith import embedded

BASE, QUOTES, ADAPTER = "maker/sprout", "maker/quotes", "tester/quotes-lora"
#: What a sharing test asks an adapter.
PROMPT = ("--prompt", "“Be yourself.” ->: ", "--max-new-tokens", "8")
RECIPE = f"""
model: {{base: {BASE}, quantization: int8}}
data: {{source: {QUOTES}, prompt: "{{quote}} ->: ", completion: "{{tags}}", loss_on: completion,
       validation: 12}}
train: {{max_steps: 6, batch_size: 8, learning_rate: 5.0e-3, warmup_steps: 1, save_steps: 6, eval_steps: 0}}
judge: {{max_new_tokens: 12, samples: 1, stop_rows: 4}}
"""


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    """A Hub that has the embedded base as a model and the quotes as a data set."""
    with HubServer() as hub:
        folder = embedded.path_of(embedded.BASE_NAME)
        assert folder is not None
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        files["README.md"] = b"---\nlicense: apache-2.0\n---\n\nA small base.\n"
        hub.add("model", BASE, files)
        rows = (embedded.path_of("embedded:quotes") or Path()).read_bytes().splitlines(keepends=True)[:200]
        hub.add("dataset", QUOTES,
                {"train.jsonl": b"".join(rows), "README.md": b"---\nlicense: cc-by-4.0\n---\n"})
        yield hub


@pytest.fixture
def env(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    """A user with a token and an empty cache, who does not wait long."""
    hub.clear_faults()
    return {**hub.environment(), "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path / "cache"),
            "TUNESMITH_HUB_WAIT": "0.05", "TUNESMITH_HUB_SILENCE": "3"}


def as_json(*words: str, cwd: Path, env: dict[str, str]) -> dict[str, Any]:
    done = tunesmith(*words, "--json", cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def run(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on that data and base, which pushed its adapter when it ended."""
    folder = tmp_path_factory.mktemp("story")
    env = {**hub.environment(), "HF_TOKEN": hub.token, "HF_HOME": str(folder / "cache"),
           "TUNESMITH_HUB_WAIT": "0.05"}
    (folder / "my.yaml").write_text(RECIPE + f"share: {{repo: {ADAPTER}}}\n")
    result = as_json("train", "my.yaml", cwd=folder, env=env)
    assert result["pushed"]["repo"] == ADAPTER, result
    assert result["pushed"]["private"] is True
    return folder / "runs" / "my"
