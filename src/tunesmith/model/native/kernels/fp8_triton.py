"""Rounding to fp8 in Triton: see `fp8.py` for what each does."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tunesmith.model.native.kernels.dispatch import require_contiguous, row_block, warps
from tunesmith.model.native.kernels.formats import FP8, FP8_LARGEST


@triton.jit
def _loaded(x, scale, at, C, SCALED: tl.constexpr):
    """Some of a row's values as they are to be rounded; zeros beyond its end."""
    value = tl.load(x + at, mask=at < C, other=0.0).to(tl.float32)
    if SCALED:
        value *= tl.load(scale + at, mask=at < C, other=0.0)
    return value


@triton.jit
def _rows_kernel(x, scale, q, s, C, SCALED: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
                 WHOLE: tl.constexpr, CHUNK: tl.constexpr = 8):
    """One program a row. WHOLE: a block holds it, so it is read once; else twice, then from the cache.

    CHUNK: neighbouring values that a thread takes. Left alone it is 16, for the sake of the bytes that are
    stored, and a warp's loads, of 16 bytes a thread at most, would leave gaps.
    """
    row = tl.program_id(0).to(tl.int64)
    x += row * C
    q += row * C
    at = tl.max_contiguous(tl.arange(0, BLOCK), CHUNK)
    value = _loaded(x, scale, at, C, SCALED)
    largest = tl.maximum(tl.abs(value), 0.0)  # passes NaN over, as tl.max does
    if not WHOLE:
        for start in range(BLOCK, C, BLOCK):
            largest = tl.maximum(largest, tl.abs(_loaded(x, scale, start + at, C, SCALED)))
    row_max = tl.max(largest, 0)
    row_scale = tl.where(row_max > 0, row_max / LARGEST, 1.0)
    quantised = tl.minimum(tl.maximum(value / row_scale, -LARGEST), LARGEST)
    tl.store(q + at, quantised.to(tl.float8e4nv), mask=at < C)
    if not WHOLE:
        for start in range(BLOCK, C, BLOCK):
            value = _loaded(x, scale, start + at, C, SCALED)
            quantised = tl.minimum(tl.maximum(value / row_scale, -LARGEST), LARGEST)
            tl.store(q + start + at, quantised.to(tl.float8e4nv), mask=start + at < C)
    tl.store(s + row, row_scale)


@triton.jit
def _cast_kernel(w_ptr, scale_ptr, q_ptr, outputs, inputs, w_stride, SCALED: tl.constexpr,
                 TRANSPOSED: tl.constexpr, LARGEST: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr):
    """A tile of the weight; `w_stride` from one of its rows to the next."""
    o, i = tl.program_id(1) * BO + tl.arange(0, BO), tl.program_id(0) * BI + tl.arange(0, BI)
    inside = (o[:, None] < outputs) & (i[None, :] < inputs)
    w = tl.load(w_ptr + o[:, None].to(tl.int64) * w_stride + i[None, :], mask=inside, other=0).to(tl.float32)
    if SCALED:
        w = w / tl.load(scale_ptr + o, mask=o < outputs, other=1.0)[:, None]
    q = tl.minimum(tl.maximum(w, -LARGEST), LARGEST).to(tl.float8e4nv)
    if TRANSPOSED:
        tl.store(q_ptr + i[:, None].to(tl.int64) * outputs + o[None, :], tl.trans(q),
                 mask=(i[:, None] < inputs) & (o[None, :] < outputs))
    else:
        tl.store(q_ptr + o[:, None].to(tl.int64) * inputs + i[None, :], q, mask=inside)


def quantise_rows_triton(x_NC: torch.Tensor,
                         scale_C: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantise_rows` on a GPU."""
    require_contiguous(x_NC, scale_C)
    N, C = x_NC.shape
    q_NC = torch.empty((N, C), dtype=FP8, device=x_NC.device)
    scale_N1 = torch.empty((N, 1), dtype=torch.float32, device=x_NC.device)
    block, whole = row_block(C)
    with torch.cuda.device_of(x_NC):
        _rows_kernel[(N,)](x_NC, scale_C, q_NC, scale_N1, C, SCALED=scale_C is not None, LARGEST=FP8_LARGEST,
                           BLOCK=block, WHOLE=whole, num_warps=warps(block, per_warp=512))
    return q_NC, scale_N1


def cast_weight_triton(weight_OI: torch.Tensor, scale_O: torch.Tensor | None,
                       transposed: bool) -> torch.Tensor:
    """`cast_weight` on a GPU."""
    require_contiguous(weight_OI[:1], scale_O)
    outputs, inputs = weight_OI.shape
    q = torch.empty((inputs, outputs) if transposed else (outputs, inputs), dtype=FP8,
                    device=weight_OI.device)
    bo, bi = (128, 128) if transposed else (16, 512)
    with torch.cuda.device_of(weight_OI):
        _cast_kernel[(triton.cdiv(inputs, bi), triton.cdiv(outputs, bo))](
            weight_OI, scale_O, q, outputs, inputs, weight_OI.stride(0), SCALED=scale_O is not None,
            TRANSPOSED=transposed, LARGEST=FP8_LARGEST, BO=bo, BI=bi, num_warps=8)
    return q
