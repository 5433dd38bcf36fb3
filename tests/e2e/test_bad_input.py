"""Bad input: its exit code, what and where, what to do; no traceback, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conftest import RECIPE
from tunesmith import embedded
from tunesmith.cli.main import app

BASE = embedded.path_of(embedded.BASE_NAME)
GOOD = '{"quote": "a b c", "tags": ["x"]}\n'


def rows(content: str | bytes) -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        path = folder / "rows.jsonl"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return ["data.source=rows.jsonl"]

    return prepare


def base_without(*names: str, add: str = "") -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        shutil.copytree(BASE, folder / "base", ignore=shutil.ignore_patterns(*names))
        if add:
            (folder / "base" / add).write_bytes(b"\x80\x04.")
        return ["model.base=base"]

    return prepare


def truncated_weights(folder: Path) -> list[str]:
    shutil.copytree(BASE, folder / "base")
    path = folder / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return ["model.base=base"]


def incomplete_weights(folder: Path) -> list[str]:
    import safetensors.torch

    shutil.copytree(BASE, folder / "base")
    state = safetensors.torch.load_file(folder / "base" / "model.safetensors")
    del state["transformer.h.3.mlp.dense_h_to_4h.weight"]
    safetensors.torch.save_file(state, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    return ["model.base=base"]


def few_positions(folder: Path) -> list[str]:
    shutil.copytree(BASE, folder / "base")
    path = folder / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_positions": 8}))
    return ["model.base=base"]


def other_files(folder: Path) -> list[str]:
    (folder / "runs" / "my").mkdir(parents=True)
    (folder / "runs" / "my" / "thesis.txt").write_text("years")
    return []


def overrides(*words: str) -> Callable[[Path], list[str]]:
    return lambda folder: list(words)


@pytest.mark.parametrize(("prepare", "code", "said"), [
    (overrides("data.source=missing.jsonl"), 4, ["missing.jsonl: no such file"]),
    (rows(""), 4, ["rows.jsonl: the file is empty"]),
    (rows(GOOD + "{broken\n"), 4, ["rows.jsonl, line 2: broken JSON"]),
    (rows(GOOD.encode() + b'{"quote": "caf\xe9"}\n'), 4, ["rows.jsonl, line 2: not UTF-8"]),
    (rows('{"quote": "a", "tag": ["x"]}\n'), 4,
     ['rows.jsonl, line 1: no column "tags"', "--set data.completion='{tag}'"]),
    (rows(GOOD * 3 + '{"quote": "a", "tags": null}\n'), 4, ['line 4: the column "tags" is null']),
    (lambda folder: [*rows(GOOD * 2 + '{"quote": "z", "tags": ""}\n')(folder), "data.append_eos=false",
                     "data.validation=0"], 4,
     ["line 3: no token to learn from"]),
    (overrides("data.max_length=4", "data.overlong=drop"), 4, ["all", "longer than 4 tokens"]),
    (overrides("data.max_length=4", "data.overlong=error"), 4,
     ["line 1: longer than data.max_length, 4 tokens"]),
    (overrides("data.validation=480"), 4, ["leaves none to learn from"]),
    (overrides("data.messages=m", "data.prompt=", "data.completion=null"), 4, ['no column "m"']),
    (overrides("data.prompt={quote"), 3, ["data.prompt", "brace"]),
    (overrides("model.base=./nothing"), 3, ["./nothing: no such folder"]),
    (overrides("model.base=nobody/nothing-at-all"), 8, ["nobody/nothing-at-all"]),
    (overrides("model.base=not a name"), 3, ["not a name"]),
    (base_without("*.safetensors"), 3, ["no weights (*.safetensors)"]),
    (base_without("*.safetensors", add="pytorch_model.bin"), 9, ["pytorch_model.bin", "refused"]),
    (base_without("config.json"), 3, ["no config.json"]),
    (base_without("tokenizer*"), 3, ["no usable tokenizer"]),
    (truncated_weights, 9, ["model.safetensors: not a whole safetensors file"]),
    (overrides("lora.target_modules=[q_proj]"), 3,
     ["no linear module of this base is called 'q_proj'", "query_key_value"]),
    (overrides("train.learning_rat=1"), 3, ["Did you mean learning_rate?"]),
    (overrides("train.learning_rate=.nan"), 3, ["train.learning_rate"]),
    (overrides("lora.r=0"), 3, ["lora.r: 0 does not fit"]),
    (few_positions, 3, ["data.max_length", "the base has 8 positions"]),
    (rows('{"quote": "cut \\ud83d", "tags": ["x"]}\n'), 4, ["line 1", "surrogate"]),
    (overrides("model.device=cuda"), 5, ["no CUDA GPU", "tunesmith doctor"]),
    (overrides("train.engine=nativ"), 3, ["train.engine", "native"]),
    (other_files, 2, ["not a run folder"]),
])
def test_train_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Path], list[str]],
                       code: int, said: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(RECIPE)
    words = [word for override in prepare(tmp_path) for word in ("--set", override)]
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, ["train", "my.yaml", *words])
    assert done.exit_code == code, done.stderr
    for text in said:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    done = CliRunner().invoke(app, ["train", "my.yaml", *words, "--json"])
    assert json.loads(done.stdout)["exit_code"] == code


def test_a_base_that_lacks_a_weight_is_not_filled_with_random_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(RECIPE)
    words = [word for override in incomplete_weights(tmp_path) for word in ("--set", override)]
    done = CliRunner().invoke(app, ["train", "my.yaml", *words])
    assert done.exit_code == 9
    assert "h.3.mlp.dense_h_to_4h.weight" in done.stderr


def test_an_adapter_for_another_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assets: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    other = AutoModelForCausalLM.from_pretrained(assets / "stories260K")
    get_peft_model(other,
                   LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained("theirs")
    (tmp_path / "my.yaml").write_text(RECIPE)
    done = CliRunner().invoke(app, ["evaluate", "theirs", "--recipe", "my.yaml"])
    assert done.exit_code == 9
    assert "another base" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("words", "code"), [
    (["train"], 2), (["train", "none.yaml"], 3), (["train", "my.yaml", "--st"], 2), (["nothing"], 2),
    (["generate", "none", "--prompt", "x"], 2), (["generate", ".", "--prompt", "x"], 2),
    (["generate", ".", "--prompt", "x", "--device", "gpu"], 2),
    (["generate", ".", "--prompt", "x", "--quantization", "int4"], 2), (["generate", ".", "--prompt", ""], 2),
    (["verify", "none"], 2), (["verify", "."], 9), (["evaluate", "none"], 2), (["plan", "."], 3)])
def test_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("model: 1")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
