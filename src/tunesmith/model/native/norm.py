"""LayerNorm and RMSNorm, each with the addition of the residual stream before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm

from tunesmith.model.families.parts import Heads
from tunesmith.model.native.attention import split_heads
from tunesmith.model.native.kernels.norm import add_norm, add_norm_backward


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) with a shift, else RMSNorm (Zhang & Sennrich 2019). Frozen fp32 weights."""

    def __init__(self, weight_C: torch.Tensor, shift_C: torch.Tensor | None, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_C.float(), requires_grad=False)
        self.shift = None if shift_C is None else nn.Parameter(shift_C.float(), requires_grad=False)
        self.eps = eps

    def forward(self, residual_NC: torch.Tensor, delta_NC: torch.Tensor | None,
                spare_columns: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """(residual + delta, its norm), both [N, C].

        spare_columns: so many values behind each row of the norm, see `Linear.spare_columns`.
        """
        both: tuple[torch.Tensor, torch.Tensor] = _AddNorm.apply(residual_NC, delta_NC, self.weight,
                                                                 self.shift, self.eps, spare_columns)
        return both

    def parameter_count(self) -> int:
        """Of weight and shift."""
        return self.weight.numel() * (1 if self.shift is None else 2)


class HeadNorm(nn.Module):
    """RMSNorm of each head of q and of k (Qwen3)."""

    def __init__(self, q_D: torch.Tensor, k_D: torch.Tensor, heads: Heads, eps: float) -> None:
        super().__init__()
        self.q = nn.Parameter(q_D.float(), requires_grad=False)
        self.k = nn.Parameter(k_D.float(), requires_grad=False)
        self.heads, self.eps = heads, eps

    def forward(self, qkv_NW: torch.Tensor) -> torch.Tensor:
        """q, k, v side by side [N, W], q and k normed."""
        q, k, v = split_heads(self.heads, qkv_NW)
        q = rms_norm(q.float(), q.shape[-1:], self.q, self.eps).to(qkv_NW.dtype)
        k = rms_norm(k.float(), k.shape[-1:], self.k, self.eps).to(qkv_NW.dtype)
        return torch.cat([q, k, v], dim=1).flatten(1)

    def parameter_count(self) -> int:
        """Of both weights."""
        return self.q.numel() + self.k.numel()


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual_NC: torch.Tensor, delta_NC: torch.Tensor | None, weight_C: torch.Tensor,
                shift_C: torch.Tensor | None, eps: float,
                spare_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        sum_NC, normed_NC, mean_N, rstd_N = add_norm(residual_NC, delta_NC, None, weight_C, shift_C, eps,
                                                     spare_columns)
        ctx.save_for_backward(sum_NC, weight_C, mean_N, rstd_N)
        ctx.set_materialize_grads(False)
        return (residual_NC.view_as(residual_NC) if sum_NC is residual_NC else sum_NC), normed_NC

    @staticmethod
    def backward(ctx: Any, d_sum_NC: torch.Tensor | None,
                 d_normed_NC: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        sum_NC, weight_C, mean_N, rstd_N = ctx.saved_tensors
        d_NC = d_sum_NC if d_normed_NC is None else add_norm_backward(d_normed_NC, d_sum_NC, sum_NC, weight_C,
                                                                      mean_N, rstd_N)
        return d_NC, (d_NC if ctx.needs_input_grad[1] else None), None, None, None, None
