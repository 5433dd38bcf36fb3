from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tunesmith
from conftest import RECIPE
from tunesmith.errors import RecipeError
from tunesmith.model.families import FAMILIES
from tunesmith.model.hf.meta import count_on_meta
from tunesmith.model.lora import LoraSettings
from tunesmith.planning import count_parameters, native_activation_bytes


def test_bloom_7b1_to_the_digit(assets: Path) -> None:
    config = json.loads((assets / "bloom-7b1" / "config.json").read_text())
    counts = count_parameters(config, r=16, target_modules="auto")
    assert (counts.trainable, counts.all) == (7_864_320, 7_076_880_384)
    assert counts.trainable_percent == pytest.approx(0.11112693126452029, rel=1e-15)


@settings(max_examples=25)
@given(family=st.sampled_from(sorted(FAMILIES)), layers=st.integers(1, 3), heads=st.sampled_from([2, 4]),
       head=st.sampled_from([4, 6]), kv=st.sampled_from([1, 2]), inner=st.integers(5, 30),
       vocabulary=st.integers(6, 50), tied=st.booleans(), biased=st.booleans(), r=st.integers(1, 5),
       targets=st.sampled_from(["auto", "all-linear"]))
def test_arithmetic_equals_the_model_that_transformers_builds(
        family: str, layers: int, heads: int, head: int, kv: int, inner: int, vocabulary: int, tied: bool,
        biased: bool, r: int, targets: str) -> None:
    hidden = heads * head
    if family == "bloom":
        config = {"hidden_size": hidden, "n_layer": layers, "n_head": heads, "vocab_size": vocabulary}
    else:
        config = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
                  "num_key_value_heads": kv, "intermediate_size": inner, "vocab_size": vocabulary,
                  "tie_word_embeddings": tied, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        if family in ("llama", "qwen3", "granite", "smollm3"):
            config["attention_bias"] = biased
        if family == "qwen3":
            config["head_dim"] = head
        if family in ("llama", "granite", "smollm3"):
            config["mlp_bias"] = biased
    config["model_type"] = family
    counts = count_parameters(config, r=r, target_modules=targets)
    found = count_on_meta(config, LoraSettings(r, 8, 0.0, targets))
    assert (counts.trainable, counts.all, counts.linear) == (found.trainable, found.all, found.quantisable)


def test_a_family_without_arithmetic_is_built_without_memory(tmp_path: Path) -> None:
    base = tmp_path / "gpt2"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 1600, "n_layer": 48,
                                                  "n_head": 25}))
    (tmp_path / "r.yaml").write_text(RECIPE)
    found = tunesmith.plan(tmp_path / "r.yaml", overrides=[f"model.base={base}"])
    assert found["all_parameters"] - found["trainable_parameters"] == 1_557_611_200
    assert found["trainable_parameters"] == 48 * 16 * (1600 + 4800)


@pytest.mark.parametrize(("config", "targets", "said"), [
    ({"model_type": "bloom", "hidden_size": 8}, "auto", "vocab_size"),
    ({"model_type": "bloom", "hidden_size": "x", "vocab_size": 5}, "auto", "usable"),
    ({"model_type": "bloom", "vocab_size": 5}, ["q_proj"], "'q_proj'"),
])
def test_configs_and_targets_that_do_not_fit(config: dict[str, object], targets: object, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        count_parameters(config, r=1, target_modules=targets)  # type: ignore[arg-type]


def test_the_more_layers_run_again_the_less_is_kept(assets: Path) -> None:
    config = json.loads((assets / "bloom-7b1" / "config.json").read_text())
    shares = [i / 10 for i in range(11)]
    kept = [native_activation_bytes(config, value_bytes=2, checkpointing=share) for share in shares]
    assert all(fixed == kept[0][1] for _, fixed in kept)
    per_token = [each for each, _ in kept]
    assert per_token[1:] == sorted(per_token[1:], reverse=True)
    assert per_token[10] < per_token[0] / 5
    assert per_token[10] > 30 * 4096 * 2, "every layer's input is kept"


def test_plan_reads_no_weights_and_no_data(tmp_path: Path, assets: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("embedded:quotes", "nobody/nothing"))
    found = tunesmith.plan(tmp_path / "r.yaml",
                           overrides=[f"model.base={assets / 'bloom-7b1'}", "model.quantization=int8"])
    assert found["trainable_parameters"] == 7_864_320
