"""The adapter's dropout drawn by sample, as the native engine draws it, in PEFT's layers.

PEFT keeps each layer's dropout as a module; ours stands in that place, and its class is untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.model.dropout import module_salt
from tunesmith.model.native.kernels.dropout import dropout

_PREFIX = "base_model.model."


@dataclass
class TokenKeys:
    """The dropout keys of the micro-batch [B, T], int64 on its device; None outside training."""

    keys_BT: torch.Tensor | None = None


class SampleDropout(torch.nn.Module):
    """Dropout of one adapted module, whose input is [B, T, I], or [B T, I] in the same order.

    What sees other tokens than the micro-batch's (an expert its share of them) draws from torch's generator,
    as PEFT does.
    """

    def __init__(self, p: float, keys: TokenKeys, salt: int) -> None:
        super().__init__()
        self.p, self.keys, self.salt = p, keys, salt

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x / (1 - p) where kept, else 0, in training; x itself otherwise."""
        if not self.training:
            return x
        keys_BT = self.keys.keys_BT
        if keys_BT is None or x.shape[:-1].numel() != keys_BT.numel():
            return torch.nn.functional.dropout(x, self.p)
        dropped: torch.Tensor = _Dropout.apply(x, self.p, keys_BT.flatten(), self.salt)
        return dropped


class _Dropout(torch.autograd.Function):
    """Its backward pass is itself on the gradient: the mask is drawn again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float, keys_N: torch.Tensor, salt: int) -> torch.Tensor:
        ctx.p, ctx.salt = p, salt
        ctx.save_for_backward(keys_N)
        return _of_rows(x, p, keys_N, salt)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (keys_N,) = ctx.saved_tensors
        return _of_rows(dy, ctx.p, keys_N, ctx.salt), None, None, None


def _of_rows(x: torch.Tensor, p: float, keys_N: torch.Tensor, salt: int) -> torch.Tensor:
    return dropout(x.reshape(len(keys_N), -1).contiguous(), p, keys_N.to(x.device), salt).view(x.shape)


def install_sample_dropout(model: torch.nn.Module) -> TokenKeys | None:
    """Put our dropout in PEFT's place; returns the holder of the keys, None where there is no dropout."""
    keys, any_dropout = TokenKeys(), False
    for name, module in model.named_modules():
        for adapter, drop in getattr(module, "lora_dropout", {}).items():
            if isinstance(drop, torch.nn.Dropout):
                module.lora_dropout[adapter] = SampleDropout(drop.p, keys,
                                                             module_salt(name.removeprefix(_PREFIX)))
                module.lora_dropout[adapter].train(drop.training)
                any_dropout = True
    return keys if any_dropout else None


def dropout_of_base(base: Any) -> dict[str, float]:
    """The settings of a transformers model's config by which it drops something of its own in training; heads
    that are not built aside.
    """
    config = base.config.to_dict()
    return {key: float(value) for key, value in config.items()
            if "drop" in key and isinstance(value, float) and value > 0
            and not key.startswith(("classifier", "summary", "label"))}
