"""The Triton kernel of `cross_entropy.py`: one program for each row, which it reads once for the loss and
once more for the gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tunesmith.model.native.kernels.dispatch import power_of_two, require_contiguous, warps
from tunesmith.model.native.kernels.formats import IGNORED

#: The most logits that a program holds at once.
_BLOCK = 4096
_LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _cross_entropy_kernel(logits, targets, d_logits, nats, ENTRIES: tl.constexpr, IGNORED: tl.constexpr,
                          BLOCK: tl.constexpr):
    """The vocabulary's size is compiled in: a run has one, and its loops then have fixed bounds."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    logits += row * ENTRIES
    lanes = tl.arange(0, BLOCK)
    if d_logits is not None:
        d_logits += row * ENTRIES
    if target == IGNORED:
        tl.store(nats + row, 0.0)
        if d_logits is not None:
            for start in range(0, ENTRIES, BLOCK):
                zero = tl.zeros((BLOCK,), dtype=d_logits.dtype.element_ty)
                tl.store(d_logits + start + lanes, zero, mask=start + lanes < ENTRIES)
    else:
        wanted = tl.load(logits + target).to(tl.float32)
        # Each lane keeps a maximum and a sum of its own over the blocks, and they are brought together once.
        # The lowest finite number stands in for -inf, whose difference with a logit of -inf would be NaN.
        top = tl.full((BLOCK,), _LOWEST, tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, ENTRIES, BLOCK):
            x = tl.load(logits + start + lanes, mask=start + lanes < ENTRIES,
                        other=float("-inf")).to(tl.float32)
            # One of exp(top - new) and exp(x - new) is 1, the other is this; a NaN goes through to the loss.
            less = tl.exp(-tl.abs(x - top))
            total = tl.where(x > top, total * less + 1.0, total + less)
            top = tl.maximum(top, x)
        highest = tl.max(top, axis=0)
        whole = tl.sum(total * tl.exp(top - highest), axis=0)
        tl.store(nats + row, (highest - wanted) + tl.log(whole))
        if d_logits is not None:
            for start in range(0, ENTRIES, BLOCK):
                inside = start + lanes < ENTRIES
                x = tl.load(logits + start + lanes, mask=inside, other=float("-inf")).to(tl.float32)
                d = tl.exp(x - highest) / whole - tl.where(start + lanes == target, 1.0, 0.0)
                tl.store(d_logits + start + lanes, d.to(d_logits.dtype.element_ty), mask=inside)


def cross_entropy_triton(logits_LV: torch.Tensor, targets_L: torch.Tensor,
                         d_logits_LV: torch.Tensor | None) -> torch.Tensor:
    """Launch `cross_entropy`."""
    require_contiguous(logits_LV, targets_L, d_logits_LV)
    rows, entries = logits_LV.shape
    nats_L = torch.empty(rows, dtype=torch.float32, device=logits_LV.device)
    block = min(_BLOCK, power_of_two(entries))
    with torch.cuda.device_of(logits_LV):
        _cross_entropy_kernel[(rows,)](logits_LV, targets_L, d_logits_LV, nats_L, ENTRIES=entries,
                                       IGNORED=IGNORED, BLOCK=block, num_warps=warps(block))
    return nats_L
