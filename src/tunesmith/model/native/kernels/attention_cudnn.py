"""Causal attention of samples of one length by cuDNN through torch: faster than our kernels on Hopper.

Only the dense form is used. Its form for samples of several lengths is not: torch up to 2.12 sizes a buffer
of its backward pass by the width of a head (https://github.com/pytorch/pytorch/pull/186142). Shapes: B
samples of S tokens, N = B S; H heads of queries, K of keys and values, D the width of a head.
"""

from __future__ import annotations

from typing import Any

import torch

#: Shorter samples go through our own kernels, which take them all at once.
SHORTEST = 512
#: The oldest compute capability on which cuDNN was found to be the faster.
_OLDEST = (9, 0)


def fits_cudnn(q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor, length: int) -> bool:
    """Whether cuDNN takes these, as torch says."""
    if not q_NHD.is_cuda or torch.cuda.get_device_capability(q_NHD.device) < _OLDEST:
        return False
    grouped = q_NHD.shape[1] != k_NKD.shape[1]
    params = torch.backends.cuda.SDPAParams(_by_sample(q_NHD, length), _by_sample(k_NKD, length),
                                            _by_sample(v_NKD, length), None, 0.0, True, grouped)
    return torch.backends.cuda.can_use_cudnn_attention(params)


def _by_sample(x_NHD: torch.Tensor, length: int) -> torch.Tensor:
    """[B, H, S, D], a view."""
    x_BSHD: torch.Tensor = x_NHD.unflatten(0, (-1, length))
    return x_BSHD.transpose(1, 2)


def attention_forward_cudnn(q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor,
                            length: int, scale: float | None = None) -> tuple[torch.Tensor, tuple[Any, ...]]:
    """(output [N, H, D], what the backward pass wants of the forward pass)."""
    o_BHSD, *rest, _ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        _by_sample(q_NHD, length), _by_sample(k_NKD, length), _by_sample(v_NKD, length), None, True, 0.0,
        True, False, scale=scale)
    return o_BHSD.transpose(1, 2).flatten(0, 1).contiguous(), tuple(rest)


def attention_backward_cudnn(do_NHD: torch.Tensor, q_NHD: torch.Tensor, k_NKD: torch.Tensor,
                             v_NKD: torch.Tensor, o_NHD: torch.Tensor, rest: tuple[Any, ...],
                             length: int,
                             scale: float | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq [N, H, D], dk [N, K, D], dv [N, K, D])."""
    lse, cum_q, cum_k, max_q, max_k, seed, offset = rest
    grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *(_by_sample(each, length) for each in (do_NHD, q_NHD, k_NKD, v_NKD, o_NHD)), lse, seed, offset, None,
        cum_q, cum_k, max_q, max_k, 0.0, True, scale=scale)
    return tuple(each.transpose(1, 2).flatten(0, 1) for each in grads)
