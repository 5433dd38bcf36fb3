"""The Triton kernel of `rope.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tunesmith.model.native.kernels.dispatch import power_of_two, require_contiguous, warps

#: Pairs that a program rotates: some heads of one token.
_PAIRS = 1024


@triton.jit
def _rotate_kernel(x, source, cos, sin, token_stride, head_stride, source_token_stride, source_head_stride,
                   heads, half, INVERSE: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Each pair is read and written by one thread alone, so x can be its own source."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, HALF)
    c = tl.load(cos + token * half + pair, mask=pair < half, other=0.0)[None, :]
    s = tl.load(sin + token * half + pair, mask=pair < half, other=0.0)[None, :]
    if INVERSE:
        s = -s
    inside = (head < heads)[:, None] & (pair < half)[None, :]
    origin = (source + token * source_token_stride + head.to(tl.int64)[:, None] * source_head_stride
              + pair[None, :])
    left = tl.load(origin, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(origin + half, mask=inside, other=0.0).to(tl.float32)
    where = x + token * token_stride + head.to(tl.int64)[:, None] * head_stride + pair[None, :]
    tl.store(where, (left * c - right * s).to(x.dtype.element_ty), mask=inside)
    tl.store(where + half, (right * c + left * s).to(x.dtype.element_ty), mask=inside)


def rotate_triton_(x_NHD: torch.Tensor, cos_ND2: torch.Tensor, sin_ND2: torch.Tensor, inverse: bool,
                   source_NHD: torch.Tensor | None = None) -> None:
    """Launch `rotate_`. Raises ValueError where the last dimension of x or its source has gaps."""
    require_contiguous(cos_ND2, sin_ND2)
    tokens, heads, size = x_NHD.shape
    source_NHD = x_NHD if source_NHD is None else source_NHD
    for each in (x_NHD, source_NHD):
        if each.stride(2) != 1 and size > 1:
            raise ValueError(f"the head dimension must be dense, but its stride is {each.stride(2)}")
    half_block = power_of_two(size // 2)
    head_block = min(power_of_two(heads), max(1, _PAIRS // half_block))
    with torch.cuda.device_of(x_NHD):
        _rotate_kernel[(tokens, triton.cdiv(heads, head_block))](
            x_NHD, source_NHD, cos_ND2, sin_ND2, *x_NHD.stride()[:2], *source_NHD.stride()[:2], heads,
            size // 2, INVERSE=inverse, HEADS=head_block, HALF=half_block,
            num_warps=warps(head_block * half_block))
