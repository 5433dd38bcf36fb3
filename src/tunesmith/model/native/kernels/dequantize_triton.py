"""The Triton kernels of `dequantize.py`, which move little but the bytes that come in and go out."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tunesmith.model.native.kernels.dispatch import power_of_two, require_contiguous, warps
from tunesmith.model.native.kernels.formats import NF4_BLOCK, NF4_NESTED, Nf4Absmax

#: The most int8 values of a program: 16 to a thread, one 16-byte load.
_COLUMNS = 4096
#: Blocks of nf4 of a program: 4,096 values, 32 to a thread, one 16-byte load each.
_BLOCKS = 64
_BLOCK, _NESTED = tl.constexpr(NF4_BLOCK), tl.constexpr(NF4_NESTED)


@triton.jit
def _int8_kernel(q, scale, out, width, out_stride, tiles, COLUMNS: tl.constexpr):
    """A program is one tile of one row; `tiles` in each row, `out_stride` between the rows of `out`."""
    row, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    start = row.to(tl.int64) * width
    cols = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = cols < width
    value = tl.load(q + start + cols, mask=inside, other=0).to(tl.float32) * tl.load(scale + row)
    tl.store(out + row.to(tl.int64) * out_stride + cols, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _nf4_kernel(packed, code_16, q, code_256, nested, offset, out, count, size, width, out_stride,
                GAPS: tl.constexpr, BLOCKS: tl.constexpr):
    """A program is BLOCKS rows of 64 values. Both code tables (64 and 1,024 bytes) stay in L1.

    GAPS: `out` has rows of `width` values, whole blocks, `out_stride` from one to the next; otherwise it is
    flat.

    `count` values in `size` bytes: with a bound in bytes of its own the packed load is seen to be dense, and
    is vectorised.
    """
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block * _BLOCK < count
    # An index of unsigned bytes would be taken as signed, so all are widened first.
    level = tl.load(q + block, mask=inside, other=0).to(tl.int32)
    absmax = (tl.load(code_256 + level) * tl.load(nested + block // _NESTED, mask=inside, other=0.0)
              + tl.load(offset))
    byte = block[:, None] * (_BLOCK // 2) + tl.arange(0, _BLOCK // 2)[None, :]
    pair = tl.load(packed + byte, mask=byte < size, other=0).to(tl.int32)
    first = tl.load(code_16 + (pair >> 4)) * absmax[:, None]
    second = tl.load(code_16 + (pair & 15)) * absmax[:, None]
    element = out.dtype.element_ty
    value = tl.interleave(first.to(element), second.to(element))
    where = block[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    to = where
    if GAPS:
        start = block * _BLOCK
        to = (start // width * out_stride + start % width)[:, None] + tl.arange(0, _BLOCK)[None, :]
    tl.store(out + to, value, mask=where < count)


def dequantize_int8_triton(q_OI: torch.Tensor, scale_O: torch.Tensor, out_OI: torch.Tensor) -> torch.Tensor:
    """Launch `dequantize_int8`."""
    require_contiguous(q_OI, scale_O, out_OI[:1])
    rows, width = q_OI.shape
    columns = min(_COLUMNS, power_of_two(width))
    tiles = triton.cdiv(width, columns)
    with torch.cuda.device_of(q_OI):
        _int8_kernel[(rows * tiles,)](q_OI, scale_O, out_OI, width, out_OI.stride(0), tiles, COLUMNS=columns,
                                      num_warps=warps(columns, per_warp=512))
    return out_OI


def dequantize_nf4_triton(packed: torch.Tensor, code_16: torch.Tensor, absmax: Nf4Absmax,
                          out_OI: torch.Tensor) -> torch.Tensor:
    """Launch `dequantize_nf4`. Rows with gaps between them are whole blocks of 64 values."""
    require_contiguous(packed, code_16, absmax.q, absmax.code_256, absmax.nested, out_OI[:1])
    count, width, stride = out_OI.numel(), out_OI.shape[1], out_OI.stride(0)
    if stride != width and width % NF4_BLOCK:
        raise ValueError(f"rows of {width} values with gaps between them are no whole blocks of {NF4_BLOCK}")
    with torch.cuda.device_of(packed):
        _nf4_kernel[(triton.cdiv(count, NF4_BLOCK * _BLOCKS),)](
            packed, code_16, absmax.q, absmax.code_256, absmax.nested, absmax.offset, out_OI, count,
            packed.numel(), width, stride, GAPS=stride != width, BLOCKS=_BLOCKS, num_warps=4)
    return out_OI
