"""What a run chooses is decided once, before rows are read, and everything after obeys it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from placed import at

import tunesmith
from tunesmith import embedded
from tunesmith.errors import EnvironmentFault, RecipeError
from tunesmith.model.build import build_without_adapter
from tunesmith.model.files import locate_base
from tunesmith.model.tokenizer import load_tokenizer
from tunesmith.planning import activation_budget_bytes, micro_batch_limits
from tunesmith.recipe import load_recipe
from tunesmith.verbs.decide import decide
from tunesmith.verbs.show import Silent

BASE = locate_base(embedded.BASE_NAME, None)
SRC = Path(tunesmith.__file__).parent


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources of rows that were read."""
    from tunesmith.data import dataset

    read: list[str] = []
    real = dataset.open_source

    def open_source(settings: Any, *more: Any) -> Any:
        read.append(settings.source)
        return real(settings, *more)

    monkeypatch.setattr(dataset, "open_source", open_source)
    return read


@pytest.mark.parametrize(("setting", "error"), [
    ("model.device=cuda:99", EnvironmentFault), ("train.matmul=fp8", EnvironmentFault),
    ("lora.target_modules=[nothing_of_the_kind]", RecipeError), ("lora.r=1000000000", RecipeError),
    ("model.base=./nowhere", RecipeError)])
def test_what_cannot_be_had_is_said_before_any_row_is_read(
        recipe: Path, tmp_path: Path, counted: list[str], setting: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=setting.partition("=")[0]):
        tunesmith.train(recipe, run=tmp_path / "run", overrides=[setting, "train.engine=native"])
    assert counted == []
    assert not (tmp_path / "run").exists()


def test_evaluate_tokenises_the_validation_set_alone(recipe: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.data.tokenize import Encoder

    tunesmith.train(recipe, run=tmp_path / "run", overrides=["train.max_steps=2"])
    encoded: list[int] = []
    real = Encoder.encode_all

    def encode_all(self: Encoder, examples: Any) -> Any:
        encoded.append(len(examples))
        return real(self, examples)

    monkeypatch.setattr(Encoder, "encode_all", encode_all)
    found = tunesmith.evaluate(tmp_path / "run")
    assert encoded == [found["rows"]]


@pytest.mark.parametrize("engine", ["hf", "native"])
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_a_bare_engine_has_no_adapter(engine: str, quantization: str) -> None:
    bare = build_without_adapter(BASE, load_tokenizer(BASE), at(engine, quantization))
    assert bare.trainable() == {}
    trainable, everything = bare.parameter_counts()
    assert (trainable, everything) == (0, sum(bare.values_by_format().values()))
    logits = bare.logits([[5, 6, 7]])[0]
    with bare.adapter_disabled():
        assert torch.equal(bare.logits([[5, 6, 7]])[0], logits)
    assert len(bare.generate([[5, 6, 7]], 2)) == 1


def test_the_record_is_what_the_manifest_says(recipe: Path, tmp_path: Path) -> None:
    import json

    decided = decide(load_recipe(str(recipe)), Silent())
    tunesmith.train(recipe, run=tmp_path / "run", overrides=["train.max_steps=1"])
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    placement = decided.placement
    assert [manifest[name] for name in ("engine", "engine_reason", "device", "dtype", "quantization")] == [
        placement.engine, placement.reason, placement.device, placement.dtype_name, placement.quantization]


def test_only_one_room_decides() -> None:
    """Who else asks for a device, a dtype, free memory or an engine decides it a second time."""
    deciders = {"choose_device", "choose_dtype", "free_memory", "why_spread", "settle_engine", "mem_get_info"}
    allowed = {"model/placement.py", "model/engines.py", "verbs/generate.py", "verbs/doctor.py"}
    found = {}
    for path in SRC.rglob("*.py"):
        name = str(path.relative_to(SRC))
        used = {node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)} & deciders
        if used and name not in allowed:
            found[name] = used
    assert found == {}


CONFIGS = [BASE.config,
           {"model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
                         "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4}]


@given(st.sampled_from(CONFIGS), st.sampled_from(["hf", "native"]), st.integers(0, 1 << 36),
       st.sampled_from([2, 4]), st.integers(1, 4096), st.booleans(), st.sampled_from(["auto", 1, 7]),
       st.sampled_from(["auto", True, False]))
def test_the_limits_let_the_longest_row_through_and_fit_where_they_can(
        config: dict[str, Any], engine: str, budget: int, value_bytes: int, longest: int, on_gpu: bool,
        rows: Any, wanted: Any) -> None:
    found = micro_batch_limits(config, engine=engine, budget_bytes=budget, value_bytes=value_bytes,
                               longest=longest, on_gpu=on_gpu, micro_batch_size=rows,
                               gradient_checkpointing=wanted)
    assert found.max_tokens >= longest
    assert found.rows == (None if rows == "auto" else rows)
    assert found.may_checkpoint == (wanted == "auto")
    assert not (wanted is False and (found.checkpointing or found.may_offload))
    more = micro_batch_limits(config, engine=engine, budget_bytes=2 * budget, value_bytes=value_bytes,
                              longest=longest, on_gpu=on_gpu, micro_batch_size=rows,
                              gradient_checkpointing=wanted)
    assert more.checkpointing <= found.checkpointing, "more memory never recomputes more"


def test_what_is_quantised_leaves_more_for_activations() -> None:
    def left(quantization: str, **more: Any) -> float:
        return activation_budget_bytes(**{"free_bytes": 80 << 30, "host_bytes": 0,
                                          "quantization": quantization, "value_bytes": 2, "linear": 7 * 10**9,
                                          "others": 10**9, "trainable": 4 * 10**6} | more)

    assert 0 < left("none") < left("int8") < left("nf4") < 0.8 * (80 << 30)
    assert left("none", free_bytes=8 << 30) == 0.0
    assert left("none", gpus=2) > left("none")
    assert left("none", free_bytes=None, host_bytes=100) == 25.0
