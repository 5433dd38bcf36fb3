"""Adapters that others made load and compute what stock PEFT computes, or are refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from native_bases import Bases
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tunesmith.errors import IntegrityError
from tunesmith.model.build import build_with_adapter, count_modules
from tunesmith.model.files import BaseFiles, locate_base
from tunesmith.model.lora import check_adapter
from tunesmith.model.placement import place_base
from tunesmith.model.tokenizer import load_tokenizer

BASE: BaseFiles


@pytest.fixture(scope="module", autouse=True)
def _llama(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A Llama of random weights that all tests here share."""
    global BASE
    BASE = Bases(tmp_path_factory.mktemp("bases"))("llama")


IDS = [[5, 9, 20, 31, 7], [3, 4]]


def made(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **words: Any) -> Path:
    """An adapter as stock PEFT saves it, every tensor random."""
    model = AutoModelForCausalLM.from_pretrained(BASE.folder)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
                **words}
    peft = get_peft_model(model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator).mul_(0.1)
    peft.save_pretrained(folder)
    if dtype != torch.float32:
        change(folder, lambda state: {name: tensor.to(dtype) for name, tensor in state.items()})
    return folder


def change(folder: Path,
           tensors: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda state: state,
           **words: Any) -> None:
    path = folder / "adapter_model.safetensors"
    state = tensors(safetensors.torch.load_file(path))
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    config = json.loads((folder / "adapter_config.json").read_text()) | words
    (folder / "adapter_config.json").write_text(json.dumps(config))


def engine_with(folder: Path, quantization: str = "none") -> Any:
    return build_with_adapter(BASE, load_tokenizer(BASE), folder, place_base(
        BASE, quantization=quantization, dtype="float32", device="cpu", adapter=folder))


def stock_logits(folder: Path) -> list[torch.Tensor]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE.folder, dtype=torch.float32),
                                      folder).eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits[0] for ids in IDS]


@pytest.mark.parametrize(("words", "dtype"), [
    ({}, torch.float32), ({}, torch.bfloat16), ({}, torch.float16), ({"r": 1}, torch.float32),
    ({"use_rslora": True}, torch.float32),
    ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}, torch.float32),
    ({"target_modules": "all-linear"}, torch.float32),
    ({"target_modules": r".*\.0\.self_attn\.(q|k)_proj"}, torch.float32), ({"use_dora": True}, torch.float32),
    ({"lora_bias": True}, torch.float32), ({"fan_in_fan_out": True}, torch.float32),
    ({"target_modules": ["q_proj", "lm_head"]}, torch.float32),
    ({"modules_to_save": ["lm_head"]}, torch.float32), ({"layers_to_transform": [1]}, torch.float32),
    ({"target_modules": ["embed_tokens", "q_proj"]}, torch.float32)], ids=lambda value: str(value)[:40])
@pytest.mark.filterwarnings("ignore")
def test_it_computes_what_stock_peft_computes(words: dict[str, Any], dtype: torch.dtype,
                                              tmp_path: Path) -> None:
    folder = made(tmp_path / "adapter", dtype=dtype, **words)
    try:
        engine = engine_with(folder)
    except IntegrityError as error:  # a reason is an answer too, but only for the odd ones
        assert words.get("modules_to_save") or "embed_tokens" in str(words) or "lm_head" in str(words), error
        assert str(folder) in str(error)
        return
    assert count_modules(engine) > 0
    for got, want in zip(engine.logits(IDS), stock_logits(folder), strict=True):
        assert torch.allclose(got, want, atol=2e-4 * want.abs().max().item()), (got - want).abs().max()


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda folder: change(folder, surprise=True), "surprise"),
    (lambda folder: change(folder, enable_lora=[True, False, True]), "MergedLinear"),
    (lambda folder: change(folder, r=8), "rank 4, but r is 8"),
    (lambda folder: change(folder, r=0), "r is 0"),
    (lambda folder: change(folder, r="four"), "r is 'four'"),
    (lambda folder: change(folder, lora_alpha=float("nan")), "lora_alpha"),
    (lambda folder: change(folder, task_type="SEQ_CLS"), "SEQ_CLS"),
    (lambda folder: change(folder, peft_type="PROMPT_TUNING"), "PROMPT_TUNING"),
    (lambda folder: change(folder, lambda state: dict(list(state.items())[1:])), "missing"),
    (lambda folder: change(folder, lambda state: {name: tensor * float("nan")
                                                  for name, tensor in state.items()}), "NaN"),
    (lambda folder: change(folder, lambda state: {name: tensor[:, :-1] if "lora_A" in name else tensor
                                                  for name, tensor in state.items()}), "in this base"),
    (lambda folder: change(folder, lambda state: {name.replace("q_proj", "w_proj"): tensor
                                                  for name, tensor in state.items()}),
     "not in this base"),
    (lambda folder: change(folder, target_modules=["nowhere"]), "does not fit this base"),
    (lambda folder: change(folder, lambda state: {"stray": torch.ones(2)}), "attach to nothing"),
    (lambda folder: (folder / "adapter_model.safetensors").write_bytes(
        (folder / "adapter_model.safetensors").read_bytes()[:-9]), "safetensors"),
    (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "pickle"),
    (lambda folder: (folder / "adapter_config.json").write_text("{"), "not JSON"),
], ids=range(17))
@pytest.mark.filterwarnings("ignore")
def test_it_is_refused_with_the_reason(spoil: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "adapter")
    engine_with(folder)  # it was whole
    spoil(folder)
    with pytest.raises(IntegrityError, match=says.replace("(", r"\(")):
        engine_with(folder)


@pytest.mark.filterwarnings("ignore")
def test_prompt_tuning_and_classifiers_by_stock_peft(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE.folder)
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM",
                                             num_virtual_tokens=4)).save_pretrained(tmp_path / "prompt")
    classifier = AutoModelForSequenceClassification.from_pretrained(BASE.folder, num_labels=2)
    get_peft_model(classifier, LoraConfig(task_type="SEQ_CLS",
                                          target_modules=["q_proj"])).save_pretrained(tmp_path / "head")
    for name, says in (("prompt", "PROMPT_TUNING"), ("head", "SEQ_CLS")):
        with pytest.raises(IntegrityError, match=says):
            check_adapter(tmp_path / name)


def test_words_that_say_nothing_are_let_by(tmp_path: Path) -> None:
    folder = made(tmp_path / "adapter")
    change(folder, of_a_newer_peft=None, and_another=False, a_list=[])
    assert count_modules(engine_with(folder)) == 2 * BASE.config["num_hidden_layers"]


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_change_nothing_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.model.native.engine import NativeEngine

    folder = made(tmp_path / "adapter")
    whole = NativeEngine.logits

    def bare(self: Any, rows: Any) -> Any:
        with self.adapter_disabled():
            return whole(self, rows)

    monkeypatch.setattr(NativeEngine, "logits", bare)  # as if the adapter had been put beside the model
    with pytest.raises(IntegrityError, match="the same with and without"):
        engine_with(folder)


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_an_adapter_for_another_base_is_refused(quantization: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "adapter")
    other = tmp_path / "other"
    shutil.copytree(BASE.folder, other)
    config = json.loads((other / "config.json").read_text())
    from transformers import AutoConfig

    small = AutoConfig.for_model(**(config | {"hidden_size": config["hidden_size"] // 2, "head_dim": None}))
    AutoModelForCausalLM.from_config(small).save_pretrained(other)
    base = locate_base(str(other), None)
    with pytest.raises(IntegrityError, match="in this base"):
        build_with_adapter(base, load_tokenizer(base), folder, place_base(
            base, quantization=quantization, dtype="float32", device="cpu", adapter=folder))
