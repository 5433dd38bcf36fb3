"""The Triton kernels of `int8_matmul.py`. Shapes as there; a tile is `rows` of N by `columns` of M, `depth`
of K at a time.

On Hopper the tensor cores read a tile of int8 straight from shared memory (wgmma), where the bulk copy engine
(TMA) puts it; older GPUs, and addresses that the engine does not take, go through pointers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from tunesmith.model.native.kernels.dispatch import power_of_two, require_contiguous, row_block, warps
from tunesmith.model.native.kernels.formats import INT8_LARGEST, INT8_TINY

_LARGEST, _TINY = tl.constexpr(INT8_LARGEST), tl.constexpr(INT8_TINY)
#: 1.5 * 2^23. Added to a number less than 2^22 and taken off again, it leaves the nearest integer, ties to
#: even.
_ROUNDER = tl.constexpr(12582912.0)
#: Rows of tiles that are worked on together, so that a tile of the weight is read while the cache still has
#: it.
_GROUP = 8
#: The compute capability that brought the bulk copy engine.
_TMA_SINCE = (9, 0)
#: Longer rows whose columns have scales are read in pieces of this many values: with its scale a value takes
#: three times the space, and few programs that hold a whole row fit a multiprocessor. (3.2 against 2.7 TB/s
#: at
#: 28,672 on an H200.)
_LONGEST_SCALED, _PIECE = 16384, 4096
#: Ranks of the low-rank part that a tile multiplies at a time, and in fp32, which the tensor cores do not
#: multiply exactly.
_RANKS, _RANKS_FP32 = 64, 16


@dataclass(frozen=True)
class Tile:
    """How a product is cut up."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def shared_bytes(self) -> int:
        """What it keeps in shared memory: as many pieces of a and b as there are stages, and barriers."""
        return (self.rows + self.columns) * self.depth * self.stages + 1024


#: Two groups of 4 warps, each with 64 x 256 sums in its registers: the most work for a byte that is copied.
WIDE = Tile(128, 256, 128, 8, 4)
#: Where wide tiles are too few for all multiprocessors, or do not fit.
SQUARE = Tile(128, 128, 128, 8, 4)
#: Small enough for any GPU since Ampere, by pointers.
BY_POINTER = Tile(128, 128, 64, 8, 3)


# ---- rounding


@triton.jit
def _loaded(x, scale, dropped, at, C, SCALED: tl.constexpr, DROPS: tl.constexpr):
    """Some of a row's values as they are to be rounded; zeros beyond its end."""
    value = tl.load(x + at, mask=at < C, other=0.0).to(tl.float32)
    if SCALED:
        value *= tl.load(scale + at, mask=at < C, other=0.0)
    if DROPS:
        value = tl.where(tl.load(dropped + at, mask=at < C, other=0) != 0, 0.0, value)
    return value


@triton.jit
def _size(value):
    """|value| as the integer of its bits: in the same order, and NaN is the greatest."""
    return tl.abs(value).to(tl.int32, bitcast=True)


@triton.jit
def _quantised(value, inverse, CLAMPED: tl.constexpr):
    """value * inverse as int8, from -127 to 127 (CLAMPED: kept within): the last byte of the sum."""
    raised = value * inverse + _ROUNDER
    if CLAMPED:
        raised = tl.minimum(tl.maximum(raised, _ROUNDER - _LARGEST), _ROUNDER + _LARGEST)
    return raised.to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def _rows_kernel(x, scale, dropped, q, s, C, SCALED: tl.constexpr, DROPS: tl.constexpr, BLOCK: tl.constexpr,
                 WHOLE: tl.constexpr, CHUNK: tl.constexpr = 8):
    """One program a row. WHOLE: a block holds it, so it is read once; else twice, then from the cache.

    CHUNK: neighbouring values that a thread takes. Left alone it is 16, for the sake of the bytes that are
    stored, and a warp's loads, of 16 bytes a thread at most, would leave gaps.
    """
    row = tl.program_id(0).to(tl.int64)
    x += row * C
    q += row * C
    at = tl.max_contiguous(tl.arange(0, BLOCK), CHUNK)
    value = _loaded(x, scale, dropped, at, C, SCALED, DROPS)
    size = _size(value)
    if not WHOLE:
        for start in range(BLOCK, C, BLOCK):
            size = tl.maximum(size, _size(_loaded(x, scale, dropped, start + at, C, SCALED, DROPS)))
    row_max = tl.max(size, 0).to(tl.float32, bitcast=True)
    # Infinity * 0 is NaN: int8 cannot say that a value is not finite, so the scale does.
    row_scale = tl.where(row_max > _TINY, tl.div_rn(row_max, _LARGEST), 1.0) + row_max * 0.0
    inverse = tl.div_rn(1.0, row_scale)
    tl.store(q + at, _quantised(value, inverse, CLAMPED=False), mask=at < C)
    if not WHOLE:
        for start in range(BLOCK, C, BLOCK):
            value = _loaded(x, scale, dropped, start + at, C, SCALED, DROPS)
            tl.store(q + start + at, _quantised(value, inverse, CLAMPED=False), mask=start + at < C)
    tl.store(s + row, row_scale)


@triton.jit
def _weight_kernel(w, scale, q, outputs, inputs, w_stride, SCALED: tl.constexpr, TRANSPOSED: tl.constexpr,
                   BO: tl.constexpr, BI: tl.constexpr):
    """A tile of the weight; `w_stride` from one of its rows to the next."""
    o, i = tl.program_id(1) * BO + tl.arange(0, BO), tl.program_id(0) * BI + tl.arange(0, BI)
    value = tl.load(w + o[:, None].to(tl.int64) * w_stride + i[None, :],
                    mask=(o[:, None] < outputs) & (i[None, :] < inputs), other=0)
    if SCALED:
        inverse = tl.div_rn(1.0, tl.load(scale + o, mask=o < outputs, other=1.0))
        value = _quantised(value.to(tl.float32), inverse[:, None], CLAMPED=True)
    if TRANSPOSED:
        tl.store(q + i[:, None].to(tl.int64) * outputs + o[None, :], tl.trans(value),
                 mask=(i[:, None] < inputs) & (o[None, :] < outputs))
    else:
        tl.store(q + o[:, None].to(tl.int64) * inputs + i[None, :], value,
                 mask=(o[:, None] < outputs) & (i[None, :] < inputs))


def quantise_rows_int8_triton(x_NC: torch.Tensor, scale_C: torch.Tensor | None = None,
                              dropped_C: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch `quantise_rows_int8`."""
    require_contiguous(x_NC, scale_C, dropped_C)
    N, C = x_NC.shape
    q_NC = torch.empty((N, C), dtype=torch.int8, device=x_NC.device)
    scale_N = torch.empty((N,), dtype=torch.float32, device=x_NC.device)
    dropped_C = None if dropped_C is None else dropped_C.view(torch.uint8)
    block, whole = row_block(C) if scale_C is None or C <= _LONGEST_SCALED else (_PIECE, False)
    per_warp = 512 if whole else 1024
    with torch.cuda.device_of(x_NC):
        _rows_kernel[(N,)](x_NC, scale_C, dropped_C, q_NC, scale_N, C, SCALED=scale_C is not None,
                           DROPS=dropped_C is not None, BLOCK=block, WHOLE=whole,
                           num_warps=warps(block, per_warp=per_warp))
    return q_NC, scale_N


def quantise_weight_int8_triton(weight_OI: torch.Tensor, scale_O: torch.Tensor | None,
                                transposed: bool) -> torch.Tensor:
    """Launch `quantise_weight_int8`, or `transpose_int8` of what is int8 already when there is no scale."""
    require_contiguous(weight_OI[:1], scale_O)
    outputs, inputs = weight_OI.shape
    q = torch.empty((inputs, outputs) if transposed else (outputs, inputs), dtype=torch.int8,
                    device=weight_OI.device)
    bo, bi = (128, 128) if transposed else (16, 512)
    with torch.cuda.device_of(weight_OI):
        _weight_kernel[(triton.cdiv(inputs, bi), triton.cdiv(outputs, bo))](
            weight_OI, scale_O, q, outputs, inputs, weight_OI.stride(0), SCALED=scale_O is not None,
            TRANSPOSED=transposed, BO=bo, BI=bi, num_warps=8)
    return q


# ---- the product


@triton.jit
def _place(N, M, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """(first row, first column) of this program's tile: down GROUP rows of tiles, then the next column."""
    down, across = tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS)
    group = tl.program_id(0) // (GROUP * across)
    within = tl.program_id(0) % (GROUP * across)
    height = tl.minimum(down - group * GROUP, GROUP)
    return (group * GROUP + within % height) * ROWS, (within // height) * COLUMNS


@triton.jit
def _lora_piece(xa, lora_b, n, m, start, N, M, RANKS: tl.constexpr, FLIPPED: tl.constexpr,
                STEP: tl.constexpr):
    """(xa [rows, STEP], b^T [STEP, columns]) of the ranks from `start` on; what lies outside is zero.

    RANKS is a constant for the sake of rows that are no multiple of 16 long: so their loads are known to be
    aligned. FLIPPED: b lies in memory as [R, M].
    """
    r = start + tl.arange(0, STEP)
    xa_piece = tl.load(xa + n[:, None].to(tl.int64) * RANKS + r[None, :],
                       mask=(n[:, None] < N) & (r[None, :] < RANKS), other=0.0)
    b_at = (r[:, None].to(tl.int64) * M + m[None, :] if FLIPPED
            else m[None, :].to(tl.int64) * RANKS + r[:, None])
    return xa_piece, tl.load(lora_b + b_at, mask=(m[None, :] < M) & (r[:, None] < RANKS), other=0.0)


@triton.jit
def _finish(total, scale_n, scale_m, bias, xa, lora_b, y, row, column, N, M, SCALED: tl.constexpr,
            BIASED: tl.constexpr, RANKS: tl.constexpr, FLIPPED: tl.constexpr, STEP: tl.constexpr,
            ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Scale the tile's sums, add the bias and the low-rank part, and store.

    The low-rank operands take the shared memory that the loop over K has left.
    """
    n, m = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    value = total.to(tl.float32) * tl.load(scale_n + n, mask=n < N, other=0.0)[:, None]
    if SCALED:
        value *= tl.load(scale_m + m, mask=m < M, other=0.0)[None, :]
    if BIASED:
        value += tl.load(bias + m, mask=m < M, other=0.0).to(tl.float32)[None, :]
    if RANKS > 0:
        for start in tl.range(0, RANKS, STEP, num_stages=1):
            xa_piece, b_piece = _lora_piece(xa, lora_b, n, m, start, N, M, RANKS, FLIPPED, STEP)
            value = tl.dot(xa_piece, b_piece, value, input_precision="ieee")
    tl.store(y + n[:, None].to(tl.int64) * M + m[None, :], value.to(y.dtype.element_ty),
             mask=(n[:, None] < N) & (m[None, :] < M))


@triton.jit
def _tma_kernel(a, b, scale_n, scale_m, bias, xa, lora_b, y, N, M, K, SCALED: tl.constexpr,
                BIASED: tl.constexpr, RANKS: tl.constexpr, FLIPPED: tl.constexpr, STEP: tl.constexpr,
                ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr):
    """a and b are descriptors; what lies outside of them is read as zeros."""
    row, column = _place(N, M, ROWS, COLUMNS, GROUP)
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    for k in range(0, K, DEPTH):
        total = tl.dot(a.load([row, k]), b.load([column, k]).T, total, out_dtype=tl.int32)
    _finish(total, scale_n, scale_m, bias, xa, lora_b, y, row, column, N, M, SCALED, BIASED, RANKS, FLIPPED,
            STEP, ROWS, COLUMNS)


@triton.jit
def _pointer_kernel(a, b, scale_n, scale_m, bias, xa, lora_b, y, N, M, K, SCALED: tl.constexpr,
                    BIASED: tl.constexpr, RANKS: tl.constexpr, FLIPPED: tl.constexpr, STEP: tl.constexpr,
                    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr):
    """Rows and columns beyond the end wrap around, and are not stored; K is masked."""
    row, column = _place(N, M, ROWS, COLUMNS, GROUP)
    n, m = (row + tl.arange(0, ROWS)) % N, (column + tl.arange(0, COLUMNS)) % M
    k = tl.arange(0, DEPTH)
    a += n[:, None].to(tl.int64) * K + k[None, :]
    b += m[None, :].to(tl.int64) * K + k[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    for start in range(0, K, DEPTH):
        piece_a = tl.load(a + start, mask=k[None, :] < K - start, other=0)
        piece_b = tl.load(b + start, mask=k[:, None] < K - start, other=0)
        total = tl.dot(piece_a, piece_b, total, out_dtype=tl.int32)
    _finish(total, scale_n, scale_m, bias, xa, lora_b, y, row, column, N, M, SCALED, BIASED, RANKS, FLIPPED,
            STEP, ROWS, COLUMNS)


@functools.cache
def _limits(index: int) -> tuple[int, int, bool]:
    """(multiprocessors, bytes of shared memory that one program may have, whether TMA is there) of a GPU."""
    properties = torch.cuda.get_device_properties(index)
    return (properties.multi_processor_count,
            properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # torch's stub lacks it
            (properties.major, properties.minor) >= _TMA_SINCE)


def takes_tma(*matrices: torch.Tensor) -> bool:
    """Whether the bulk copy engine takes these int8 matrices: address and row bytes in steps of 16."""
    return all(matrix.data_ptr() % 16 == 0 and matrix.shape[1] % 16 == 0 for matrix in matrices)


def tile_for(N: int, M: int, processors: int, shared_bytes: int) -> Tile | None:
    """The tile for a result [N, M] by TMA: wide if that occupies most multiprocessors; None: none fits."""
    count = triton.cdiv(N, WIDE.rows) * triton.cdiv(M, WIDE.columns)
    fitting = [tile for tile in (WIDE, SQUARE) if tile.shared_bytes <= shared_bytes]
    if len(fitting) == 2 and count < 0.75 * processors:
        return SQUARE
    return fitting[0] if fitting else None


def int8_product_triton(a_NK: torch.Tensor, scale_N: torch.Tensor, b_MK: torch.Tensor,
                        scale_M: torch.Tensor | None, bias_M: torch.Tensor | None, dtype: torch.dtype,
                        xa_NR: torch.Tensor | None = None, b_MR: torch.Tensor | None = None) -> torch.Tensor:
    """Launch `int8_product`, cut up by its size."""
    tile = None
    if a_NK.is_cuda:
        processors, shared_bytes, has_tma = _limits(a_NK.device.index)
        if has_tma and takes_tma(a_NK, b_MK):
            tile = tile_for(a_NK.shape[0], b_MK.shape[0], processors, shared_bytes)
    return launch_product(a_NK, scale_N, b_MK, scale_M, bias_M, dtype, tile or BY_POINTER, xa_NR, b_MR,
                          tma=tile is not None)


def launch_product(a_NK: torch.Tensor, scale_N: torch.Tensor, b_MK: torch.Tensor,
                   scale_M: torch.Tensor | None, bias_M: torch.Tensor | None, dtype: torch.dtype, tile: Tile,
                   xa_NR: torch.Tensor | None = None, b_MR: torch.Tensor | None = None, *,
                   tma: bool) -> torch.Tensor:
    """`int8_product` in tiles of this kind. tma: needs `takes_tma` and a GPU with it (or the interpreter)."""
    ranks = 0 if xa_NR is None else xa_NR.shape[1]
    flipped = ranks > 0 and b_MR is not None and not b_MR.is_contiguous()
    require_contiguous(a_NK, scale_N, b_MK, scale_M, bias_M, xa_NR,
                       b_MR.T if flipped and b_MR is not None else b_MR)
    N, K, M = *a_NK.shape, b_MK.shape[0]
    y_NM = torch.empty((N, M), dtype=dtype, device=a_NK.device)
    if y_NM.numel() == 0:
        return y_NM
    a = TensorDescriptor.from_tensor(a_NK, [tile.rows, tile.depth]) if tma else a_NK
    b = TensorDescriptor.from_tensor(b_MK, [tile.columns, tile.depth]) if tma else b_MK
    step = min(_RANKS_FP32 if xa_NR is not None and xa_NR.dtype == torch.float32 else _RANKS,
               max(16, power_of_two(ranks)))
    with torch.cuda.device_of(a_NK):
        kernel = _tma_kernel if tma else _pointer_kernel
        kernel[(triton.cdiv(N, tile.rows) * triton.cdiv(M, tile.columns),)](
            a, b, scale_N, scale_M, bias_M, xa_NR, b_MR, y_NM, N, M, K, SCALED=scale_M is not None,
            BIASED=bias_M is not None, RANKS=ranks, FLIPPED=flipped, STEP=step, ROWS=tile.rows,
            COLUMNS=tile.columns, DEPTH=tile.depth, GROUP=_GROUP, num_warps=tile.warps,
            num_stages=tile.stages)
    return y_NM
