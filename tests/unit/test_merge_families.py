"""A merge is measured on a model without an adapter, so it needs no module of the base to take one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from native_bases import Bases, tokenizer, write_base
from placed import at
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith import merge
from tunesmith.model.build import build_without_adapter
from tunesmith.model.files import BaseFiles


def trained(base: BaseFiles, folder: Path, targets: list[str]) -> Path:
    """An adapter of stock PEFT's with random weights."""
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    found = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=8, target_modules=targets,
                                                       task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator).mul_(0.3)
    found.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_family_that_all_linear_cannot_be_put_on_is_merged(tmp_path: Path) -> None:
    """PhiMoE's router is linear but gives a tuple: PEFT cannot wrap it; only q and v can carry an adapter."""
    config = AutoConfig.for_model("phimoe", vocab_size=tokenizer().vocab_size + 64, hidden_size=32,
                                  intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
                                  num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
                                  max_position_embeddings=512, bos_token_id=1, eos_token_id=2)
    base = write_base(tmp_path / "base", config)
    tokenizer().save_pretrained(base.folder)
    adapter = trained(base, tmp_path / "adapter", ["q_proj", "v_proj"])
    found = merge(adapter, tmp_path / "out", base=str(base.folder), device="cpu")
    assert next(iter(found["candidates"].values()))["kl"] < found["bare"]["kl"] / 100


@pytest.mark.parametrize("engine", ["native", "hf"])
def test_a_bare_engine_is_the_base_itself(tmp_path: Path, engine: str) -> None:
    base = Bases(tmp_path)("llama")
    bare: Any = build_without_adapter(base, tokenizer(), at(engine, "none", "float32"))
    with torch.no_grad():
        want = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)(
            torch.tensor([[5, 9, 20, 31]])
        ).logits[0]
    got = bare.logits([[5, 9, 20, 31]])[0]
    assert (torch.equal(got, want) if engine == "hf"
            else torch.allclose(got, want, atol=1e-4 * want.abs().max().item()))
    with bare.adapter_disabled():
        assert torch.equal(bare.logits([[5, 9, 20, 31]])[0], got)
    assert not any(parameter.any() for parameter in bare.trainable().values())
    assert len(bare.generate([[5, 9], [7]], 3)) == 2
