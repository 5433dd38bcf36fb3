"""LayerNorm and RMSNorm of the residual stream, fused with the addition before them; forward and backward.

N tokens, C channels. The norms' weights are frozen, so there is no gradient with respect to them. Arithmetic
is in fp32.
"""

from __future__ import annotations

import torch

from tunesmith.model.native.kernels.dispatch import use_triton

Normed = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]


def add_norm(residual_NC: torch.Tensor, delta_NC: torch.Tensor | None, bias_C: torch.Tensor | None,
             weight_C: torch.Tensor, shift_C: torch.Tensor | None, eps: float,
             spare_columns: int = 0) -> Normed:
    """Add to the residual stream, then normalise the sum. Returns (sum_NC, normed_NC, mean_N, rstd_N).

    sum_NC: residual + delta + bias, in the residual's dtype; the residual itself, not a copy, where both are
    None. normed_NC: LayerNorm of the sum where shift_C is given; RMSNorm where it is None, and then mean_N is
    None. In the residual's dtype. mean_N, rstd_N: fp32, of the sum as stored (rounded), so that the backward
    pass, which reads the stored sum, sees the statistics that belong to it. weight_C, shift_C, bias_C: fp32.
    spare_columns: normed_NC is the left part of rows of C + spare_columns values, whose rest is not written.
    """
    if use_triton(residual_NC):
        from tunesmith.model.native.kernels.norm_triton import add_norm_triton

        return add_norm_triton(residual_NC, delta_NC, bias_C, weight_C, shift_C, eps, spare_columns)
    return add_norm_plain(residual_NC, delta_NC, bias_C, weight_C, shift_C, eps, spare_columns)


def add_norm_backward(d_normed_NC: torch.Tensor, d_sum_NC: torch.Tensor | None, sum_NC: torch.Tensor,
                      weight_C: torch.Tensor, mean_N: torch.Tensor | None,
                      rstd_N: torch.Tensor) -> torch.Tensor:
    """The gradient [N, C] with respect to the sum, in the sum's dtype.

    d_sum_NC: what reaches the sum past the norm (the residual stream's own gradient), added where given.
    mean_N None means RMSNorm.
    """
    if use_triton(sum_NC):
        from tunesmith.model.native.kernels.norm_triton import add_norm_backward_triton

        return add_norm_backward_triton(d_normed_NC, d_sum_NC, sum_NC, weight_C, mean_N, rstd_N)
    return add_norm_backward_plain(d_normed_NC, d_sum_NC, sum_NC, weight_C, mean_N, rstd_N)


def add_norm_plain(residual_NC: torch.Tensor, delta_NC: torch.Tensor | None, bias_C: torch.Tensor | None,
                   weight_C: torch.Tensor, shift_C: torch.Tensor | None, eps: float,
                   spare_columns: int = 0) -> Normed:
    """`add_norm` in plain torch."""
    sum_NC = residual_NC
    if delta_NC is not None or bias_C is not None:
        total_NC = residual_NC.float()
        if delta_NC is not None:
            total_NC = total_NC + delta_NC.float()
        if bias_C is not None:
            total_NC = total_NC + bias_C
        sum_NC = total_NC.to(residual_NC.dtype)
    x_NC = sum_NC.float()
    channels = x_NC.shape[1]
    if shift_C is None:
        # The norm of each row in one pass, without the squares in memory.
        rstd_N = (torch.linalg.vector_norm(x_NC, dim=1).square() / channels + eps).rsqrt()
        normed_NC = (x_NC * rstd_N[:, None]).mul_(weight_C)
        return sum_NC, _with_spare_columns(normed_NC.to(sum_NC.dtype), spare_columns), None, rstd_N
    normed_NC, mean_N1, rstd_N1 = torch.native_layer_norm(x_NC, (channels,), weight_C, shift_C, eps)
    return sum_NC, _with_spare_columns(normed_NC.to(sum_NC.dtype),
                                       spare_columns), mean_N1.view(-1), rstd_N1.view(-1)


def _with_spare_columns(normed_NC: torch.Tensor, spare_columns: int) -> torch.Tensor:
    if not spare_columns:
        return normed_NC
    wide = normed_NC.new_empty(len(normed_NC), normed_NC.shape[1] + spare_columns)
    return wide[:, :-spare_columns].copy_(normed_NC)


def add_norm_backward_plain(d_normed_NC: torch.Tensor, d_sum_NC: torch.Tensor | None, sum_NC: torch.Tensor,
                            weight_C: torch.Tensor, mean_N: torch.Tensor | None,
                            rstd_N: torch.Tensor) -> torch.Tensor:
    """`add_norm_backward` in plain torch."""
    x_NC, channels = sum_NC.float(), sum_NC.shape[1]
    if mean_N is None:
        g_NC = d_normed_NC.float() * weight_C
        # d = rstd * (g - x̂ * mean(g * x̂)) with x̂ = x * rstd
        share_N = torch.linalg.vecdot(g_NC, x_NC) * rstd_N.square() / channels
        d_NC = torch.addcmul(g_NC, x_NC, share_N[:, None], value=-1).mul_(rstd_N[:, None])
    else:
        d_NC, _, _ = torch.ops.aten.native_layer_norm_backward(
            d_normed_NC.float(), x_NC, [channels], mean_N[:, None], rstd_N[:, None], weight_C, None,
            [True, False, False])
    if d_sum_NC is not None:
        d_NC = d_NC.add_(d_sum_NC)
    return d_NC.to(sum_NC.dtype)
