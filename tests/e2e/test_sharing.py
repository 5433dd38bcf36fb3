"""The notebook's whole story on a Hub of the tests' own: data and base by id, train, push, load by id."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import tunesmith
from hub.server import HubServer
from story import ADAPTER, BASE, QUOTES, RECIPE, as_json


def test_the_whole_story(hub: HubServer, run: Path, env: dict[str, str], tmp_path: Path) -> None:
    files = hub.files("model", ADAPTER)
    assert set(files) >= {"adapter_config.json", "adapter_model.safetensors", "README.md",
                          "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert files["adapter_model.safetensors"] == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == BASE
    assert config["revision"] == hub.commits("model", BASE)[-1].oid
    pushed = [commit for commit in hub.commits("model", ADAPTER) if "README.md" in commit.files]
    assert len(pushed) == 1, "one commit holds all"
    assert hub.repositories["model", ADAPTER].private
    everything = b"".join(files.values())
    for secret in (hub.token, str(Path.home()) + "/", str(run)):
        assert secret.encode() not in everything, secret
    # Another machine: an empty cache, the adapter by its id on the int8 base.
    answer = as_json("generate", ADAPTER, "--prompt", "“Be yourself.” ->: ", "--max-new-tokens", "8",
                     cwd=tmp_path, env=env)
    local = as_json("generate", str(run / "adapter"), "--prompt", "“Be yourself.” ->: ", "--max-new-tokens",
                    "8", cwd=tmp_path, env=env)
    assert answer["text"] == local["text"]
    assert answer["base"] == BASE
    assert answer["quantization"] == "int8"
    assert answer["modules"] > 0


def test_the_card_tells_what_was_measured(hub: HubServer, run: Path) -> None:
    text = hub.files("model", ADAPTER)["README.md"].decode()
    front = yaml.safe_load(text.split("---")[1])
    judgement = json.loads((run / "result.json").read_text())["judgement"]
    assert front["base_model"] == BASE
    assert front["license"] == "apache-2.0"
    assert front["datasets"] == [QUOTES]
    metrics = {metric["name"]: metric["value"] for metric in front["model-index"][0]["results"][0]["metrics"]}
    assert metrics["held-out loss [nats a token]"] == pytest.approx(judgement["loss_tuned"], abs=1e-4)
    assert judgement["verdict"] in text


def test_the_card_s_code_runs_in_stock_peft(hub: HubServer, run: Path, env: dict[str, str],
                                            tmp_path: Path) -> None:
    code = hub.files("model", ADAPTER)["README.md"].decode().split("```python\n")[1].split("```")[0]
    script = (
        code
        + "\nimport torch\nprint('LOGIT', float(model(input_ids=torch.tensor([[5, 6, "
          "7]])).logits.abs().sum()) > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, **env},
                          capture_output=True, text=True, timeout=120)
    assert "LOGIT True" in done.stdout, done.stderr[-2000:]


def test_pushing_again_changes_nothing(hub: HubServer, run: Path, env: dict[str, str],
                                       tmp_path: Path) -> None:
    before = hub.commits("model", ADAPTER)
    result = as_json("push", str(run), ADAPTER, cwd=tmp_path, env=env)
    assert result["changed"] is False
    assert hub.commits("model", ADAPTER) == before


def test_evaluate_by_id(hub: HubServer, run: Path, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(RECIPE)
    found = as_json("evaluate", ADAPTER, "--recipe", "my.yaml", cwd=tmp_path, env=env)
    assert found["loss_tuned"] == pytest.approx(
        json.loads((run / "result.json").read_text())["eval_loss_after"], rel=1e-4
    )


def test_pull_writes_a_whole_folder(hub: HubServer, run: Path, env: dict[str, str], tmp_path: Path) -> None:
    first = as_json("pull", ADAPTER, "here", cwd=tmp_path, env=env)
    assert first["commit"] == hub.commits("model", ADAPTER)[-1].oid
    assert (tmp_path / "here/adapter_model.safetensors").read_bytes() == (
        run / "adapter/adapter_model.safetensors"
    ).read_bytes()
    assert tunesmith("verify", "here", cwd=tmp_path, env=env).returncode == 0
    assert as_json("pull", ADAPTER, "here", cwd=tmp_path, env=env) == first, "again is the same"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    refused = tunesmith("pull", ADAPTER, "mine", cwd=tmp_path, env=env)
    assert refused.returncode == 2
    assert (tmp_path / "mine/thesis.txt").read_text() == "mine"


def test_dry_run_shows_and_stays(hub: HubServer, run: Path, env: dict[str, str], tmp_path: Path) -> None:
    done = tunesmith("push", str(run), "tester/elsewhere", "--dry-run", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "adapter_model.safetensors" in done.stdout
    assert "base_model: " + BASE in done.stdout
    assert ("model", "tester/elsewhere") not in hub.repositories


def test_a_failed_push_does_not_fail_the_run(hub: HubServer, env: dict[str, str], tmp_path: Path) -> None:
    hub.fail("commit", 503, times=None)
    (tmp_path / "my.yaml").write_text(RECIPE + "share: {repo: tester/late}\n")
    done = tunesmith("train", "my.yaml", "--json", cwd=tmp_path, env=env)
    hub.clear_faults()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pushed"] is None
    command = next(line for line in done.stderr.splitlines()
                   if "tunesmith push" in line).partition("tunesmith ")[2].split()
    assert "adapter_model.safetensors" not in hub.files("model", "tester/late"), "nothing half-published"
    assert tunesmith(*command, cwd=tmp_path, env=env).returncode == 0
    assert "adapter_model.safetensors" in hub.files("model", "tester/late")


@pytest.mark.parametrize("route", ["resolve-get", "info", "tree"])
@pytest.mark.parametrize("fault", [503, "reset", "flip"], ids=str)
def test_data_by_id_survives(hub: HubServer, env: dict[str, str], tmp_path: Path, route: str,
                             fault: Any) -> None:
    """One fault on the way to the rows: they come all the same, and as they are on the Hub."""
    if fault == "flip" and route != "resolve-get":
        pytest.skip("a flipped listing is one that cannot be read: the same as garbage")
    script = f"""
import json
from tunesmith.data.sources import read_source
notes = []
rows = read_source("{QUOTES}", "train", tell=notes.append)
print(json.dumps([len(rows), rows[0].values, notes]))
"""
    hub.fail(route, fault, match="quotes")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, **env},
                          capture_output=True, text=True, timeout=120)
    hub.clear_faults()
    assert done.returncode == 0, done.stderr[-3000:]
    count, first, _ = json.loads(done.stdout.splitlines()[-1])
    lines = hub.files("dataset", QUOTES)["train.jsonl"].splitlines()
    assert count == len(lines)
    assert first == json.loads(lines[0])


@pytest.mark.parametrize(("token", "says"),
                         [("", "not logged in"), ("hf_wrong", "does not accept your token"),
                                             ("read", "may not do this")])
def test_who_may_not_push_is_told_why(hub: HubServer, run: Path, env: dict[str, str], tmp_path: Path,
                                      token: str, says: str) -> None:
    env["HF_TOKEN"] = hub.read_token if token == "read" else token
    done = tunesmith("push", str(run), "tester/not-mine", cwd=tmp_path, env=env)
    assert done.returncode == 8
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert ("model", "tester/not-mine") not in hub.repositories
