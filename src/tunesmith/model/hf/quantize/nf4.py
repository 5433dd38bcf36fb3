"""4-bit NormalFloat, double-quantised (QLoRA, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

import torch
from transformers import BitsAndBytesConfig


def config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit weights that are turned back to `dtype` for every product."""
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype)


def prepare(model: torch.nn.Module) -> None:
    """Keep every layer on the one exact path on CPU.

    On CPUs with AVX512-BF16 bitsandbytes repacks the weights in place when a layer is first called outside training,
    computes in bf16 from then on, and fails for widths that 32 does not divide. Training and judging must see the
    same weights, so that shortcut is declined.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
