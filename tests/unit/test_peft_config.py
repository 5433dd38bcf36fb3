"""One table of adapter settings, read by everyone that takes an adapter."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_bases import Bases, build, randomise, samples, tokenizer
from peft import LoraConfig

import tunesmith
from tunesmith.errors import IntegrityError, RecipeError
from tunesmith.model.build import build_with_adapter
from tunesmith.model.lora import LoraSettings, build_config, peft_config_dict
from tunesmith.model.native.adapter import why_not
from tunesmith.model.peft_config import (
    GGUF,
    MERGE,
    NATIVE,
    PEFT_DEFAULTS,
    SETTINGS,
    Setting,
    changes_base,
    understood,
    unsupported_setting,
)
from tunesmith.model.placement import place_base
from tunesmith.share.folding import read_changes, read_skeleton
from tunesmith.share.gguf.adapter import write_adapter_gguf

SRC = Path(tunesmith.__file__).parent
#: Of each setting that PEFT may see, a value that says something.
SAYS: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "peft_version": "0.1", "base_model_name_or_path": "x",
    "revision": "y", "inference_mode": True, "r": 4, "lora_alpha": 6, "lora_dropout": 0.5,
    "target_modules": ["q_proj"], "exclude_modules": ["layers.7"], "layers_to_transform": [0, 1],
    "layers_pattern": "layers", "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 2},
    "use_rslora": True, "fan_in_fan_out": True, "init_lora_weights": "gaussian", "eva_config": {"rho": 2.0},
    "modules_to_save": ["lm_head"], "ensure_weight_tying": True, "bias": "all", "lora_bias": True,
    "use_dora": True, "target_parameters": ["mlp.weight"], "trainable_token_indices": [1],
    "alora_invocation_tokens": [1]}
SEEN = {name for name, setting in SETTINGS.items() if setting.value_type is not None}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def adapter(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain adapter on q_proj of a small Llama."""
    folder = tmp_path_factory.mktemp("adapter")
    engine = build(bases("llama"), "native", targets=["q_proj"], r=4)
    randomise(engine)
    for name, content in engine.adapter_files().items():
        (folder / name).write_bytes(content)
    return folder


def edited(adapter: Path, folder: Path, **settings: Any) -> Path:
    for path in adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return folder


def test_every_setting_is_tried_here() -> None:
    assert set(SAYS) == SEEN


def test_the_table_is_what_the_installed_peft_writes() -> None:
    assert LoraConfig().to_dict() == PEFT_DEFAULTS
    settings = LoraSettings(4, 8.0, 0.1, ["v_proj", "q_proj"])
    theirs = build_config(settings, ["v_proj", "q_proj"]).to_dict()
    assert peft_config_dict(settings) == theirs | {"target_modules": sorted(theirs["target_modules"])}


@pytest.mark.parametrize("name", sorted(SEEN - {"peft_type"}))
def test_each_consumer_takes_what_the_table_says_and_nothing_else(name: str, bases: Bases, adapter: Path,
                                                                  tmp_path: Path) -> None:
    """Native, merging and GGUF, on a real adapter with one setting that says something."""
    base, setting = bases("llama"), SETTINGS[name]
    folder = edited(adapter, tmp_path, **{name: SAYS[name]},
                    **({"layers_to_transform": [0, 1]} if name == "layers_pattern" else {}))
    settings = understood(json.loads((folder / "adapter_config.json").read_text()), folder)
    settings.pop("peft_type")
    reason = why_not(LoraConfig(**settings), base.config)
    # PEFT itself never sees eva_config, and so the native engine does not.
    assert (reason is None) == (NATIVE in setting.followed_by or not setting.passed_to_peft), reason

    def taken(attempt: Any) -> bool:
        try:
            attempt()
        except (IntegrityError, RecipeError) as error:
            assert name in str(error)
            return False
        return True

    assert taken(lambda: read_changes(folder, read_skeleton(base, None))) == (MERGE in setting.followed_by)
    assert taken(lambda: write_adapter_gguf(folder, base,
                                            tmp_path / "a.gguf")) == (GGUF in setting.followed_by)


def test_a_row_more_is_all_that_a_setting_needs(monkeypatch: pytest.MonkeyPatch, adapter: Path, bases: Bases,
                                                tmp_path: Path) -> None:
    monkeypatch.setitem(SETTINGS, "use_dora",
                        Setting(False, bool, frozenset({MERGE}), reason="a reason of the test's"))
    folder = edited(adapter, tmp_path, use_dora=True)
    assert read_changes(folder, read_skeleton(bases("llama"), None)).changes
    monkeypatch.setitem(SETTINGS, "use_dora", Setting(False, bool, reason="a reason of the test's"))
    with pytest.raises(IntegrityError, match="a reason of the test's"):
        read_changes(folder, read_skeleton(bases("llama"), None))


@given(name=st.sampled_from(sorted(SETTINGS)), who=st.sampled_from([NATIVE, MERGE, GGUF]))
def test_a_setting_that_says_nothing_keeps_nobody_away(name: str, who: str) -> None:
    assert unsupported_setting(PEFT_DEFAULTS, who) is None
    assert unsupported_setting(PEFT_DEFAULTS | {name: SETTINGS[name].default}, who) is None
    assert understood(PEFT_DEFAULTS | {name: SETTINGS[name].default}, Path("c")).keys() <= SEEN


@pytest.mark.parametrize(("start", "changes"), [
    (True, False), (False, False), (None, False), ("gaussian", False), ("eva", False), ("orthogonal", False),
    ("pissa", True), ("pissa_niter_4", True), ("olora", True), ("loftq", True), ("corda", True),
    ("of_next_year", True)])
def test_ways_to_begin_that_change_the_base(start: Any, changes: bool) -> None:
    assert changes_base(start) is changes


@pytest.mark.parametrize("family", ["phi3", "smollm3", "granite", "bloom"])
def test_the_native_engine_takes_an_adapter_on_any_module_of_its_families(
    family: str, bases: Bases, tmp_path: Path
) -> None:
    """What a family's modules are called is told by its file alone."""
    base = bases(family)
    engine = build(base, "native", targets="all-linear")
    randomise(engine)
    for name, content in engine.adapter_files().items():
        (tmp_path / name).write_bytes(content)
    row = samples([14])[0]
    native, hf = (build_with_adapter(base, tokenizer(), tmp_path, place_base(
        base, engine=engine, quantization="none", device="cpu", adapter=tmp_path))
                  for engine in ("auto", "hf"))
    assert (native.name, hf.name) == ("native", "hf")
    assert torch.equal(native.logits([row.ids])[0], engine.logits([row.ids])[0])
    torch.testing.assert_close(native.logits([row.ids])[0], hf.logits([row.ids])[0], atol=1e-4, rtol=1e-4)


def test_a_module_that_the_base_has_not_is_not_the_native_engine_s(bases: Bases) -> None:
    config = bases("llama").config
    for targets, strange in ((["q_proj", "qkv_proj"], "qkv_proj"), (["lm_head"], "lm_head"),
                             (["j_proj"], "j_proj"), (["proj"], "proj")):
        assert why_not(LoraConfig(target_modules=targets), config) == f"the adapter sits on {strange}"
    for targets in (["q_proj"], ["self_attn.q_proj"], ["model.layers.0.self_attn.q_proj"],
                    ["q_proj", "down_proj"]):
        assert why_not(LoraConfig(target_modules=targets), config) is None


def test_no_other_file_has_a_list_of_settings() -> None:
    """Those that ask for one setting name it; a list of many, as constants, is the table's."""
    lists = []
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Set | ast.List | ast.Tuple | ast.Dict | ast.Constant):
                inside = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)
                          and isinstance(each.value, str)]
                words = {word for text in inside for word in (text.split() if len(text) < 2000 else [])}
                if len(words & (set(SETTINGS) - {"r", "revision", "bias"})) >= 3:
                    lists.append(path.relative_to(SRC).as_posix())
    assert set(lists) <= {"model/peft_config.py", "model/lora.py", "recipe/load.py"}, set(lists)
