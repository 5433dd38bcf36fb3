"""The tests' quick start of the command line is the start of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import tunesmith
from fork_server import ForkServer


@pytest.mark.parametrize("words",
                         [["--help"], ["verify", "nowhere"], ["nope"], ["plan", "small.yaml"], ["train"],
                                   ["generate", "nowhere", "--prompt", "a"]])
def test_it_answers_as_a_process_of_its_own(recipe: Path, words: list[str]) -> None:
    here = recipe.parent
    own = subprocess.run([sys.executable, "-m", "tunesmith.cli.main", *words], cwd=here, capture_output=True,
                         text=True, check=False)
    forked = tunesmith(*words, cwd=here)
    assert (forked.returncode, forked.stdout, forked.stderr) == (own.returncode, own.stdout, own.stderr)


def test_each_command_has_its_own_environment_and_folder(tmp_path: Path, recipe: Path) -> None:
    assert "offline" in tunesmith("doctor", cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"}).stdout
    other = tunesmith("doctor", cwd=recipe.parent,
                      env={"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}).stdout
    assert "127.0.0.1:9" in other
    assert "127.0.0.1:9" not in tunesmith("doctor", cwd=tmp_path).stdout


def test_a_command_that_takes_too_long_is_killed_and_the_next_one_runs(recipe: Path) -> None:
    server = ForkServer()
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            server.run(["train", str(recipe)], cwd=recipe.parent, env=dict(os.environ), timeout=0.3)
        assert server.run(["--help"], cwd=recipe.parent, env=dict(os.environ), timeout=60).returncode == 0
    finally:
        server.close()
