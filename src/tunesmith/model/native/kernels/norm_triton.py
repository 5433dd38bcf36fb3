"""The Triton kernels of `norm.py`: one program a token's row, in registers, read and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tunesmith.model.native.kernels.dispatch import power_of_two, require_contiguous, warps


@triton.jit
def _add_norm_kernel(residual, delta, bias, weight, shift, summed, normed, mean, rstd, channels,
                     normed_stride, eps, BLOCK: tl.constexpr):
    """Pointers that are None drop out when it is compiled: delta, bias, shift (RMSNorm), summed, mean."""
    row = tl.program_id(0).to(tl.int64)
    start = row * channels
    cols = tl.arange(0, BLOCK)
    inside = cols < channels
    x = tl.load(residual + start + cols, mask=inside, other=0.0).to(tl.float32)
    if delta is not None:
        x += tl.load(delta + start + cols, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        x += tl.load(bias + cols, mask=inside, other=0.0).to(tl.float32)
    if summed is not None:
        stored = x.to(summed.dtype.element_ty)
        tl.store(summed + start + cols, stored, mask=inside)
        x = stored.to(tl.float32)
    w = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    if shift is not None:
        row_mean = tl.sum(x, axis=0) / channels
        x = tl.where(inside, x - row_mean, 0.0)
        tl.store(mean + row, row_mean)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / channels + eps)
    tl.store(rstd + row, scale)
    y = x * scale * w
    if shift is not None:
        y += tl.load(shift + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * normed_stride + cols, y.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _add_norm_backward_kernel(d_normed, d_sum, summed, weight, mean, rstd, d, channels, BLOCK: tl.constexpr):
    """d = rstd * (g - mean(g) - x̂ * mean(g * x̂)) + d_sum, g = d_normed * weight; RMSNorm: no mean(g)."""
    row = tl.program_id(0).to(tl.int64)
    start = row * channels
    cols = tl.arange(0, BLOCK)
    inside = cols < channels
    x = tl.load(summed + start + cols, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(d_normed + start + cols, mask=inside, other=0.0).to(tl.float32)
    g *= tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(rstd + row)
    if mean is not None:
        # Lanes outside hold -mean instead of 0 here, but their g is 0, and they are never stored.
        x -= tl.load(mean + row)
    x *= scale
    y = g - x * (tl.sum(g * x, axis=0) / channels)
    if mean is not None:
        y -= tl.sum(g, axis=0) / channels
    y *= scale
    if d_sum is not None:
        y += tl.load(d_sum + start + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(d + start + cols, y.to(d.dtype.element_ty), mask=inside)


def add_norm_triton(residual_NC: torch.Tensor, delta_NC: torch.Tensor | None, bias_C: torch.Tensor | None,
                    weight_C: torch.Tensor, shift_C: torch.Tensor | None, eps: float, spare_columns: int = 0,
                    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Launch `add_norm`; C up to 16,384 is fast, more works and spills."""
    require_contiguous(residual_NC, delta_NC, bias_C, weight_C, shift_C)
    tokens, channels = residual_NC.shape
    copied = delta_NC is not None or bias_C is not None
    sum_NC = torch.empty_like(residual_NC) if copied else residual_NC
    normed_NC = residual_NC.new_empty(tokens, channels + spare_columns)[:, :channels]
    rstd_N = torch.empty(tokens, dtype=torch.float32, device=residual_NC.device)
    mean_N = None if shift_C is None else torch.empty_like(rstd_N)
    block = power_of_two(channels)
    with torch.cuda.device_of(residual_NC):
        _add_norm_kernel[(tokens,)](residual_NC, delta_NC, bias_C, weight_C, shift_C,
                                    sum_NC if copied else None, normed_NC, mean_N, rstd_N, channels,
                                    normed_NC.stride(0), eps, BLOCK=block, num_warps=warps(block))
    return sum_NC, normed_NC, mean_N, rstd_N


def add_norm_backward_triton(d_normed_NC: torch.Tensor, d_sum_NC: torch.Tensor | None, sum_NC: torch.Tensor,
                             weight_C: torch.Tensor, mean_N: torch.Tensor | None,
                             rstd_N: torch.Tensor) -> torch.Tensor:
    """Launch `add_norm_backward`."""
    require_contiguous(d_normed_NC, d_sum_NC, sum_NC, weight_C, mean_N, rstd_N)
    tokens, channels = sum_NC.shape
    d_NC = torch.empty_like(sum_NC)
    block = power_of_two(channels)
    with torch.cuda.device_of(sum_NC):
        _add_norm_backward_kernel[(tokens,)](d_normed_NC, d_sum_NC, sum_NC, weight_C, mean_N, rstd_N, d_NC,
                                             channels, BLOCK=block, num_warps=warps(block))
    return d_NC
