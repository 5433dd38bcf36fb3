"""fp8 (e4m3, https://arxiv.org/abs/2209.05433) for products of activations with frozen weights.

Shapes: N tokens, C channels; O outputs and I inputs of a weight. An activation has one scale a token, a
weight one an output: value = q * scale.
"""

from __future__ import annotations

import torch

from tunesmith.model.native.kernels.dispatch import use_triton
from tunesmith.model.native.kernels.formats import FP8, FP8_LARGEST


def quantise_rows(x_NC: torch.Tensor, scale_C: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(q_NC fp8, scale_N1 fp32) of x, or of x * scale_C; a row of zeros gets the scale 1."""
    if use_triton(x_NC):
        from tunesmith.model.native.kernels.fp8_triton import quantise_rows_triton

        return quantise_rows_triton(x_NC, scale_C)
    return quantise_rows_plain(x_NC, scale_C)


def quantise_rows_plain(x_NC: torch.Tensor,
                        scale_C: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantise_rows` in plain torch."""
    x_NC = x_NC.float() if scale_C is None else x_NC.float() * scale_C
    largest_N1 = x_NC.abs().amax(dim=1, keepdim=True)
    scale_N1 = torch.where(largest_N1 > 0, largest_N1 / FP8_LARGEST, torch.ones_like(largest_N1))
    return (x_NC / scale_N1).clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8), scale_N1


def cast_weight(weight_OI: torch.Tensor, scale_O: torch.Tensor | None, *, transposed: bool) -> torch.Tensor:
    """weight / scale_O (or the weight itself) rounded to fp8: [O, I], or [I, O] when transposed; contiguous.

    The rows of the weight may have gaps between them.
    """
    if use_triton(weight_OI):
        from tunesmith.model.native.kernels.fp8_triton import cast_weight_triton

        return cast_weight_triton(weight_OI, scale_O, transposed)
    return cast_weight_plain(weight_OI, scale_O, transposed)


def cast_weight_plain(weight_OI: torch.Tensor, scale_O: torch.Tensor | None,
                      transposed: bool) -> torch.Tensor:
    """`cast_weight` in plain torch."""
    q_OI = weight_OI.float() if scale_O is None else weight_OI.float() / scale_O[:, None]
    q_OI = q_OI.clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8)
    return q_OI.T.contiguous() if transposed else q_OI


def scaled_product(a_NK: torch.Tensor, scale_N1: torch.Tensor, b_MK: torch.Tensor, scale_1M: torch.Tensor,
                   dtype: torch.dtype) -> torch.Tensor:
    """(a scale_N1) (b scale_1M^T)^T [N, M] in `dtype`, accumulated in fp32. a, b: fp8, K dense in memory."""
    if a_NK.is_cuda:
        return torch._scaled_mm(a_NK, b_MK.T, scale_N1, scale_1M, out_dtype=dtype, use_fast_accum=True)
    return ((a_NK.float() @ b_MK.float().T) * scale_N1 * scale_1M).to(dtype)
