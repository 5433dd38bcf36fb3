"""The Triton kernel of `rope.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tunesmith.model.native.kernels.dispatch import power_of_two, require_contiguous, warps

#: Pairs that a program rotates: some heads of one token.
_PAIRS = 1024


@triton.jit
def _rotate_kernel(x, cos, sin, token_stride, head_stride, heads, half, INVERSE: tl.constexpr, HEADS: tl.constexpr,
                   HALF: tl.constexpr):
    """Each pair is read and written by one thread alone, so the rotation can be in place."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, HALF)
    c = tl.load(cos + token * half + pair, mask=pair < half, other=0.0)[None, :]
    s = tl.load(sin + token * half + pair, mask=pair < half, other=0.0)[None, :]
    if INVERSE:
        s = -s
    where = x + token * token_stride + head.to(tl.int64)[:, None] * head_stride + pair[None, :]
    inside = (head < heads)[:, None] & (pair < half)[None, :]
    left = tl.load(where, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(where + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(where, (left * c - right * s).to(x.dtype.element_ty), mask=inside)
    tl.store(where + half, (right * c + left * s).to(x.dtype.element_ty), mask=inside)


def rotate_triton_(x_NHD: torch.Tensor, cos_ND2: torch.Tensor, sin_ND2: torch.Tensor, inverse: bool) -> None:
    """Launch `rotate_`. Raises ValueError where x_NHD's last dimension has gaps."""
    require_contiguous(cos_ND2, sin_ND2)
    tokens, heads, size = x_NHD.shape
    if x_NHD.stride(2) != 1 and size > 1:
        raise ValueError(f"the head dimension must be dense, but its stride is {x_NHD.stride(2)}")
    half_block = power_of_two(size // 2)
    head_block = min(power_of_two(heads), max(1, _PAIRS // half_block))
    with torch.cuda.device_of(x_NHD):
        _rotate_kernel[(tokens, triton.cdiv(heads, head_block))](
            x_NHD, cos_ND2, sin_ND2, x_NHD.stride(0), x_NHD.stride(1), heads, size // 2, INVERSE=inverse,
            HEADS=head_block, HALF=half_block, num_warps=warps(head_block * half_block))
