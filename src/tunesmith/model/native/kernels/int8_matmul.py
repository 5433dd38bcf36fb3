"""int8 products of activations with a frozen weight (https://arxiv.org/abs/2208.07339, eq. 3-6).

Shapes: N tokens, C channels; O outputs and I inputs of a weight; [N, K] x [M, K] of a product, R ranks of
what is added to it. An activation has one scale a token, a weight one an output: value = q * scale, q from
-127 to 127.
"""

from __future__ import annotations

import torch

from tunesmith.model.native.kernels.dispatch import use_triton
from tunesmith.model.native.kernels.formats import INT8_LARGEST, INT8_TINY

#: What a product asks of K: rows of whole 16 bytes.
MULTIPLE = 16


def quantise_rows_int8(x_NC: torch.Tensor, scale_C: torch.Tensor | None = None,
                       dropped_C: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(q [N, C] int8, scale [N] fp32) of x, or of x * scale_C; a row of zeros gets the scale 1.

    Rounds to the nearest even of x * scale_C / scale with scale = the row's greatest / 127. dropped_C (bool
    or uint8): columns that become 0 and do not count towards the greatest. A row that is not finite elsewhere
    gets the scale NaN.
    """
    if use_triton(x_NC):
        from tunesmith.model.native.kernels.int8_matmul_triton import quantise_rows_int8_triton

        return quantise_rows_int8_triton(x_NC, scale_C, dropped_C)
    return quantise_rows_int8_plain(x_NC, scale_C, dropped_C)


def quantise_rows_int8_plain(x_NC: torch.Tensor, scale_C: torch.Tensor | None = None,
                             dropped_C: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantise_rows_int8` in plain torch."""
    x_NC = x_NC.float() if scale_C is None else x_NC.float() * scale_C
    if dropped_C is not None:
        x_NC = x_NC.masked_fill(dropped_C.bool(), 0.0)
    largest_N = x_NC.abs().amax(dim=1)
    # Infinity * 0 is NaN: int8 cannot say that a value is not finite, so the scale does.
    scale_N = torch.where(largest_N > INT8_TINY, largest_N / INT8_LARGEST, torch.ones_like(largest_N))
    scale_N = scale_N + largest_N * 0
    return torch.round(x_NC * (1 / scale_N)[:, None]).to(torch.int8), scale_N


def int8_product(a_NK: torch.Tensor, scale_N: torch.Tensor, b_MK: torch.Tensor, scale_M: torch.Tensor | None,
                 bias_M: torch.Tensor | None, dtype: torch.dtype, xa_NR: torch.Tensor | None = None,
                 b_MR: torch.Tensor | None = None) -> torch.Tensor:
    """(a b^T) scale_N scale_M + bias + xa b_MR^T [N, M] in `dtype`, rounded once; a b^T is exact, in int32.

    No scale_M: ones. a and b are int8, the scales fp32, xa_NR and b_MR both in one dtype; all contiguous,
    but b_MR may also be a transposed view of what is. Raises ValueError when K is no multiple of 16, and when
    xa_NR and b_MR do not fit.
    """
    if a_NK.shape[1] != b_MK.shape[1] or a_NK.shape[1] % MULTIPLE:
        raise ValueError(f"an int8 product needs two equal widths, a multiple of {MULTIPLE}: "
                         f"{tuple(a_NK.shape)} and {tuple(b_MK.shape)}")
    _require_low_rank(len(a_NK), len(b_MK), xa_NR, b_MR)
    if use_triton(a_NK):
        from tunesmith.model.native.kernels.int8_matmul_triton import int8_product_triton

        return int8_product_triton(a_NK, scale_N, b_MK, scale_M, bias_M, dtype, xa_NR, b_MR)
    return int8_product_plain(a_NK, scale_N, b_MK, scale_M, bias_M, dtype, xa_NR, b_MR)


def _require_low_rank(N: int, M: int, xa_NR: torch.Tensor | None, b_MR: torch.Tensor | None) -> None:
    """Raise ValueError unless both are there and fit a result [N, M], or neither is."""
    if xa_NR is None and b_MR is None:
        return
    if xa_NR is None or b_MR is None:
        raise ValueError("a low-rank part needs both of its matrices")
    if xa_NR.shape != (N, b_MR.shape[1]) or len(b_MR) != M or xa_NR.dtype != b_MR.dtype:
        raise ValueError(f"the low-rank part of a product [{N}, {M}] has {tuple(xa_NR.shape)} and "
                         f"{tuple(b_MR.shape)}, in {xa_NR.dtype} and {b_MR.dtype}")


def int8_product_plain(a_NK: torch.Tensor, scale_N: torch.Tensor, b_MK: torch.Tensor,
                       scale_M: torch.Tensor | None, bias_M: torch.Tensor | None, dtype: torch.dtype,
                       xa_NR: torch.Tensor | None = None, b_MR: torch.Tensor | None = None) -> torch.Tensor:
    """`int8_product` in plain torch."""
    try:
        sum_NM = torch._int_mm(a_NK, b_MK.T)
    except RuntimeError:  # a shape that the device's library does not take; fp64 is as exact
        sum_NM = a_NK.double() @ b_MK.double().T
    y_NM = sum_NM.float() * scale_N[:, None]
    if scale_M is not None:
        y_NM *= scale_M
    if bias_M is not None:
        y_NM += bias_M
    if xa_NR is not None and b_MR is not None:
        y_NM.addmm_(xa_NR.float(), b_MR.float().T)
    return y_NM.to(dtype)


def transpose_int8(q_OI: torch.Tensor) -> torch.Tensor:
    """A contiguous copy [I, O]. The rows of q_OI may have gaps between them."""
    if use_triton(q_OI):
        from tunesmith.model.native.kernels.int8_matmul_triton import quantise_weight_int8_triton

        return quantise_weight_int8_triton(q_OI, None, True)
    return q_OI.T.contiguous()


def quantise_weight_int8(weight_OI: torch.Tensor, scale_O: torch.Tensor, *, transposed: bool) -> torch.Tensor:
    """weight / scale_O rounded to int8: [O, I], or [I, O] when transposed; contiguous.

    The rows of the weight may have gaps between them.
    """
    if use_triton(weight_OI):
        from tunesmith.model.native.kernels.int8_matmul_triton import quantise_weight_int8_triton

        return quantise_weight_int8_triton(weight_OI, scale_O, transposed)
    return quantise_weight_int8_plain(weight_OI, scale_O, transposed)


def quantise_weight_int8_plain(weight_OI: torch.Tensor, scale_O: torch.Tensor,
                               transposed: bool) -> torch.Tensor:
    """`quantise_weight_int8` in plain torch."""
    q_OI = torch.round(weight_OI.float() * (1 / scale_O)[:, None])
    q_OI = q_OI.clamp(-INT8_LARGEST, INT8_LARGEST).to(torch.int8)
    return q_OI.T.contiguous() if transposed else q_OI
