"""Rotary position embedding: frequencies as transformers computes them, the angles of a batch's tokens.

Shapes: N tokens, H heads, D the width of a head, R <= D the channels that are turned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.model.families import parts
from tunesmith.model.native.kernels.rope import rotate_


@dataclass(frozen=True)
class Rope:
    """Cosines and sines of each token's angles [N, R / 2], fp32 (https://arxiv.org/abs/2104.09864)."""

    cos_NR2: torch.Tensor
    sin_NR2: torch.Tensor

    def rotated(self, x_NHD: torch.Tensor) -> torch.Tensor:
        """The first R channels of each head turned, as a new tensor, differentiable."""
        rotary = 2 * self.cos_NR2.shape[1]
        first, second = x_NHD[..., :rotary].float().chunk(2, dim=-1)
        cos, sin = self.cos_NR2[:, None], self.sin_NR2[:, None]
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_NHD.dtype)
        return rotated if rotary == x_NHD.shape[-1] else torch.cat([rotated, x_NHD[..., rotary:]], dim=-1)

    def rotate_(self, x_NHD: torch.Tensor, *, inverse: bool = False,
                source_NHD: torch.Tensor | None = None) -> None:
        """The same in place, or by minus the angles. source_NHD: the values, x itself by default."""
        rotary = 2 * self.cos_NR2.shape[1]
        if rotary == x_NHD.shape[-1]:
            rotate_(x_NHD, self.cos_NR2, self.sin_NR2, inverse, source_NHD)
            return
        source = None if source_NHD is None else source_NHD[..., :rotary]
        rotate_(x_NHD[..., :rotary], self.cos_NR2, self.sin_NR2, inverse, source)
        if source_NHD is not None and source_NHD is not x_NHD:
            x_NHD[..., rotary:].copy_(source_NHD[..., rotary:])


class RopeTable(nn.Module):
    """Inverse frequencies [R / 2] of one kind of layer, and the factor of cosines and sines (yarn, longrope).

    longest: the longest sample that `inverse` is for (longrope; Ding et al. 2024,
    https://arxiv.org/abs/2402.13753); all tokens of longer ones take `long_inverse`. None: for all.
    """

    inverse: torch.Tensor
    long_inverse: torch.Tensor

    def __init__(self, inverse_R2: torch.Tensor, factor: float, long_inverse_R2: torch.Tensor | None = None,
                 longest: int | None = None) -> None:
        super().__init__()
        self.factor, self.longest = factor, longest
        self.register_buffer("inverse", inverse_R2, persistent=False)
        if long_inverse_R2 is not None:
            self.register_buffer("long_inverse", long_inverse_R2, persistent=False)

    def forward(self, positions_N: torch.Tensor, lengths_N: torch.Tensor | None) -> Rope:
        """Angles of each position. lengths_N: of the token's sample; needed where `longest` is set."""
        angles_NR2 = positions_N[:, None].float() * self.inverse
        if self.longest is not None:
            if lengths_N is None:
                raise ValueError("this RoPE needs the lengths of the samples")
            long_NR2 = positions_N[:, None].float() * self.long_inverse
            angles_NR2 = torch.where((lengths_N > self.longest)[:, None], long_NR2, angles_NR2)
        return Rope(angles_NR2.cos() * self.factor, angles_NR2.sin() * self.factor)


def rope_table(rope: parts.Rope, config: Any, width: int, device: torch.device) -> RopeTable:
    """The table of a base. config: transformers' object of it. width: of a head.

    Raises RecipeError where a scaling lacks what it needs.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if rope.scaling == "default":
        rotary = int(width * rope.share)
        theta = config.rope_parameters["rope_theta"]
        return RopeTable((1.0 / theta ** (torch.arange(0, rotary, 2).float() / rotary)).to(device), 1.0)
    compute, cpu = ROPE_INIT_FUNCTIONS[rope.scaling], torch.device("cpu")
    try:
        inverse_R2, factor = compute(config, cpu)
        if rope.scaling != "longrope":
            return RopeTable(inverse_R2.float().to(device), float(factor))
        longest = int(config.rope_parameters["original_max_position_embeddings"])
        long_inverse_R2, _ = compute(config, cpu, seq_len=longest + 1)
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"its config.json asks for the RoPE scaling {rope.scaling!r} without a usable "
                          f"{error}", setting="model.base") from None
    return RopeTable(inverse_R2.float().to(device), float(factor), long_inverse_R2.float().to(device),
                     longest)
