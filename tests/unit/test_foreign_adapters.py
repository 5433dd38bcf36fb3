"""Adapters that someone sent: their config is data, or it is refused before PEFT sees it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from placed import at

from tunesmith import embedded
from tunesmith.errors import IntegrityError, TunesmithError
from tunesmith.model.build import build_with_adapter
from tunesmith.model.files import locate_base
from tunesmith.model.lora import CONFIG_NAME, WEIGHTS_NAME, read_adapter, read_adapter_config
from tunesmith.model.peft_config import PeftConfig, require_bounded, understood
from tunesmith.model.tokenizer import load_tokenizer

BASE = locate_base(embedded.BASE_NAME, None)
PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
         "target_modules": ["query_key_value"]}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A plain adapter on the first layer of the embedded base, and room to spoil it."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    width = BASE.config["hidden_size"]
    name = "base_model.model.transformer.h.{}.self_attention.query_key_value.lora_{}.weight"
    tensors = {name.format(layer, half): torch.ones(shape) * 0.1 for layer in range(BASE.config["n_layer"])
               for half, shape in (("A", (4, width)), ("B", (3 * width, 4)))}
    safetensors.torch.save_file(tensors, folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(PLAIN))
    return folder


def load(folder: Path, engine: str = "hf") -> Any:
    return build_with_adapter(BASE, load_tokenizer(BASE), folder, at(engine, "none", "float32"))


def test_a_module_that_a_config_names_is_never_imported(adapter: Path, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("megatron", "evil"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        (tmp_path / package / "core.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for words in ({"megatron_core": "evil.core"},
                  {"megatron_core": "megatron.core", "megatron_config": {"a": 1}},
                  {"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}}):
        (adapter / CONFIG_NAME).write_text(json.dumps(PLAIN | words))
        for engine in ("hf", "native"):
            with pytest.raises(IntegrityError, match="megatron|auto_mapping"):
                load(adapter, engine)
    assert not (tmp_path / "ran").exists()
    (adapter / CONFIG_NAME).write_text(json.dumps(PLAIN | {"megatron_core": "megatron.core",
                                                           "megatron_config": None}))
    load(adapter)
    assert not (tmp_path / "ran").exists(), "PEFT's own default says nothing"


@pytest.mark.parametrize("words", [
    {"loftq_config": {"loftq_bits": 4}}, {"arrow_config": {"top_k": 3}}, {"monteclora_config": {"a": 1}},
    {"layer_replication": [[0, 2]]}, {"corda_config": {"a": 1}}, {"use_qalora": True},
    {"use_bdlora": {"a": 1}}, {"kasa_config": {"a": 1}}, {"velora_config": {"a": 1}},
    {"runtime_config": {"ephemeral_gpu_offload": True}}, {"new_in_the_next_version": 1},
    {"init_lora_weights": "loftq"}, {"init_lora_weights": "pissa_niter_1000000000"}, {"r": 10**9},
    {"r": True}, {"r": 4.0}, {"lora_alpha": "8"}, {"lora_alpha": float("inf")}, {"lora_dropout": 1},
    {"use_dora": 1}, {"bias": "some"}, {"target_modules": [f"m{i}" for i in range(100_000)]},
    {"target_modules": "x" * 5000}, {"target_modules": [3]}, {"target_modules": {"a": 1}},
    {"rank_pattern": {"a": 10**9}}, {"rank_pattern": [1]}, {"alpha_pattern": {"a": "b"}},
    {"trainable_token_indices": [10**12]}, {"layers_to_transform": [-1]}, {"modules_to_save": "lm_head"}],
                         ids=lambda words: str(words)[:50])
def test_what_is_not_understood_is_refused_by_name(words: dict[str, Any], adapter: Path) -> None:
    (adapter / CONFIG_NAME).write_text(json.dumps(PLAIN | words))
    with pytest.raises(IntegrityError) as caught:
        read_adapter_config(adapter)
    assert next(iter(words)) in caught.value.message
    assert len(caught.value.message) < len(str(adapter)) + 300


@pytest.mark.parametrize(("words", "says"), [
    ({"target_modules": r"(.*\.*)*(\w+\w+)+z"}, "does not come to an end|not a regular"),
    ({"rank_pattern": {r"(\w|.)+!": 2}}, "does not come to an end"),
    ({"exclude_modules": r"((\w|.)+)+!"}, "does not come to an end"),
    ({"alpha_pattern": {"(": 2}}, "not a regular")], ids=lambda value: str(value)[:40])
def test_patterns_come_to_an_end_on_the_base_s_modules(words: dict[str, Any], says: str, adapter: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.model.peft_config._MATCH_S", 1.0)
    (adapter / CONFIG_NAME).write_text(json.dumps(PLAIN | words))
    began = time.monotonic()
    with pytest.raises(IntegrityError, match=says) as caught:
        load(adapter)
    assert CONFIG_NAME in caught.value.message
    assert time.monotonic() - began < 60, "stopped, not waited for"


def test_honest_patterns_pass() -> None:
    names = [f"model.layers.{i}.self_attn.{part}_proj" for i in range(40) for part in "qkvo"]
    for words in ({"target_modules": r".*\.(q|v)_proj"}, {"rank_pattern": {r"layers\.[0-9]+\.self_attn": 2}},
                  {"target_modules": "all-linear"}, {"layers_pattern": "layers"},
                  {"target_modules": ["q_proj"]}):
        require_bounded(words, names, Path("adapter_config.json"))


def test_tokens_that_the_base_does_not_have(adapter: Path) -> None:
    (adapter / CONFIG_NAME).write_text(json.dumps(PLAIN | {"trainable_token_indices": [1 << 20]}))
    with pytest.raises(IntegrityError, match="trainable_token_indices has 1048576"):
        load(adapter)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"r": ' + "9" * 5000 + "}", "\ufeff{}", "[]", "3", "", "{",
                                  '{"a": NaN, "peft_type": "LORA"}'])
def test_configs_that_are_no_json_of_ours(text: str, adapter: Path) -> None:
    (adapter / CONFIG_NAME).write_text(text)
    with pytest.raises(IntegrityError, match=CONFIG_NAME):
        read_adapter_config(adapter)


_ANY = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)


@given(words=st.dictionaries(st.sampled_from(sorted(PeftConfig.model_fields)) | st.text(max_size=10), _ANY,
                             max_size=3))
def test_any_config_is_understood_or_refused(words: dict[str, Any]) -> None:
    try:
        known = understood(PLAIN | words, Path(CONFIG_NAME))
    except TunesmithError:
        return
    PeftConfig.model_validate(known)


def test_links_and_pipes_are_no_adapter(adapter: Path, tmp_path: Path) -> None:
    import os

    weights = adapter / WEIGHTS_NAME
    weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(IntegrityError, match="a link to"):
        read_adapter(adapter)
    (adapter / CONFIG_NAME).unlink()
    os.mkfifo(adapter / CONFIG_NAME)
    with pytest.raises(IntegrityError, match="a pipe"):
        read_adapter(adapter)
