"""The main road as a user walks it: train, look, evaluate, generate, verify, resume."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest

import tunesmith as api
from conftest import tunesmith, tunesmith_json
from tunesmith.recipe import parse_recipe
from tunesmith.rundir.verdict import verdict_sentence


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    from conftest import RECIPE

    folder = tmp_path_factory.mktemp("road")
    (folder / "my.yaml").write_text(RECIPE.replace("quantization: none", "quantization: int8"))
    return folder, tunesmith_json("train", "my.yaml", cwd=folder)


def test_train_writes_a_folder_that_explains_itself(trained: tuple[Path, dict[str, object]]) -> None:
    folder, result = trained
    assert set(result) >= {"run", "engine", "trainable_parameters", "all_parameters", "steps", "train_loss",
                           "eval_loss_before", "eval_loss_after", "seconds", "tokens_per_second",
                           "peak_memory_bytes", "adapter"}
    run = folder / "runs" / "my"
    assert result["run"] == str(run)
    assert result["steps"] == 6
    assert result["eval_loss_after"] < result["eval_loss_before"]
    for name in ("recipe.yaml", "manifest.json", "metrics.jsonl", "samples.jsonl", "verdict.json",
                 "report.html", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
                 "adapter/README.md", "checkpoints/step-000006/state.json"):
        assert (run / name).is_file(), name
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    for record in metrics:
        assert set(record) >= {"step", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second",
                               "peak_memory_bytes", "seconds"}
    assert "eval_loss" in metrics[2]
    assert not [p for p in run.rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".pth")]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["base"]["files"]["model.safetensors"].startswith("sha256:")
    assert len(manifest["data"]["content"]) == 64
    assert parse_recipe((run / "recipe.yaml").read_text()).train.max_steps == 6


def test_report_stands_alone(trained: tuple[Path, dict[str, object]]) -> None:
    page = (trained[0] / "runs" / "my" / "report.html").read_text()
    assert page.count("<svg") == 2
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page)
    assert "<script" not in page
    judgement = json.loads((trained[0] / "runs" / "my" / "verdict.json").read_text())
    assert verdict_sentence(judgement) in html.unescape(page)
    assert judgement["verdict"] in ("loss only", "helps", "no difference")


def test_generation_settings_carry_the_stop_tokens(trained: tuple[Path, dict[str, object]]) -> None:
    adapter = trained[0] / "runs" / "my" / "adapter"
    assert json.loads((adapter / "generation_config.json").read_text())["eos_token_id"] == [2]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "embedded:sprout"


def test_the_same_command_again_shows_what_came_out(trained: tuple[Path, dict[str, object]]) -> None:
    folder, result = trained
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    done = tunesmith("train", "my.yaml", "--json", cwd=folder)
    assert json.loads(done.stdout) == result
    assert "is finished" in done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_another_recipe_on_the_same_run_is_refused(trained: tuple[Path, dict[str, object]]) -> None:
    done = tunesmith("train", "my.yaml", "--set", "train.learning_rate=1e-4", cwd=trained[0])
    assert done.returncode == 3
    assert "train.learning_rate: the run has 0.005, the recipe says 0.0001" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_generate_and_verify(trained: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    folder, result = trained
    found = tunesmith_json("evaluate", "runs/my", cwd=folder)
    assert set(found) >= {"loss_base", "loss_tuned", "stop_rate_base", "stop_rate_tuned", "verdict",
                          "interval", "rows"}
    assert found["loss_tuned"] == pytest.approx(result["eval_loss_after"], rel=1e-6)
    shutil.copytree(folder / "runs" / "my" / "adapter", tmp_path / "elsewhere")
    assert tunesmith("evaluate", str(tmp_path / "elsewhere"), cwd=folder).returncode == 2
    away = tunesmith_json("evaluate", str(tmp_path / "elsewhere"), "--recipe", "my.yaml", cwd=folder)
    assert away == found | {"kept": None}
    one = tunesmith("generate", "runs/my/adapter", "--prompt", "“Never glow before the lamp is bright.” ->: ",
                    "--quiet", cwd=folder)
    assert one.returncode == 0
    assert one.stderr == ""
    answer = tunesmith_json("generate", str(tmp_path / "elsewhere"), "--prompt",
                            "“Never glow before the lamp is bright.” ->: ", cwd=tmp_path)
    assert answer["text"] == one.stdout.removesuffix("\n")
    assert answer["quantization"] == "int8"
    weights = tmp_path / "elsewhere" / "adapter_model.safetensors"
    assert tunesmith_json("verify", str(tmp_path / "elsewhere"), cwd=folder)["whole"]
    content = bytearray(weights.read_bytes())
    content[-3] ^= 4
    weights.write_bytes(content)
    done = tunesmith("verify", str(tmp_path / "elsewhere"), cwd=folder)
    assert done.returncode == 9
    assert str(weights) in done.stdout
    done = tunesmith("generate", str(tmp_path / "elsewhere"), "--prompt", "x", cwd=folder)
    assert done.returncode == 9
    assert "adapter_model.safetensors: damaged" in done.stderr


def test_an_adapter_that_stock_peft_made_is_judged(tmp_path: Path, recipe: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tunesmith import embedded

    base = AutoModelForCausalLM.from_pretrained(embedded.path_of(embedded.BASE_NAME))
    get_peft_model(base, LoraConfig(r=3, target_modules=["query_key_value", "dense"], task_type="CAUSAL_LM",
                                    use_rslora=True)).save_pretrained(tmp_path / "theirs")
    found = api.evaluate(tmp_path / "theirs", recipe=recipe)
    assert found["verdict"] == "no difference"  # B starts at zero
    assert found["loss_tuned"] == pytest.approx(found["loss_base"], rel=1e-5)


def test_nothing_held_out_says_so(tmp_path: Path, recipe: Path) -> None:
    result = api.train(recipe, run=tmp_path / "run", overrides=["data.validation=0", "train.max_steps=2"])
    assert result["eval_loss_before"] is None
    assert result["verdict"] is None
    assert "Nothing was held out" in (tmp_path / "run" / "report.html").read_text()
    assert "Nothing was held out" in (tmp_path / "run" / "adapter" / "README.md").read_text()
    with pytest.raises(api.TunesmithError) as caught:
        api.evaluate(tmp_path / "run")
    assert caught.value.exit_code == 4


def test_conversations_train_on_a_chat_template(tmp_path: Path, recipe: Path) -> None:
    from tunesmith import embedded

    base = tmp_path / "chatty"
    shutil.copytree(embedded.path_of(embedded.BASE_NAME), base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["chat_template"] = ("{% for m in messages %}{{ m.role }}>{{ m.content }}{{ eos_token if m.role "
                                 "== 'assistant' }}\n{% endfor %}{{ 'assistant>' if add_generation_prompt }}")
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    with open(tmp_path / "chats.jsonl", "w") as file:
        for i in range(24):
            print(json.dumps({"talk": [{"from": "human", "value": f"lamp {i}?"},
                                       {"from": "gpt", "value": "light"}]}), file=file)
    result = api.train(recipe, run=tmp_path / "run", overrides=[
        f"model.base={base}", f"data.source={tmp_path}/chats.jsonl", "data.messages=talk",
        "data.completion=null", "data.prompt=", "data.validation=8", "judge.stop_rows=8",
        "train.max_steps=30", "train.learning_rate=1e-2"])
    found = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert result["verdict"] == "helps"
    assert found["stop_rate_tuned"] == 1


def test_the_demo_does_what_it_says(tmp_path: Path) -> None:
    done = tunesmith("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "runs/demo/report.html" in done.stdout
    found = json.loads((tmp_path / "runs" / "demo" / "verdict.json").read_text())
    assert found["list_f1_tuned"] >= 0.8
    assert found["list_f1_base"] < 0.2
    assert found["stop_rate_tuned"] >= 0.98
    assert found["verdict"] == "helps"


def test_init_plan_doctor(tmp_path: Path, assets: Path) -> None:
    assert tunesmith_json("init", "my.yaml", cwd=tmp_path) == {
        "recipe": "my.yaml", "preset": "bloom-7b1-quotes"}
    assert tunesmith("init", "my.yaml", cwd=tmp_path).returncode == 2
    assert tunesmith("init", "other.yaml", "--preset", "nothing", cwd=tmp_path).returncode == 3
    found = tunesmith_json("plan", "my.yaml", "--set", f"model.base={assets}/bloom-7b1", cwd=tmp_path)
    assert (found["trainable_parameters"], found["all_parameters"]) == (7_864_320, 7_076_880_384)
    health = tunesmith_json("doctor", cwd=tmp_path)
    assert health["healthy"], health["checks"]


@pytest.mark.slow
def test_the_notebook_s_run_on_a_real_base(tmp_path: Path, assets: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"""
model: {{base: {assets}/stories260K, quantization: int8}}
data: {{source: {assets}/english_quotes/train.jsonl,
       prompt: "{{quote}} ->: ", completion: "{{tags}}",
        loss_on: all, append_eos: false, max_length: 512, overlong: truncate,
        validation: {assets}/english_quotes/heldout.jsonl}}
train: {{eval_steps: 0}}
judge: {{stop_rows: 0, samples: 0}}
""")
    result = api.train(tmp_path / "r.yaml", run=tmp_path / "run")
    assert result["eval_loss_before"] == pytest.approx(4.20, abs=0.01)
    assert result["eval_loss_after"] <= 3.41


@pytest.mark.slow
def test_a_real_base_learns_to_stop(tmp_path: Path, assets: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(assets / "stories260K", base)
    # Its own end token was never trained; <s> was, at the start of every story.
    for name, key, value in (("config.json", "eos_token_id", 1),
                             ("generation_config.json", "eos_token_id", 1),
                             ("tokenizer_config.json", "eos_token", "<s>")):
        path = base / name
        path.chmod(0o644)
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    # Authors, not tags: this base never saw "[" in training, and cannot tell it from other such tokens.
    (tmp_path / "r.yaml").write_text(f"""
model: {{base: {base}, quantization: int8}}
data: {{source: {assets}/english_quotes/train.jsonl,
       prompt: "{{quote}} ->: ", completion: "{{author}}", loss_on: completion,
        max_length: 512, overlong: drop, validation: {assets}/english_quotes/heldout.jsonl}}
train: {{max_steps: 200, learning_rate: 2.0e-3, warmup_steps: 20, eval_steps: 0}}
judge: {{max_new_tokens: 128, stop_rows: 64}}
""")
    api.train(tmp_path / "r.yaml", run=tmp_path / "run")
    found = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert found["stop_rate_base"] <= 0.3  # the base ends some stories within 128 tokens
    assert found["stop_rate_tuned"] >= 0.9
    assert found["verdict"] in ("loss only", "helps")  # who wrote a quote is hardly to be guessed


def test_an_adapter_on_other_weights_of_the_same_shapes_is_refused(trained: tuple[Path, dict[str, object]],
                                                                   tmp_path: Path) -> None:
    import safetensors.torch

    from tunesmith import embedded

    folder, result = trained
    other = tmp_path / "other"
    shutil.copytree(embedded.path_of(embedded.BASE_NAME), other)
    path = other / "model.safetensors"
    state = safetensors.torch.load_file(path)
    name = next(name for name in state if name.endswith("query_key_value.weight"))
    state[name] = -state[name]
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    adapter = tmp_path / "adapter"
    shutil.copytree(Path(str(result["adapter"])), adapter)
    metadata = json.loads((adapter / "tunesmith.json").read_text())
    (adapter / "tunesmith.json").write_text(json.dumps(metadata | {"base": str(other)}))
    (adapter / "sha256.json").unlink()
    refused = tunesmith("generate", str(adapter), "--prompt", "x", cwd=folder)
    assert refused.returncode == 9, refused.stderr
    assert "other weights" in refused.stderr
    named = tunesmith("generate", str(adapter), "--prompt", "x", "--base", str(other), cwd=folder)
    assert named.returncode == 0, "who names a base is told, and served"
    assert "other weights" in named.stderr


def test_a_mistyped_run_is_not_looked_for_on_the_hub(trained: tuple[Path, dict[str, object]]) -> None:
    folder, _ = trained
    done = tunesmith("generate", "runs/mine", "--prompt", "x", cwd=folder,
                     env={"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert done.returncode == 2
    assert "no such folder" in done.stderr
