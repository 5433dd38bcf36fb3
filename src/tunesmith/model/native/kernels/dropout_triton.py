"""The Triton kernel of `dropout.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tunesmith.model.native.kernels.dispatch import power_of_two, require_contiguous, warps
from tunesmith.model.native.kernels.dropout_hash import MULTIPLIER_1, MULTIPLIER_2, salt_keys, threshold

#: Elements that a program takes, at most: channels of one token, or several tokens where these are narrow.
_ELEMENTS = 4096
_FIRST, _SECOND = tl.constexpr(MULTIPLIER_1), tl.constexpr(MULTIPLIER_2)


@triton.jit
def _mix(h):
    """lowbias32 on uint32."""
    h = (h ^ (h >> 16)) * _FIRST
    h = (h ^ (h >> 15)) * _SECOND
    return h ^ (h >> 16)


# Unspecialised: a salt that happens to give 1, or a multiple of 16, would compile its own kernel.
@triton.jit(do_not_specialize=["salt_1", "salt_2", "tokens"])
def _dropout_kernel(x, y, keys, salt_1, salt_2, scale, tokens, channels, THRESHOLD: tl.constexpr,
                    ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """THRESHOLD is compiled in: a run has one, and as an argument its type would change at 2**31."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    key = tl.load(keys + row, mask=row < tokens, other=0)
    key_1 = _mix(key.to(tl.uint32) ^ salt_1.to(tl.uint32))
    key_2 = _mix(key_1 + ((key >> 32).to(tl.uint32) ^ salt_2.to(tl.uint32)))
    h = _mix(_mix(column.to(tl.uint32)[None, :] ^ key_1[:, None]) ^ key_2[:, None])
    at = row.to(tl.int64)[:, None] * channels + column[None, :]
    inside = (row < tokens)[:, None] & (column < channels)[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale
    tl.store(y + at, tl.where(h >= THRESHOLD, value, 0.0).to(y.dtype.element_ty), mask=inside)


def dropout_triton(x_NC: torch.Tensor, p: float, keys_N: torch.Tensor, salt: int) -> torch.Tensor:
    """Launch `dropout`, with 0 < p < 1."""
    require_contiguous(x_NC, keys_N)
    y_NC, (tokens, channels) = torch.empty_like(x_NC), x_NC.shape
    if not x_NC.numel():
        return y_NC
    salt_1, salt_2 = salt_keys(salt)
    columns = min(_ELEMENTS, power_of_two(channels))
    rows = _ELEMENTS // columns
    with torch.cuda.device_of(x_NC):
        _dropout_kernel[(triton.cdiv(tokens, rows), triton.cdiv(channels, columns))](
            x_NC, y_NC, keys_N, salt_1, salt_2, 1 / (1 - p), tokens, channels, THRESHOLD=threshold(p),
            ROWS=rows, COLUMNS=columns, num_warps=warps(_ELEMENTS, most=8))
    return y_NC
