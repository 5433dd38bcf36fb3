"""4-bit NormalFloat, double-quantised (QLoRA, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

import copy

import torch
from torch.nn import functional
from transformers import BitsAndBytesConfig

from tunesmith.model.libraries import import_bitsandbytes

bitsandbytes = import_bitsandbytes()


class FlatLinear4bit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc, name-defined]
    """A layer on the CPU whose rows do not end where the blocks of the 4-bit format end.

    bitsandbytes' AVX512 routine goes row by row and takes the wrong scale as soon as a block spans two rows (0.50.2:
    errors as large as the weights, at widths that 32 divides and the blocksize does not). Told that the weight is one
    long row it is right.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + b, as the parent class computes it in its compute type."""
        bitsandbytes.nn.modules.fix_4bit_weight_quant_state_from_module(self)
        flat = copy.copy(self.weight.quant_state)
        shape, flat.shape = flat.shape, torch.Size([flat.shape.numel()])
        weight = bitsandbytes.functional.dequantize_4bit(self.weight.data.reshape(1, -1), flat).reshape(shape)
        dtype = self.compute_dtype or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return functional.linear(x.to(dtype), weight.to(dtype), bias).to(x.dtype)


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
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            state = module.weight.quant_state
            if state is not None and module.weight.device.type == "cpu" and module.in_features % state.blocksize:
                module.__class__ = FlatLinear4bit
