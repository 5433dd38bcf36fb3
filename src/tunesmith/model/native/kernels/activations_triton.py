"""The Triton kernels of `activations.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tunesmith.model.native.kernels.dispatch import power_of_two, require_contiguous, warps

#: Elements that a program of the one-dimensional kernels takes on, and the most columns of the
#: two-dimensional ones.
_BLOCK = 2048


@triton.jit
def _gelu_gate(h):
    """0.5 (1 + tanh(z)), z being GELU's inner term, as sigmoid(2z), which keeps its digits near 0."""
    return tl.sigmoid(1.5957691216057308 * h * (1.0 + 0.044715 * h * h))


@triton.jit
def _gelu_kernel(h, a, count, BLOCK: tl.constexpr):
    where = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = where < count
    x = tl.load(h + where, mask=inside, other=0.0).to(tl.float32)
    tl.store(a + where, (x * _gelu_gate(x)).to(a.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_backward_kernel(da, h, dh, recomputed, count, BLOCK: tl.constexpr):
    """Each element is read before its place is written, so `recomputed` may be `da`; it may be None."""
    where = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = where < count
    x = tl.load(h + where, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(da + where, mask=inside, other=0.0).to(tl.float32)
    gate = _gelu_gate(x)
    slope = 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * x * x)
    d *= gate + x * gate * (1.0 - gate) * slope
    tl.store(dh + where, d.to(dh.dtype.element_ty), mask=inside)
    if recomputed is not None:
        tl.store(recomputed + where, (x * gate).to(recomputed.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_kernel(gate_up, a, width, tiles, BLOCK: tl.constexpr):
    """A program is one tile of one row; `tiles` in each row."""
    row, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row = row.to(tl.int64)
    cols = tile * BLOCK + tl.arange(0, BLOCK)
    inside = cols < width
    gate = tl.load(gate_up + row * 2 * width + cols, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(a + row * width + cols, (gate * tl.sigmoid(gate) * up).to(a.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward_kernel(da, gate_up, d_gate_up, recomputed, width, tiles, BLOCK: tl.constexpr):
    """Each element is read before its place is written, so `recomputed` may be `da`; it may be None."""
    row, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row = row.to(tl.int64)
    cols = tile * BLOCK + tl.arange(0, BLOCK)
    inside = cols < width
    d = tl.load(da + row * width + cols, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_up + row * 2 * width + cols, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + cols, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    d_gate = d * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    d_up = d * gate * sigmoid
    element = d_gate_up.dtype.element_ty
    tl.store(d_gate_up + row * 2 * width + cols, d_gate.to(element), mask=inside)
    tl.store(d_gate_up + row * 2 * width + width + cols, d_up.to(element), mask=inside)
    if recomputed is not None:
        tl.store(recomputed + row * width + cols, (gate * sigmoid * up).to(recomputed.dtype.element_ty),
                 mask=inside)


def gelu_triton(h_NC: torch.Tensor) -> torch.Tensor:
    """Launch `gelu`."""
    require_contiguous(h_NC)
    a_NC, count = torch.empty_like(h_NC), h_NC.numel()
    with torch.cuda.device_of(h_NC):
        _gelu_kernel[(triton.cdiv(count, _BLOCK),)](h_NC, a_NC, count, BLOCK=_BLOCK, num_warps=warps(_BLOCK))
    return a_NC


def gelu_backward_triton(da_NC: torch.Tensor, h_NC: torch.Tensor,
                         recomputed_NC: torch.Tensor | None = None) -> torch.Tensor:
    """Launch `gelu_backward`."""
    require_contiguous(da_NC, h_NC, recomputed_NC)
    dh_NC, count = torch.empty_like(h_NC), h_NC.numel()
    with torch.cuda.device_of(h_NC):
        _gelu_backward_kernel[(triton.cdiv(count, _BLOCK),)](da_NC, h_NC, dh_NC, recomputed_NC, count,
                                                             BLOCK=_BLOCK, num_warps=warps(_BLOCK))
    return dh_NC


def swiglu_triton(gate_up_N2I: torch.Tensor) -> torch.Tensor:
    """Launch `swiglu`."""
    require_contiguous(gate_up_N2I)
    tokens, width = gate_up_N2I.shape[0], gate_up_N2I.shape[1] // 2
    a_NI = torch.empty((tokens, width), dtype=gate_up_N2I.dtype, device=gate_up_N2I.device)
    block = min(_BLOCK, power_of_two(width))
    tiles = triton.cdiv(width, block)
    with torch.cuda.device_of(gate_up_N2I):
        _swiglu_kernel[(tokens * tiles,)](gate_up_N2I, a_NI, width, tiles, BLOCK=block,
                                          num_warps=warps(block))
    return a_NI


def swiglu_backward_triton(da_NI: torch.Tensor, gate_up_N2I: torch.Tensor,
                           recomputed_NI: torch.Tensor | None = None) -> torch.Tensor:
    """Launch `swiglu_backward`."""
    require_contiguous(da_NI, gate_up_N2I, recomputed_NI)
    d_gate_up_N2I = torch.empty_like(gate_up_N2I)
    tokens, width = da_NI.shape
    block = min(_BLOCK, power_of_two(width))
    tiles = triton.cdiv(width, block)
    with torch.cuda.device_of(gate_up_N2I):
        _swiglu_backward_kernel[(tokens * tiles,)](
            da_NI, gate_up_N2I, d_gate_up_N2I, recomputed_NI, width, tiles, BLOCK=block,
            num_warps=warps(block))
    return d_gate_up_N2I
