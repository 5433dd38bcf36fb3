"""Merged weights against PEFT's own, the live model's logits, what is refused, what a failure leaves."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_bases import FAMILIES, VOCABULARY, build, rewrite_tensors, tokenizer, write_base

from tunesmith.errors import IntegrityError
from tunesmith.model.files import BaseFiles, locate_base
from tunesmith.share import merge as merging
from tunesmith.share.merge import merge_weights

_BLOOM_LINEAR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
_LLAMA_LINEAR = ["q_proj", "v_proj", "o_proj", "down_proj"]


def _gpt2() -> Any:
    return transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4, bos_token_id=1,
                                   eos_token_id=2)


def _write(folder: Path, family: str, **more: Any) -> BaseFiles:
    config = _gpt2() if family == "gpt2" else FAMILIES[family]()
    return write_base(folder, config, seed=int(torch.randint(2**31, ())), **more)


def _load(folder: Path, dtype: torch.dtype | str = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def _adapter(base: BaseFiles, folder: Path, dtype: torch.dtype = torch.float32, **words: Any) -> Any:
    """A random adapter made and saved by PEFT; the live model on the base in fp32."""
    model = peft.get_peft_model(_load(base.folder),
                                peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6}
                                                | words))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fresh = torch.randn(parameter.shape) * 0.2
            parameter.data = (fresh if ".lora_" in name else fresh + parameter.data).to(dtype)
    model.save_pretrained(folder)
    return model.eval()


def _merge(base: BaseFiles, adapter: Path, out: Path,
           dequantised: str | None = None) -> merging.MergedWeights:
    out.mkdir()
    return merge_weights(base, adapter, out, dequantised=dequantised, progress=lambda done, whole: None)


def _ids() -> torch.Tensor:
    return torch.randint(4, VOCABULARY, (2, 19))


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors"))
            for name, t in safetensors.torch.load_file(path).items()}


CASES = {
    "llama": ("llama", {}, {"target_modules": _LLAMA_LINEAR}),
    "llama-shards": ("llama-tied-shards", {"shards": True},
                     {"target_modules": "all-linear", "use_rslora": True}),
    "llama-biases": ("llama-biases", {}, {"target_modules": _LLAMA_LINEAR, "r": 1}),
    "qwen3": ("qwen3", {}, {"target_modules": ["q_proj", "k_proj", "up_proj"], "layers_to_transform": [1]}),
    "bloom": ("bloom", {}, {"target_modules": _BLOOM_LINEAR}),
    "bloom-no-prefix": ("bloom", {"prefixed": False}, {"target_modules": _BLOOM_LINEAR}),
    "bloom-rank-one": ("bloom", {}, {"target_modules": ["query_key_value"], "r": 1, "lora_alpha": 3.5}),
    "patterns": ("bloom", {}, {"target_modules": _BLOOM_LINEAR,
                               "rank_pattern": {"h.0.self_attention.query_key_value": 7, "dense_h_to_4h": 2},
                               "alpha_pattern": {r"h\.1\..*dense": 11, "dense_4h_to_h": 1.5},
                               "use_rslora": True}),
    "gpt2": ("gpt2", {}, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt2-no-prefix": ("gpt2", {"prefixed": False},
                       {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "head-of-its-own": ("bloom-untied", {}, {"target_modules": ["lm_head", "dense"]}),
    "embedding-of-its-own": ("llama", {}, {"target_modules": ["embed_tokens", "q_proj"]}),
    "modules-to-save": ("llama", {}, {"target_modules": ["q_proj"],
                                      "modules_to_save": ["lm_head", "norm", "embed_tokens", "o_proj"]}),
    "norms-to-save": ("bloom", {}, {"target_modules": ["dense"], "modules_to_save": ["ln_f"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_merge_is_pefts_own_and_loads_alone(tmp_path: Path, case: str) -> None:
    family, how, words = CASES[case]
    base = _write(tmp_path / "base", family, **how)
    live, ids = _adapter(base, tmp_path / "adapter", **words), _ids()
    want, bare = _logits(live, ids), _logits(_load(base.folder), ids)
    done = _merge(base, tmp_path / "adapter", tmp_path / "out")
    assert (want - bare).abs().max() > 1e-2  # the adapter does something
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32,
                                                                    output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(_logits(model.eval(), ids), want, atol=1e-4, rtol=1e-4)
    expected = live.merge_and_unload().state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-6, rtol=2e-6)
    before, after = _tensors(base.folder), _tensors(tmp_path / "out")
    assert list(before) == list(after)
    assert [p.name for p in sorted(base.folder.glob("*.safetensors*"))] == [
        p.name for p in sorted((tmp_path / "out").glob("*.safetensors*"))
    ]
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert 0 < len(changed) == done.changed < len(before)
    assert {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}.keys() == set(done.files)
    assert done.bytes == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "config.json").read_bytes() == (base.folder / "config.json").read_bytes()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tokenizer().get_vocab()


TIED = {
    "bloom-head": ("bloom", {}, {"target_modules": ["lm_head", "dense"]}),
    "bloom-embedding-no-prefix": ("bloom", {"prefixed": False}, {"target_modules": ["word_embeddings"]}),
    "llama-head-shards": ("llama-tied-shards", {"shards": True}, {"target_modules": ["lm_head"]}),
    "llama-both": ("llama-tied-shards", {"shards": True},
                   {"target_modules": ["lm_head", "embed_tokens", "up_proj"], "use_rslora": True}),
    "gpt2-embedding": ("gpt2", {}, {"target_modules": ["wte", "wpe"]}),
    "head-to-save": ("qwen2", {}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "embedding-to-save": ("bloom", {}, {"target_modules": ["dense"], "modules_to_save": ["word_embeddings"]}),
}


@pytest.mark.parametrize("case", TIED)
def test_a_tied_head_that_changes_becomes_a_tensor_of_its_own(tmp_path: Path, case: str) -> None:
    family, how, words = TIED[case]
    base = _write(tmp_path / "base", family, **how)
    live, ids = _adapter(base, tmp_path / "adapter", **words), _ids()
    done = _merge(base, tmp_path / "adapter", tmp_path / "out")
    assert done.untied
    merged = _load(tmp_path / "out")
    torch.testing.assert_close(_logits(merged, ids), _logits(live, ids), atol=1e-4, rtol=1e-4)
    assert merged.config.tie_word_embeddings is False
    assert "lm_head.weight" in _tensors(tmp_path / "out")
    assert list(_tensors(base.folder)) == [name for name in _tensors(tmp_path / "out")
                                           if name != "lm_head.weight"]
    if family != "gpt2":  # the native engine reads it, too
        native = build(locate_base(str(tmp_path / "out"), None), "native")
        torch.testing.assert_close(native.logits([ids[0].tolist()])[0], _logits(live, ids)[0], atol=1e-3,
                                   rtol=1e-3)
    if how.get("shards"):
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(_tensors(tmp_path / "out"))
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in _tensors(tmp_path / "out").values())


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("learnt", [torch.bfloat16, torch.float16])
def test_rounded_once_to_the_bases_dtype(tmp_path: Path, kept: torch.dtype, learnt: torch.dtype) -> None:
    base = _write(tmp_path / "base", "llama", dtype=kept)
    _adapter(base, tmp_path / "adapter", dtype=learnt, target_modules=_LLAMA_LINEAR, use_rslora=True)
    state = safetensors.torch.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {t.dtype for t in state.values()} == {learnt}
    _merge(base, tmp_path / "adapter", tmp_path / "out")
    after = _tensors(tmp_path / "out")
    for name, before in _tensors(base.folder).items():
        module, exact = f"base_model.model.{name.removesuffix('.weight')}", before.double()
        if f"{module}.lora_A.weight" in state:
            exact += (
                3.0 * state[f"{module}.lora_B.weight"].double() @ state[f"{module}.lora_A.weight"].double()
            )
        assert after[name].dtype == kept
        # half a unit in the last place, and what fp32 loses on the way
        assert ((after[name].double() - exact).abs() <= exact.abs() * torch.finfo(kept).eps * 0.5
                + 1e-5 * torch.finfo(kept).eps + 2e-6).all()


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(outputs=st.integers(1, 90), inputs=st.integers(1, 90), rank=st.integers(1, 5),
       dtype=st.sampled_from([torch.float32, torch.bfloat16]), at_once=st.integers(1, 400),
       columns=st.booleans())
def test_any_shape_in_any_pieces(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
                                 outputs: int, inputs: int, rank: int, dtype: torch.dtype, at_once: int,
                                 columns: bool) -> None:
    from tunesmith.share.folding import Change
    from tunesmith.share.shards import read_header

    monkeypatch.setattr(merging, "_VALUES_AT_ONCE", at_once)
    folder = tmp_path_factory.mktemp("any")
    weight, left, right = torch.randn(outputs,
                                      inputs).to(dtype), torch.randn(outputs, rank), torch.randn(rank, inputs)
    safetensors.torch.save_file({"w": weight}, folder / "model.safetensors")
    for kept in (None, "int8", "nf4"):
        plan = merging._Plan({folder / "model.safetensors": read_header(folder / "model.safetensors")},
                             {"w": Change(left, right, 0.7)}, frozenset({"w"} if kept else ()),
                             frozenset({"w"} if columns else ()), None, kept)
        got = torch.frombuffer(bytearray(b"".join(plan.content("w"))), dtype=dtype).reshape(outputs, inputs)
        start = weight.float() if kept is None else merging._dequantised(weight, kept, columns=columns)
        torch.testing.assert_close(got, (start + 0.7 * left @ right).to(dtype), atol=1e-5,
                                   rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("way", ["int8", "nf4"])
@pytest.mark.parametrize("family", ["bloom", "llama", "gpt2"])
def test_the_dequantised_base_is_what_the_engines_compute_with(tmp_path: Path, way: str, family: str) -> None:
    import bitsandbytes

    base = _write(tmp_path / "base", family)
    targets = {"bloom": ["dense"], "llama": ["q_proj"], "gpt2": ["c_attn"]}[family]
    _adapter(base, tmp_path / "adapter", target_modules=targets, init_lora_weights=True)
    state_path = tmp_path / "adapter" / "adapter_model.safetensors"
    state = {name: t * (0 if "lora_B" in name else 1)
             for name, t in safetensors.torch.load_file(state_path).items()}
    safetensors.torch.save_file(state, state_path)
    done = _merge(base, tmp_path / "adapter", tmp_path / "out", dequantised=way)
    engine = build(base, "hf", quantization=way)
    layers = {name: module for name, module in engine.model.get_base_model().named_modules()
              if isinstance(module, bitsandbytes.nn.Linear8bitLt | bitsandbytes.nn.Linear4bit)}
    after = _load(tmp_path / "out").state_dict()
    assert len(layers) == done.changed > 7
    for name, module in layers.items():
        if way == "nf4":  # as one long row: see quantization/nf4.py
            state = copy.copy(module.weight.quant_state)
            shape, state.shape = state.shape, torch.Size([state.shape.numel()])
            want = bitsandbytes.functional.dequantize_4bit(
                module.weight.data.reshape(1, -1), state).reshape(shape)
        else:
            want = module.weight.data.float() * module.weight.SCB[:, None] / 127
        name = name.replace(".base_layer", "") + ".weight"
        torch.testing.assert_close(after[name], want.T if family == "gpt2" else want, atol=1e-6, rtol=1e-5)
    untouched = [name for name, t in _tensors(base.folder).items()
                 if torch.equal(t, _tensors(tmp_path / "out")[name])]
    assert len(untouched) + done.changed == len(_tensors(base.folder))


def _edit(adapter: Path, **words: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | words))


def _edit_state(adapter: Path, change: Any) -> None:
    path = adapter / "adapter_model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)


_Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
REFUSED = {
    "use_dora": lambda a: _edit(a, use_dora=True),
    "lora_bias": lambda a: _edit(a, lora_bias=True),
    "bias is 'all'": lambda a: _edit(a, bias="all"),
    "target_parameters": lambda a: _edit(a, target_parameters=["mlp.experts"]),
    "layer_replication": lambda a: _edit(a, layer_replication=[[0, 1], [0, 2]]),
    "trainable_token_indices": lambda a: _edit(a, trainable_token_indices=[3]),
    "alora_invocation_tokens": lambda a: _edit(a, alora_invocation_tokens=[3]),
    "use_something_new": lambda a: _edit(a, use_something_new=1),
    "'pissa'": lambda a: _edit(a, init_lora_weights="pissa"),
    "'pissa_niter_4'": lambda a: _edit(a, init_lora_weights="pissa_niter_4"),
    "'olora'": lambda a: _edit(a, init_lora_weights="olora"),
    "'corda'": lambda a: _edit(a, init_lora_weights="corda"),
    "'loftq'": lambda a: _edit(a, init_lora_weights="loftq"),
    "NaN or infinite": lambda a: _edit_state(
        a, lambda s: s | {f"{_Q0}.lora_A.weight": s[f"{_Q0}.lora_A.weight"] / 0}
    ),
    "layers.7.self_attn.q_proj: not in this base": lambda a: _edit_state(
        a, lambda s: {n.replace("layers.0", "layers.7"): t for n, t in s.items()}
    ),
    "lora_B.weight(: missing| are wanted)": lambda a: _edit_state(
        a, lambda s: {n: t for n, t in s.items() if n != f"{_Q0}.lora_B.weight"}
    ),
    "lora_A.weight: .4, 47. in the adapter, .4, 48. in this base": lambda a: _edit_state(
        a, lambda s: s | {f"{_Q0}.lora_A.weight": s[f"{_Q0}.lora_A.weight"][:, 1:].clone()}
    ),
    "lora_A.weight: (.4, 48. in the adapter, .5, 48. in this base|rank 4, but)": lambda a: _edit(a, r=5),
    "input_layernorm: no linear layer": lambda a: _edit_state(
        a, lambda s: {n.replace("self_attn.q_proj", "input_layernorm"): t for n, t in s.items()}
    ),
    "neither LoRA nor modules_to_save": lambda a: _edit_state(
        a, lambda s: s | {"base_model.model.lm_head.weight": torch.ones(VOCABULARY, 48)}
    ),
    "not this base's": lambda a: _edit_state(
        a, lambda s: s | {"base_model.model.lm_head.base_layer.weight": torch.ones(VOCABULARY, 48)}
    ),
    "no (tensors|lora_A)": lambda a: _edit_state(a, lambda s: {}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(tmp_path: Path, reason: str) -> None:
    base = _write(tmp_path / "base", "llama")
    _adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    REFUSED[reason](tmp_path / "adapter")
    with pytest.raises(IntegrityError, match=reason):
        _merge(base, tmp_path / "adapter", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_weight_that_leaves_f16_is_refused(tmp_path: Path) -> None:
    base = _write(tmp_path / "base", "llama", dtype=torch.float16)
    _adapter(base, tmp_path / "adapter", target_modules=["q_proj"], lora_alpha=4e6)
    with pytest.raises(IntegrityError, match="q_proj.weight: the merged weight overflows F16.*65504"):
        _merge(base, tmp_path / "adapter", tmp_path / "out")


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda t: {n: x for n, x in t.items() if "layers.1.self_attn.q_proj" not in n},
     "no tensor of its files is called model.layers.1.self_attn.q_proj"),
    (lambda t: t | {"model.layers.0.self_attn.q_proj.weight": torch.ones(48, 49)},
     r"q_proj.weight is \[48, 49\]"),
    (lambda t: t | {"model.layers.0.self_attn.q_proj.weight": torch.ones(48, 48, dtype=torch.int8)},
     "q_proj.weight is kept as I8"),
    (lambda t: t | {"model.layers.0.self_attn.q_proj.weight": torch.full((48, 48), torch.nan)},
     "NaN or infinite: the base's is")])
def test_a_base_that_does_not_fit_is_refused(tmp_path: Path, damage: Any, reason: str) -> None:
    base = _write(tmp_path / "base", "llama")
    _adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    rewrite_tensors(base.folder, damage)
    with pytest.raises(IntegrityError, match=reason):
        _merge(base, tmp_path / "adapter", tmp_path / "out")


def test_tied_learning_on_a_tied_base_is_refused(tmp_path: Path) -> None:
    base = _write(tmp_path / "base", "bloom")
    _adapter(base, tmp_path / "adapter", target_modules=["dense"])
    _edit(tmp_path / "adapter", ensure_weight_tying=True)
    with pytest.raises(IntegrityError, match="ensure_weight_tying"):
        _merge(base, tmp_path / "adapter", tmp_path / "out")


def test_a_base_that_is_quantised_already_is_refused(tmp_path: Path) -> None:
    base = _write(tmp_path / "base", "llama")
    _adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    base.config["quantization_config"] = {"quant_method": "gptq"}
    with pytest.raises(IntegrityError, match="quantised already"):
        _merge(base, tmp_path / "adapter", tmp_path / "out")
