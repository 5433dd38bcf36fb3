"""Rounding to fp8 in Triton: see `fp8.py` for what each does."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tunesmith.model.native.kernels.fp8 import FP8, LARGEST


@triton.jit
def _rows_kernel(x_ptr, scale_ptr, q_ptr, s_ptr, C, SCALED: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    """One program a row; the row is read twice, the second time from the cache."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, C, BLOCK):
        inside = start + at < C
        x = tl.load(x_ptr + row * C + start + at, mask=inside, other=0.0).to(tl.float32)
        if SCALED:
            x *= tl.load(scale_ptr + start + at, mask=inside, other=0.0)
        largest = tl.maximum(largest, tl.abs(x))
    most = tl.max(largest, 0)
    scale = tl.where(most > 0, most / LARGEST, 1.0)
    for start in range(0, C, BLOCK):
        inside = start + at < C
        x = tl.load(x_ptr + row * C + start + at, mask=inside, other=0.0).to(tl.float32)
        if SCALED:
            x *= tl.load(scale_ptr + start + at, mask=inside, other=0.0)
        q = tl.minimum(tl.maximum(x / scale, -LARGEST), LARGEST)
        tl.store(q_ptr + row * C + start + at, q.to(tl.float8e4nv), mask=inside)
    tl.store(s_ptr + row, scale)


@triton.jit
def _cast_kernel(w_ptr, scale_ptr, q_ptr, outputs, inputs, SCALED: tl.constexpr, TRANSPOSED: tl.constexpr,
                 LARGEST: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr):
    """A tile of the weight."""
    o, i = tl.program_id(1) * BO + tl.arange(0, BO), tl.program_id(0) * BI + tl.arange(0, BI)
    inside = (o[:, None] < outputs) & (i[None, :] < inputs)
    w = tl.load(w_ptr + o[:, None].to(tl.int64) * inputs + i[None, :], mask=inside, other=0).to(tl.float32)
    if SCALED:
        w = w / tl.load(scale_ptr + o, mask=o < outputs, other=1.0)[:, None]
    q = tl.minimum(tl.maximum(w, -LARGEST), LARGEST).to(tl.float8e4nv)
    if TRANSPOSED:
        tl.store(q_ptr + i[:, None].to(tl.int64) * outputs + o[None, :], tl.trans(q),
                 mask=(i[:, None] < inputs) & (o[None, :] < outputs))
    else:
        tl.store(q_ptr + o[:, None].to(tl.int64) * inputs + i[None, :], q, mask=inside)


def quantise_rows_triton(x_NC: torch.Tensor, scale_C: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantise_rows` on a GPU."""
    N, C = x_NC.shape
    q_NC = torch.empty((N, C), dtype=FP8, device=x_NC.device)
    scale_N1 = torch.empty((N, 1), dtype=torch.float32, device=x_NC.device)
    block = min(4096, triton.next_power_of_2(C))
    _rows_kernel[(N,)](x_NC, scale_C, q_NC, scale_N1, C, SCALED=scale_C is not None, LARGEST=LARGEST, BLOCK=block,
                       num_warps=8 if block >= 2048 else 4)
    return q_NC, scale_N1


def cast_weight_triton(weight_OI: torch.Tensor, scale_O: torch.Tensor | None, transposed: bool) -> torch.Tensor:
    """`cast_weight` on a GPU."""
    outputs, inputs = weight_OI.shape
    q = torch.empty((inputs, outputs) if transposed else (outputs, inputs), dtype=FP8, device=weight_OI.device)
    bo, bi = (128, 128) if transposed else (16, 512)
    _cast_kernel[(triton.cdiv(inputs, bi), triton.cdiv(outputs, bo))](
        weight_OI, scale_O, q, outputs, inputs, SCALED=scale_O is not None, TRANSPOSED=transposed, LARGEST=LARGEST, BO=bo,
        BI=bi, num_warps=8)
    return q
