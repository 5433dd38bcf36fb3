"""Checkpoints already in few bits: taken for what they are, or refused; never read as plain weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from placed import at
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from tunesmith import embedded
from tunesmith.cli.facts import described
from tunesmith.errors import IntegrityError, RecipeError, TunesmithError
from tunesmith.model.base_config import own_quantization, require_agreement, require_computable
from tunesmith.model.build import build_for_training
from tunesmith.model.engines import choose_engine
from tunesmith.model.files import locate_base
from tunesmith.model.lora import LoraSettings
from tunesmith.model.tokenizer import load_tokenizer

IDS = [[5, 9, 300, 41, 7]]
CONFIGS = {"int8": BitsAndBytesConfig(load_in_8bit=True),
           "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                     bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=1536, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                 num_attention_heads=4, num_key_value_heads=2)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded.path_of(embedded.BASE_NAME)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["int8", "nf4"])
def quantised(request: pytest.FixtureRequest, plain: Path,
              tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A checkpoint that bitsandbytes quantised and transformers wrote."""
    folder = tmp_path_factory.mktemp(request.param)
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=CONFIGS[request.param],
                                         dtype=torch.float32, device_map={"": "cpu"}).save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    return request.param, folder


def engine_of(folder: Path, quantization: str, name: str = "hf") -> Any:
    base = locate_base(str(folder), None)
    return build_for_training(base, load_tokenizer(base), at(name, quantization, "float32"), seed=0,
                              lora=LoraSettings(4, 8, 0.0, "all-linear"))


def test_a_checkpoint_in_int8_or_nf4_is_the_run_that_quantised_it(quantised: tuple[str, Path],
                                                                  plain: Path) -> None:
    kind, folder = quantised
    ours, theirs = engine_of(plain, kind), engine_of(folder, kind)
    assert torch.equal(ours.logits(IDS)[0], theirs.logits(IDS)[0])
    assert theirs.values_by_format()[kind] == ours.values_by_format()[kind] > 0
    assert choose_engine("auto", locate_base(str(folder), None).config)[0] == "hf"
    with pytest.raises(RecipeError, match="quantised already"):
        choose_engine("native", locate_base(str(folder), None).config)


def test_another_quantisation_is_refused_before_anything_is_read(quantised: tuple[str, Path]) -> None:
    kind, folder = quantised
    config = locate_base(str(folder), None).config
    assert own_quantization(config) == kind
    for other in {"none", "int8", "nf4"} - {kind}:
        with pytest.raises(RecipeError, match=f"kept in {kind}") as caught:
            engine_of(folder, other)
        assert f"model.quantization to {kind}" in caught.value.hint


def test_codes_without_their_words_are_never_weights(quantised: tuple[str, Path], tmp_path: Path) -> None:
    """A config that lost its quantization_config."""
    import shutil

    _, folder = quantised
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    del config["quantization_config"]
    (copy / "config.json").write_text(json.dumps(config))
    for name in ("hf", "native"):
        with pytest.raises(IntegrityError, match="config.json does not say"):
            engine_of(copy, "none", name)


def test_scales_that_nothing_reads_are_refused(plain: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    tensors = safetensors.torch.load_file(copy / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight_scale_inv"] = torch.ones(1, 1)
    safetensors.torch.save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="weight_scale_inv"):
        engine_of(copy, "none")


def test_a_checkpoint_in_block_fp8_is_turned_back(plain: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    tensors, size = safetensors.torch.load_file(plain / "model.safetensors"), 32
    want = dict(tensors)
    for name, weight in list(tensors.items()):
        if "_proj.weight" in name:
            blocks = weight.unflatten(0, (-1, size)).unflatten(2, (-1, size))
            scale = blocks.abs().amax((1, 3), keepdim=True) / 448
            codes = (blocks / scale).to(torch.float8_e4m3fn)
            tensors[name] = codes.flatten(2, 3).flatten(0, 1)
            tensors[name.replace("weight", "weight_scale_inv")] = scale[:, 0, :, 0].contiguous()
            want[name] = (codes.float() * scale).flatten(2, 3).flatten(0, 1)
    safetensors.torch.save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [size, size],
                                     "activation_scheme": "dynamic"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="kept in fp8"):
        engine_of(copy, "int8")
    engine = engine_of(copy, "none")
    for name, parameter in engine.model.get_base_model().named_parameters():
        plain_name = name.replace(".base_layer", "")
        if "_proj.weight" in plain_name and "lora" not in name:
            assert torch.allclose(parameter.float(), want[plain_name], atol=1e-6), name
    assert set(engine.values_by_format()) == {"float32"}


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "quanto", "unheard-of"])
def test_other_ways_are_refused_by_name(method: str) -> None:
    for quantization in ("none", "int8", "nf4"):
        with pytest.raises(RecipeError, match=f"kept in {method}"):
            require_agreement({"model_type": "llama", "quantization_config": {"quant_method": method}},
                              "some/base", quantization)


def test_gpt_oss_is_taken_under_none() -> None:
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    require_agreement(config, "openai/gpt-oss-20b", "none")
    with pytest.raises(RecipeError, match="turned back to 16 bits|kept in mxfp4"):
        require_agreement(config, "openai/gpt-oss-20b", "nf4")


@pytest.mark.parametrize(("config", "device", "refused"), [
    ({"model_type": "deepseek_v3", "kv_lora_rank": 8}, "cpu", True),
    ({"model_type": "deepseek_v3", "kv_lora_rank": 8}, "cuda", False),
    ({"model_type": "gemma3n_text"}, "cuda", True), ({"model_type": "llama"}, "cpu", False)])
def test_what_a_library_fails_at_is_said_beforehand(config: dict[str, Any], device: str,
                                                    refused: bool) -> None:
    for quantization in ("none", "nf4"):
        require_computable(config, "some/base", quantization, device)
    if refused:
        with pytest.raises(RecipeError, match="int8"):
            require_computable(config, "some/base", "int8", device)
    else:
        require_computable(config, "some/base", "int8", device)


def test_what_is_kept_how_is_counted() -> None:
    base = locate_base(embedded.BASE_NAME, None)
    for kind in ("none", "int8", "nf4"):
        hf, native = (build_for_training(base, load_tokenizer(base), at(name, kind, "float32"), seed=0,
                                         lora=LoraSettings(4, 8, 0.0, "auto")) for name in ("hf", "native"))
        assert hf.values_by_format() == native.values_by_format()
        assert sum(hf.values_by_format().values()) == hf.parameter_counts()[1] - hf.parameter_counts()[0]
    assert described({"int8": 61, "float32": 39}, "int8") == "61% of its values in int8, 39% in float32"
    assert described({"float32": 100}, "int8") == "0% of its values in int8, 100% in float32"
    assert described({"float32": 100}, "none") == "not quantised"


def test_a_signal_while_a_tokenizer_loads_is_a_signal(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.errors import Interrupted

    def stop(*args: Any, **more: Any) -> Any:
        raise Interrupted(15, "Stopped.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", stop)
    with pytest.raises(Interrupted) as caught:
        load_tokenizer(locate_base(str(plain), None))
    assert caught.value.exit_code == 143


def test_no_broad_handler_takes_a_signal_for_something_else() -> None:
    """An error of ours, as a signal is, passes every handler of any exception but the very last."""
    import ast

    import tunesmith

    root = Path(tunesmith.__file__).parent
    last_resorts = {"cli/common.py", "verbs/doctor.py", "data/chat/render.py"}
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Try):
                kinds = [ast.unparse(handler.type) if handler.type else "" for handler in node.handlers]
                if "Exception" in kinds and str(path.relative_to(root)) not in last_resorts:
                    assert "TunesmithError" in kinds[:kinds.index("Exception")], f"{path}:{node.lineno}"


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers",
                                 "rope_parameters", "eos_token_id", "quantization_config",
                                 "tie_word_embeddings", "max_position_embeddings"])
@pytest.mark.parametrize("value", ["x", -1, 0, 1e400, [], {}, None, True, 10**30], ids=str)
def test_a_config_with_something_else_in_it_is_refused_or_read(plain: Path, tmp_path: Path, key: str,
                                                               value: Any) -> None:
    config = json.loads((plain / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((plain / name).read_bytes())
    try:
        base = locate_base(str(tmp_path), None)
        engine_of(tmp_path, "none", choose_engine("auto", base.config)[0])
    except TunesmithError as error:
        assert error.exit_code in (3, 5, 6, 9)


@pytest.mark.parametrize("name", ["hf", "native"])
def test_both_engines_read_the_files_that_transformers_reads(plain: Path, tmp_path: Path, name: str) -> None:
    """A second copy of the weights beside the one that counts."""
    import shutil

    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    want = engine_of(plain, "none", name).logits(IDS)[0]
    tensors = safetensors.torch.load_file(copy / "model.safetensors")
    safetensors.torch.save_file({key: value * 2 for key, value in tensors.items()},
                                copy / "pytorch_model.safetensors", metadata={"format": "pt"})
    assert torch.equal(engine_of(copy, "none", name).logits(IDS)[0], want)


def test_another_name_for_the_quantisation_does_not_hide_it(quantised: tuple[str, Path],
                                                            tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(quantised[1], tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["compression_config"] = config.pop("quantization_config")
    (copy / "config.json").write_text(json.dumps(config))
    assert choose_engine("auto", config)[0] == "hf"
    with pytest.raises(RecipeError, match="compressed-tensors"):
        engine_of(copy, quantised[0])


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_config_that_claims_what_the_file_has_not_is_refused(plain: Path, tmp_path: Path,
                                                               kind: str) -> None:
    import shutil

    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = CONFIGS[kind].to_dict() | {"quant_method": "bitsandbytes"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(TunesmithError) as caught:
        engine_of(copy, kind)
    assert caught.value.exit_code in (3, 9)


@pytest.mark.parametrize(("found", "own"), [
    ({"quant_method": "int8"}, "the method int8"), ({"quant_method": "none"}, "the method none"),
    ({"load_in_8bit": False, "load_in_4bit": False}, "an unknown way"), ([1], "an unknown way"),
    ({"load_in_8bit": True}, "int8")])
def test_only_bitsandbytes_own_flags_mean_its_own_kinds(found: Any, own: str) -> None:
    assert own_quantization({"quantization_config": found}) == own


@pytest.mark.parametrize("value", ["abc", [[2]], 1.5, 10**30, {}, True])
def test_tokens_that_are_none_are_refused_in_both_engines(plain: Path, tmp_path: Path, value: Any) -> None:
    import shutil

    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(IntegrityError, match="eos_token_id"):
        locate_base(str(copy), None)
