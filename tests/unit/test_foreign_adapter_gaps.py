"""What an adapter's files can say besides settings: names that PEFT compiles, tensors that are no pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tunesmith.errors import IntegrityError
from tunesmith.model.lora import CONFIG_NAME, WEIGHTS_NAME, check_adapter, read_adapter_config

PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}


def adapter(folder: Path, a_shape: list[int], b_shape: list[int], **words: object) -> Path:
    (folder / CONFIG_NAME).write_text(json.dumps(PLAIN | words))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    safetensors.torch.save_file({name.format("A"): torch.ones(a_shape),
                                 name.format("B"): torch.ones(b_shape)}, folder / WEIGHTS_NAME)
    return folder


@pytest.mark.parametrize(("word", "value"),
                         [("modules_to_save", ["(a+)+b"]), ("modules_to_save", ["lm_head", "x|y"]),
                                             ("layers_pattern", "(a|a)*"),
                          ("layers_pattern", ["layers", "("])])
def test_names_that_peft_compiles_are_names(tmp_path: Path, word: str, value: object) -> None:
    """PEFT puts them into regular expressions as they stand (tuners_utils.check_target_module_exists)."""
    with pytest.raises(IntegrityError, match=word):
        read_adapter_config(adapter(tmp_path, [2, 8], [8, 2], layers_to_transform=[0], **{word: value}))
    whole = {"modules_to_save": ["lm_head", "model.norm-2"], "layers_pattern": "layers",
             "layers_to_transform": [0]}
    check_adapter(adapter(tmp_path, [2, 8], [8, 2], **whole))


@pytest.mark.parametrize(("a_shape", "b_shape"), [([], []), ([2], [2]), ([2, 8], [8]), ([], [8, 2]),
                                                  ([2, 8], [8, 3]), ([3, 8], [8, 3])])
def test_tensors_that_are_no_pair_are_named(tmp_path: Path, a_shape: list[int], b_shape: list[int]) -> None:
    with pytest.raises(IntegrityError, match="q_proj"):
        check_adapter(adapter(tmp_path, a_shape, b_shape))
    check_adapter(adapter(tmp_path, [2, 8], [8, 2]))
