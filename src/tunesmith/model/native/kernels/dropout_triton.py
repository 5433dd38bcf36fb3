"""The Triton kernel of `dropout.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tunesmith.model.native.kernels.dispatch import require_contiguous, warps
from tunesmith.model.native.kernels.dropout import MULTIPLIER_1, MULTIPLIER_2, salt_keys, threshold

#: Elements of a program. It must divide 2**32, so that a program's indices share their high 32 bits.
_BLOCK = 4096
_FIRST, _SECOND = tl.constexpr(MULTIPLIER_1), tl.constexpr(MULTIPLIER_2)


@triton.jit
def _mix(h):
    """lowbias32 on uint32."""
    h = (h ^ (h >> 16)) * _FIRST
    h = (h ^ (h >> 15)) * _SECOND
    return h ^ (h >> 16)


# Without specialisation a salt that happens to give 1, or a multiple of 16, would compile a kernel of its own.
@triton.jit(do_not_specialize=["salt_1", "salt_2"])
def _dropout_kernel(x, y, seed, salt_1, salt_2, scale, count, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr):
    """THRESHOLD is compiled in: a run has one probability, and as an argument its type would change at 2**31."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    inside = start + lanes < count
    s = tl.load(seed)
    key_1 = _mix(s.to(tl.uint32) ^ salt_1.to(tl.uint32))
    key_2 = _mix(key_1 + ((s >> 32).to(tl.uint32) ^ salt_2.to(tl.uint32)))
    index = start.to(tl.uint32) + lanes.to(tl.uint32)
    h = _mix(_mix(index ^ key_1) ^ (key_2 ^ _mix((start >> 32).to(tl.uint32))))
    value = tl.load(x + start + lanes, mask=inside, other=0.0).to(tl.float32) * scale
    tl.store(y + start + lanes, tl.where(h >= THRESHOLD, value, 0.0).to(y.dtype.element_ty), mask=inside)


def dropout_triton(x_NC: torch.Tensor, p: float, seed: torch.Tensor, salt: int) -> torch.Tensor:
    """Launch `dropout`, with 0 < p < 1."""
    require_contiguous(x_NC)
    y_NC, count = torch.empty_like(x_NC), x_NC.numel()
    salt_1, salt_2 = salt_keys(salt)
    with torch.cuda.device_of(x_NC):
        _dropout_kernel[(triton.cdiv(count, _BLOCK),)](x_NC, y_NC, seed, salt_1, salt_2, 1 / (1 - p), count,
                                                       THRESHOLD=threshold(p), BLOCK=_BLOCK, num_warps=warps(_BLOCK, most=8))
    return y_NC
