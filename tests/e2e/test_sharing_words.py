"""What a user of push, pull and ids is told; a mistake costs nothing and is told what to do."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import tunesmith
from hub.server import HubServer
from story import ADAPTER, BASE, PROMPT, QUOTES, RECIPE, as_json

Env = dict[str, str]


def refused(*words: str, cwd: Path, env: Env, code: int, says: str) -> None:
    done = tunesmith(*words, cwd=cwd, env=env)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_pushed_says_where(hub: HubServer, run: Path, env: Env, tmp_path: Path) -> None:
    """The same command again, on the finished run, pushes what is missing, but leaves an edited card."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (tmp_path / "my.yaml").write_text(RECIPE)
    words = ("train", "my.yaml", "--run", "run", "--set", "share.repo=tester/late-wish")
    done = tunesmith(*words, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    commit = hub.commits("model", "tester/late-wish")[-1]
    assert f"/tester/late-wish (private) at {commit.oid[:12]}" in done.stdout
    repository = hub.repositories["model", "tester/late-wish"]
    repository.record({**commit.files, "README.md": b"# My own words\n"}, dict(commit.lfs), "edited", "main")
    again = tunesmith(*words, cwd=tmp_path, env=env)
    assert "was there already" in again.stdout
    assert hub.files("model", "tester/late-wish")["README.md"] == b"# My own words\n"
    assert tunesmith("verify", "run", cwd=tmp_path, env=env).returncode == 0


def test_a_copy_outside_its_run_keeps_its_card(hub: HubServer, run: Path, env: Env, tmp_path: Path) -> None:
    shutil.copytree(run / "adapter", tmp_path / "copy")
    before = hub.commits("model", ADAPTER)
    assert as_json("push", "copy", ADAPTER, cwd=tmp_path, env=env)["changed"] is False
    assert hub.commits("model", ADAPTER) == before
    pulled = as_json("pull", ADAPTER, "pulled", cwd=tmp_path, env=env)
    assert pulled["prompt"] == "QUOTE ->: "
    as_json("push", "pulled", "tester/again", cwd=tmp_path, env=env)
    cards = [hub.files("model", repo)["README.md"].decode() for repo in (ADAPTER, "tester/again")]
    assert cards[0].replace("quotes-lora", "again") == cards[1]


def test_an_id_is_an_adapter_for_push_and_verify_too(hub: HubServer, run: Path, env: Env,
                                                     tmp_path: Path) -> None:
    found = as_json("push", ADAPTER, "tester/by-id", cwd=tmp_path, env=env)
    commit = hub.commits("model", ADAPTER)[-1].oid
    assert f"A copy of {ADAPTER} at {commit[:12]}" in found["card"]
    weights = hub.files("model", "tester/by-id")["adapter_model.safetensors"]
    assert weights == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    checked = as_json("verify", "tester/by-id", cwd=tmp_path, env=env)
    assert checked["whole"] is True
    assert checked["checked"] == len([name for name in hub.files("model", "tester/by-id")
                                      if not name.startswith(".")])


def test_a_revision_is_a_branch_or_the_beginning_of_a_commit(hub: HubServer, run: Path, env: Env,
                                                             tmp_path: Path) -> None:
    commit = hub.commits("model", ADAPTER)[-1].oid
    assert as_json("generate", f"{ADAPTER}@{commit[:12]}", *PROMPT, cwd=tmp_path, env=env)["tokens"]
    for revision in ("main", commit, commit[:7]):
        assert as_json("pull", f"{ADAPTER}@{revision}", f"at-{revision}", cwd=tmp_path,
                       env=env)["commit"] == commit
    fresh = env | {"HF_HOME": str(tmp_path / "fresh")}
    assert as_json("pull", f"{ADAPTER}@{commit[:12]}", "here", cwd=tmp_path, env=fresh)["commit"] == commit
    wrong = ("0" if commit[0] != "0" else "1") + commit[1:12]
    refused("pull", f"{ADAPTER}@{wrong}", "there", cwd=tmp_path, env=fresh, code=8, says="no such revision")
    refused("pull", f"{ADAPTER}@", "there", cwd=tmp_path, env=fresh, code=2, says="ORG/NAME@REVISION")


def test_a_hub_that_is_down_costs_seconds(hub: HubServer, run: Path, env: Env, tmp_path: Path) -> None:
    """By the cache, each commit named, even by a short one; without, exit 8. No line of the client's own."""
    (tmp_path / "my.yaml").write_text(RECIPE)
    here = as_json("evaluate", ADAPTER, "--recipe", "my.yaml", cwd=tmp_path, env=env)
    down = env | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = tunesmith("evaluate", ADAPTER, "--recipe", "my.yaml", "--json", cwd=tmp_path, env=down)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["loss_tuned"] == here["loss_tuned"]
    for name in (ADAPTER, BASE, QUOTES):
        assert any(name in line and "the copy in the cache" in line
                   for line in done.stderr.splitlines()), name
    assert done.stderr.count("Trying again") == 1, "what is down for one is down for all"
    for raw in ("thrown while requesting", "Retrying in", "offline mode is enabled"):
        assert raw not in done.stderr
    commit = hub.commits("model", ADAPTER)[-1].oid
    assert as_json("generate", f"{ADAPTER}@{commit[:12]}", *PROMPT, cwd=tmp_path, env=down)["tokens"]
    refused("generate", "tester/elsewhere", *PROMPT, cwd=tmp_path, env=down, code=8,
            says="the Hub cannot be reached")
    refused("push", str(run), "tester/elsewhere", cwd=tmp_path, env=down, code=8,
            says="the Hub cannot be reached")


def test_the_dry_run_knows_who_would_see_it(hub: HubServer, run: Path, env: Env, tmp_path: Path) -> None:
    hub.add("model", "tester/shown-already", {"README.md": b"# shown\n"})
    dry = ("push", str(run), "tester/shown-already", "--dry-run")
    found = as_json(*dry, cwd=tmp_path, env=env)
    assert (found["exists"], found["private"]) == (True, False)
    assert "(public, which is there already)" in tunesmith(*dry, cwd=tmp_path, env=env).stdout
    refused(*dry, "--private", cwd=tmp_path, env=env, code=2, says="is public")
    new = as_json("push", str(run), "tester/brand-new", "--dry-run", cwd=tmp_path, env=env)
    assert (new["exists"], new["private"]) == (False, True)
    away = as_json("push", str(run), "tester/brand-new", "--dry-run", cwd=tmp_path,
                   env=env | {"HF_HUB_OFFLINE": "1"})
    assert (away["exists"], away["private"]) == (None, None)
    done = tunesmith("push", str(run), "tester/shown-already", cwd=tmp_path, env=env)
    assert done.returncode == 0
    assert "tester/shown-already is public" in done.stderr
    assert hub.files("model", "tester/shown-already").keys() >= {"adapter_model.safetensors", "README.md"}


def test_files_of_others_stay(hub: HubServer, run: Path, env: Env, tmp_path: Path) -> None:
    hub.add("model", "tester/shelf", {"notes.txt": b"mine\n", "other/adapter.bin": b"theirs\n"}, private=True)
    as_json("push", str(run), "tester/shelf", cwd=tmp_path, env=env)
    files = hub.files("model", "tester/shelf")
    assert files["notes.txt"] == b"mine\n"
    assert files["other/adapter.bin"] == b"theirs\n"


@pytest.mark.parametrize(("words", "code", "says"), [
    (("push", "RUN", "tester/x", "--base", "maker/none"), 8, "--base: maker/none"),
    (("push", "RUN", "tester/x", "--base", "maker/none", "--dry-run"), 8, "--base: maker/none"),
    (("push", "RUN", "a/b/c"), 2, "not the name of a repository"),
    (("push", ".", "tester/x"), 2, "neither a run nor an adapter"),
    (("merge", "RUN", "out", "--quantization", "int9"), 2, "none, int8 or nf4"),
    (("merge", "RUN", "out", "--device", "gpu"), 2, "auto, cpu, cuda or cuda:N"),
    (("verify", "none"), 2, "no such folder"),
    (("pull", QUOTES, "out"), 8, "no model of this name"),
    (("generate", "maker/nothing", "--prompt", "x"), 8, "no folder here has it"),
    (("generate", "maker/gated", "--prompt", "x"), 8, "accept its terms")])
def test_mistakes(hub: HubServer, run: Path, env: Env, tmp_path: Path, words: tuple[str, ...], code: int,
                  says: str) -> None:
    if ("model", "maker/gated") not in hub.repositories:
        hub.add("model", "maker/gated", dict(hub.files("model", ADAPTER)), gated=True)
    refused(*(str(run) if word == "RUN" else word for word in words), cwd=tmp_path, env=env, code=code,
            says=says)
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "cache"])
    assert ("model", "tester/x") not in hub.repositories


def test_offline_says_so(run: Path, env: Env, tmp_path: Path) -> None:
    refused("push", str(run), "tester/x", cwd=tmp_path, env=env | {"HF_HUB_OFFLINE": "1"}, code=8,
            says="HF_HUB_OFFLINE is set")


def test_a_prompt_with_a_secret_is_told_before_training_and_not_pushed(
    hub: HubServer, env: Env, tmp_path: Path
) -> None:
    secret = "hf_" + "q7" * 17
    (tmp_path / "my.yaml").write_text(RECIPE.replace("{quote} ->: ", f"{secret} {{quote}} ->: ")
                                      + "share: {repo: tester/leak}\n")
    done = tunesmith("train", "my.yaml", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    before = done.stderr.partition("step 1/")[0]
    assert "data.prompt holds a Hugging Face token" in before, "told before it trains"
    assert "change data.prompt" in done.stderr
    assert secret not in done.stderr
    assert ("model", "tester/leak") not in hub.repositories


def test_a_damaged_copy_is_not_sent_to_a_run_that_it_has_not(run: Path, env: Env, tmp_path: Path) -> None:
    shutil.copytree(run / "adapter", tmp_path / "copy")
    with open(tmp_path / "copy" / "adapter_model.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\1\2\3")
    refused("push", "copy", "tester/x", cwd=tmp_path, env=env, code=9, says="pull it again")


_MERGE, _EXPORT = ("merge", "RUN", "out"), ("export", "RUN", "out")
_EXPORT_ADAPTER = (*_EXPORT, "--what", "adapter")


@pytest.mark.parametrize(("words", "number"), [
    (_MERGE, signal.SIGTERM), (_EXPORT, signal.SIGHUP), (_EXPORT_ADAPTER, signal.SIGINT),
    *(pytest.param(words, number, marks=pytest.mark.slow) for words, number in [
        (_MERGE, signal.SIGINT), (_MERGE, signal.SIGHUP), (_EXPORT, signal.SIGINT), (_EXPORT, signal.SIGTERM),
        (_EXPORT_ADAPTER, signal.SIGTERM), (_EXPORT_ADAPTER, signal.SIGHUP)])])
def test_a_signal_leaves_nothing(run: Path, env: Env, tmp_path: Path, words: tuple[str, ...],
                                 number: signal.Signals) -> None:
    """Sent soon after the temporary folder is there, amid libraries that take an error for their own."""
    process = subprocess.Popen([sys.executable, "-m", "tunesmith.cli.main",
                                *(str(run) if word == "RUN" else word for word in words)],
                               cwd=tmp_path, env={**env, "PATH": "/usr/bin:/bin"}, stderr=subprocess.PIPE,
                               text=True)
    for _ in range(600):
        if (tmp_path / ".tmp-out").exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(random.random())
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert "Traceback" not in told
    if process.returncode == 0 and (tmp_path / "out").exists():
        pytest.skip("it was done before the signal came")
    assert process.returncode == 128 + number, told
    assert "Stopped; nothing was written." in told
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_what_a_merged_model_knows_of_prompts(run: Path, env: Env, tmp_path: Path) -> None:
    """It is exported like the run; where nothing is known of prompts, that is told."""
    as_json("merge", str(run), "one", cwd=tmp_path, env=env)
    merged: dict[str, Any] = as_json("export", "one", "gguf", cwd=tmp_path, env=env)
    straight = as_json("export", str(run), "straight", "--outtype", "q8_0", cwd=tmp_path, env=env)
    assert (tmp_path / "gguf" / "Modelfile").read_text() == (tmp_path / "straight" / "Modelfile").read_text()
    assert merged["notes"] == straight["notes"]
    assert "Its prompts are written `{quote} ->: `" in (tmp_path / "one" / "README.md").read_text()
    (tmp_path / "one" / "tunesmith.json").unlink()
    stripped = as_json("export", "one", "bare", cwd=tmp_path, env=env)
    assert any("not known" in note for note in stripped["notes"])
    assert 'TEMPLATE """{{ .Prompt }}"""' in (tmp_path / "bare" / "Modelfile").read_text()


def test_the_lora_alone_says_what_it_needs(run: Path, env: Env, tmp_path: Path) -> None:
    done = tunesmith("export", str(run), "lora", "--what", "adapter", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "BASE.gguf is the base itself" in done.stdout
    assert "as base.gguf" in done.stdout


def test_quiet_is_the_result_alone(run: Path, env: Env, tmp_path: Path) -> None:
    done = tunesmith("pull", ADAPTER, "here", "--quiet", cwd=tmp_path, env=env)
    assert done.returncode == 0
    assert done.stderr == ""
    assert (
        "tunesmith generate here --prompt 'QUOTE ->: '" in done.stdout.replace(sys.executable, "tunesmith")
        or "generate here" in done.stdout
    )
