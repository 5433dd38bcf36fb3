"""Rotary position embedding. N tokens, H heads, D the head's size (any even number)."""

from __future__ import annotations

import torch

from tunesmith.model.native.kernels.dispatch import use_triton


def rotate_(x_NHD: torch.Tensor, cos_ND2: torch.Tensor, sin_ND2: torch.Tensor, inverse: bool,
            source_NHD: torch.Tensor | None = None) -> None:
    """Rotate each pair (j, j + D/2) of every head by its token's angle, in place; back where `inverse`.

    Su et al. 2021 (https://arxiv.org/abs/2104.09864), eq. 34, with Llama's pairing of the two halves. A
    rotation's transpose is its inverse, so `inverse` is the backward pass. x_NHD: a view with any strides
    over N and H and the last dimension dense, such as the queries within a fused projection; its dtype stays,
    the arithmetic is fp32. cos_ND2, sin_ND2: fp32 [N, D/2], contiguous. source_NHD: where the values come
    from, of the same kind; x itself if None.
    """
    if use_triton(x_NHD):
        from tunesmith.model.native.kernels.rope_triton import rotate_triton_

        return rotate_triton_(x_NHD, cos_ND2, sin_ND2, inverse, source_NHD)
    return rotate_plain_(x_NHD, cos_ND2, sin_ND2, inverse, source_NHD)


def rotate_plain_(x_NHD: torch.Tensor, cos_ND2: torch.Tensor, sin_ND2: torch.Tensor, inverse: bool,
                  source_NHD: torch.Tensor | None = None) -> None:
    """`rotate_` in plain torch."""
    half = x_NHD.shape[2] // 2
    source_NHD = x_NHD if source_NHD is None else source_NHD
    left_NHE, right_NHE = source_NHD[..., :half].float(), source_NHD[..., half:].float()
    cos_N1E, sin_N1E = cos_ND2[:, None], sin_ND2[:, None]
    sign = -1 if inverse else 1
    # Both halves are worked out before either is written: in fp32, left and right are views of x.
    new_left_NHE = (left_NHE * cos_N1E).addcmul_(right_NHE, sin_N1E, value=-sign)
    new_right_NHE = (right_NHE * cos_N1E).addcmul_(left_NHE, sin_N1E, value=sign)
    x_NHD[..., :half] = new_left_NHE
    x_NHD[..., half:] = new_right_NHE
