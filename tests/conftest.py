"""Shared by all tests: where real inputs may lie, small recipes, the command line as a user runs it."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from fork_server import ForkServer

pytest_plugins = ["story", "interpreter"]
settings.register_profile("here", deadline=None)  # no timing asserts
settings.load_profile("here")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT.parent / "shared" / "assets"

RECIPE = """
model: {base: "embedded:sprout", quantization: none}
data: {source: "embedded:quotes", prompt: "{quote} ->: ", completion: "{tags}", loss_on: completion,
       validation: 12}
train: {max_steps: 6, batch_size: 8, learning_rate: 5.0e-3, warmup_steps: 1, save_steps: 2, eval_steps: 3}
judge: {max_new_tokens: 12, samples: 1, stop_rows: 4}
"""


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real inputs; skips where it is absent."""
    if not ASSETS.is_dir():
        pytest.skip(f"the real inputs are not here ({ASSETS})")
    return ASSETS


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe file of six steps on the embedded base."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def tunesmith(*words: str, cwd: Path, env: dict[str, str] | None = None,
              timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as a user does."""
    if all(name.lower().startswith(("hf_", "tunesmith_", "no_proxy")) for name in env or {}):
        return _fork_server().run(list(words), cwd=cwd, env={**os.environ, **(env or {})}, timeout=timeout)
    return subprocess.run([sys.executable, "-m", "tunesmith.cli.main", *words], cwd=cwd, capture_output=True,
                          text=True, timeout=timeout, env={**os.environ, **(env or {})})


@cache
def _fork_server() -> ForkServer:
    """One for each process that runs tests; it ends with that."""
    server = ForkServer()
    atexit.register(server.close)
    return server


def tunesmith_json(*words: str, cwd: Path) -> dict[str, object]:
    """The same with --json; the whole of stdout must be one JSON object."""
    done = tunesmith(*words, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
