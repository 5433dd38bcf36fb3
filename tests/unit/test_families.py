"""Tiny bases of other families: LoRA sits where it can, the rest is named, encoders are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.errors import RecipeError
from tunesmith.model.base_config import config_object, decoded, require_causal
from tunesmith.model.engines import settle_engine
from tunesmith.model.hf.adapter import attach, trainable
from tunesmith.model.hf.meta import count_on_meta
from tunesmith.model.lora import LoraSettings

_DENSE = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
          "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
          "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_MOE = _DENSE | {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
                 "moe_intermediate_size": 16, "decoder_sparse_step": 1, "n_routed_experts": 4,
                 "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
                 "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
                 "v_head_dim": 8}
_STATE = _DENSE | {"state_size": 4, "n_groups": 1, "num_heads": 4, "expand": 2}
FAMILIES = {
    **{kind: _DENSE
       for kind in ("llama mistral qwen2 qwen3 gpt_neox phi phi3 gemma gemma2 gemma3_text cohere "
                    "stablelm starcoder2 olmo olmo2 "
                                 "granite nemotron smollm3 glm4 opt gpt2 bloom lfm2").split()},
    "gptj": {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "n_positions": 64},
    "falcon": {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{kind: _MOE
       for kind in ("qwen3_moe qwen2_moe mixtral phimoe granitemoe deepseek_v2 deepseek_v3 "
                    "gpt_oss llama4_text olmoe glm4_moe jetmoe "
                               "ernie4_5_moe hunyuan_v1_moe").split()},
    "longcat_flash": _MOE | {"ffn_hidden_size": 32, "expert_ffn_hidden_size": 16, "num_layers": 1,
                             "zero_expert_num": 1, "moe_topk": 2},
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"),
                    _MOE | {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 4}),
    **{kind: _STATE for kind in ("mamba", "mamba2", "falcon_mamba")},
    **{kind: _MOE
       | {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4, "mamba_expand": 2}
       for kind in ("jamba", "bamba", "granitemoehybrid", "nemotron_h")},
}
QUICK = ("gpt2", "opt", "qwen3_moe", "deepseek_v2", "phimoe", "llama4_text", "mamba", "nemotron_h", "jamba",
         "granite")


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **FAMILIES[kind])).float()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", ["auto", "all-linear"])
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[] if kind in QUICK else [pytest.mark.slow])
                                  for kind in FAMILIES])
def test_every_adapter_learns_and_what_carries_none_is_named(kind: str, targets: str) -> None:
    model, notes = attach(tiny(kind), LoraSettings(4, 8, 0.05, targets), kind, seed=0)
    model.train()
    for parameter in trainable(model).values():  # B too, or nothing flows to A
        parameter.data.normal_()
    model(input_ids=torch.randint(3, 60, (2, 9)), use_cache=False).logits.square().mean().backward()
    dead = [name for name, parameter in trainable(model).items() if parameter.grad is None]
    dead = [name for name in dead if "expert" not in name]  # an expert that no token was sent to
    assert not dead, dead[:3]
    chosen = {name.split(".lora_")[0].rpartition(".")[2] for name in trainable(model)}
    assert chosen
    every = {name.rpartition(".")[2] for name, module in tiny(kind).named_modules()
             if isinstance(module, torch.nn.Linear | transformers.pytorch_utils.Conv1D)
             and module is not tiny(kind).get_output_embeddings()}
    if targets == "all-linear":
        for name in every - chosen - {"lm_head", "embed_out"}:
            assert any(name in note for note in notes), (name, notes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "target", "says"), [
    ("mamba", "out_proj", "state-space"), ("phimoe", "router", "router"),
    ("deepseek_v2", "down_proj", "fused experts"), ("nemotron_h", "out_proj", "state-space"),
    ("llama", "nowhere", "no linear module")])
def test_a_target_that_cannot_carry_lora_is_refused_with_the_reason(kind: str, target: str,
                                                                    says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        count_on_meta({"model_type": kind, **FAMILIES[kind]}, LoraSettings(4, 8, 0.05, [target]))
    assert target in caught.value.message


def test_experts_take_lora_without_dropout() -> None:
    config = {"model_type": "deepseek_v2", **FAMILIES["deepseek_v2"]}
    with_experts = count_on_meta(config, LoraSettings(4, 8, 0.0, "all-linear"))
    without = count_on_meta(config, LoraSettings(4, 8, 0.05, "all-linear"))
    assert with_experts.trainable > without.trainable
    assert any("lora.dropout: 0" in note for note in without.notes)
    assert not with_experts.notes


@pytest.mark.parametrize("r", [33, 10**9])
def test_a_rank_beyond_every_width_is_refused(r: int) -> None:
    from tunesmith.planning import count_parameters

    config = {"model_type": "granite", **FAMILIES["granite"]}
    with pytest.raises(RecipeError, match=r"lora\.r is"):
        count_on_meta(config, LoraSettings(r, 8, 0.05, "auto"))
    with pytest.raises(RecipeError, match=r"lora\.r is"):
        count_parameters({"model_type": "llama", **FAMILIES["llama"]}, r=r, target_modules="auto")


def test_configs_with_infinity_are_read() -> None:
    config = {"model_type": "granitemoehybrid", **FAMILIES["granitemoehybrid"],
              "time_step_limit": [0.0, {"__float__": "Infinity"}]}
    assert decoded(config)["time_step_limit"][1] == float("inf")
    assert count_on_meta(config, LoraSettings(4, 8, 0.05, "all-linear")).trainable > 0
    other = {"a": {"__float__": "x"}, "b": [{"__float__": "NaN", "c": 1}]}
    assert decoded({"a": {"__float__": "x"}, "b": [{"__float__": "NaN", "c": 1}]}) == other


# --- which models are causal ---


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "xlm-roberta", "bart", "t5", "mbart",
                                  "modernbert", "distilbert", "whisper", "vit", "no_such_kind"])
def test_what_is_no_causal_language_model_is_refused(kind: str) -> None:
    config = {"model_type": kind} if kind == "no_such_kind" else AutoConfig.for_model(kind).to_dict()
    with pytest.raises(RecipeError, match="causal language model") as caught:
        require_causal(config, "some/base")
    assert caught.value.exit_code == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*QUICK, "bert-decoder"])
def test_what_passes_is_causal(kind: str) -> None:
    """A later token changes nothing before it."""
    if kind == "bert-decoder":
        config = AutoConfig.for_model("bert", vocab_size=64, hidden_size=16, intermediate_size=32,
                                      num_hidden_layers=2, num_attention_heads=2, is_decoder=True)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    else:
        model = tiny(kind)
    require_causal(model.config.to_dict(), kind)
    ids = torch.randint(3, 60, (1, 9))
    other = ids.clone()
    other[0, -1] = (other[0, -1] - 2) % 57 + 3
    model.eval()
    with torch.no_grad():
        first, second = (model(input_ids=each, use_cache=False).logits[0, :-1] for each in (ids, other))
    assert torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "bart"])
def test_train_refuses_before_it_asks_for_weights(kind: str, tmp_path: Path) -> None:
    import tunesmith
    from tunesmith.recipe import parse_recipe

    (tmp_path / "config.json").write_text(json.dumps(AutoConfig.for_model(kind).to_dict()))
    recipe = parse_recipe(f"model: {{base: {tmp_path}, quantization: none}}\ndata: {{source: "
                          f"'embedded:quotes', completion: '{{tags}}'}}\n")
    with pytest.raises(RecipeError, match="not a causal language model"):
        tunesmith.train(recipe, run=tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(f"model: {{base: {tmp_path}, quantization: none}}\ndata: {{source: "
                                          f"x, completion: '{{tags}}'}}\n")
    with pytest.raises(RecipeError, match="not a causal language model"):
        tunesmith.plan(tmp_path / "recipe.yaml")


def test_config_objects_keep_what_a_config_says() -> None:
    assert config_object({"model_type": "llama", "hidden_size": 64}).hidden_size == 64


# --- one GPU or several ---


@pytest.mark.parametrize(("asked", "free", "spread"), [
    ("auto", [80, 80], True), ("auto", [80], False), ("cuda:1", [80, 80], False), ("auto", [300, 80], False),
    ("cpu", [80, 80], False), ("auto", [], False)])
def test_a_base_is_spread_where_one_of_several_gpus_does_not_hold_it(asked: str, free: list[int],
                                                                     spread: bool) -> None:
    from tunesmith.model.placement import why_spread

    found = why_spread("org/big", 200 << 30, asked, [each << 30 for each in free])
    assert (found is not None) == spread
    if spread:
        assert "org/big" in str(found)
        assert "200.0 GiB" in str(found)


def test_the_engine_is_settled_once_and_its_reason_is_true() -> None:
    assert settle_engine("native", "fast", None, wanted="auto", matmul="fp8") == ("native", "fast")
    assert settle_engine("hf", "asked for", "too large", wanted="hf", matmul="exact") == ("hf", "asked for")
    assert settle_engine("native", "fast", "too large", wanted="auto", matmul="exact") == ("hf", "too large")
    with pytest.raises(RecipeError, match=r"train\.engine: native .* too large"):
        settle_engine("native", "asked for", "too large", wanted="native", matmul="exact")
    with pytest.raises(RecipeError, match=r"train\.matmul: fp8"):
        settle_engine("native", "fast", "too large", wanted="auto", matmul="fp8")
