"""The numbers that a plain kernel and its Triton twin agree on: layouts and limits of the formats."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: The target of a token that bears no loss, as in torch's cross-entropy.
IGNORED = -100

#: nf4: values that share an absmax, and absmaxes that share a nested one.
NF4_BLOCK, NF4_NESTED = 64, 256

FP8 = torch.float8_e4m3fn
#: The largest value of e4m3.
FP8_LARGEST = 448.0

#: The largest int8 in use, as in bitsandbytes: -128 has no counterpart.
INT8_LARGEST = 127.0
#: A row that is nowhere greater counts as zero, so that 127 / its greatest stays finite.
INT8_TINY = 1e-30


@dataclass(frozen=True)
class Nf4Absmax:
    """The quantised absmax of each block b of 64 values: code_256[q[b]] * nested[b // 256] + offset.

    Dettmers et al. 2023 (https://arxiv.org/abs/2305.14314), section 3. q: uint8 [blocks]. code_256: fp32
    [256]. nested: fp32 [ceil(blocks / 256)]. offset: fp32 without dimensions.
    """

    q: torch.Tensor
    code_256: torch.Tensor
    nested: torch.Tensor
    offset: torch.Tensor
