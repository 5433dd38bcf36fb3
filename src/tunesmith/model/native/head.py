"""The head and the loss in one: logits exist for some rows at a time, and only for rows that bear loss.

Shapes: L rows, C channels, V entries of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.model.native.kernels.cross_entropy import cross_entropy
from tunesmith.model.native.linear import matmul_fp32

#: Logits at once [values]: on a GPU some 500 rows keep the product efficient; on a CPU what its cache likes.
_LOGITS_GPU, _LOGITS_CPU, _MOST_ROWS = 1 << 27, 1 << 22, 512
#: Rows of a tile of a GPU's matrix units: a chunk is a multiple of it.
_TILE = 128


def head_losses(hidden_LC: torch.Tensor, weight_VC: torch.Tensor, targets_L: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each row [L] in nats, fp32; 0 where the target is -100.

    The gradient for the hidden rows is computed along with the loss, while a chunk's logits exist, as Liger
    does (Hsu et al. 2024, https://arxiv.org/abs/2410.10989): softmax minus one-hot does not depend on what
    comes after.
    """
    nats_L: torch.Tensor = _HeadLoss.apply(hidden_LC, weight_VC, targets_L)
    return nats_L


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_LC: torch.Tensor, weight_VC: torch.Tensor,
                targets_L: torch.Tensor) -> torch.Tensor:
        rows, vocabulary = len(targets_L), weight_VC.shape[0]
        if hidden_LC.is_cuda:
            chunk = max(_TILE, min(_MOST_ROWS, _LOGITS_GPU // vocabulary // _TILE * _TILE))
        else:
            chunk = max(16, min(_MOST_ROWS, _LOGITS_CPU // vocabulary))
        nats_L = torch.empty(rows, dtype=torch.float32, device=hidden_LC.device)
        d_hidden_LC = torch.empty_like(hidden_LC) if ctx.needs_input_grad[0] else None
        for start in range(0, rows, chunk):
            here = slice(start, min(start + chunk, rows))
            logits = matmul_fp32(hidden_LC[here], weight_VC.T)
            if d_hidden_LC is None:
                nats_L[here] = cross_entropy(logits, targets_L[here], None)
                continue
            d_logits = (logits if logits.dtype == hidden_LC.dtype
                        else torch.empty_like(logits, dtype=hidden_LC.dtype))
            nats_L[here] = cross_entropy(logits, targets_L[here], d_logits)
            torch.mm(d_logits, weight_VC, out=d_hidden_LC[here])
        ctx.save_for_backward(d_hidden_LC)
        return nats_L

    @staticmethod
    def backward(ctx: Any, d_nats_L: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (d_hidden_LC,) = ctx.saved_tensors
        return (d_hidden_LC.float() * d_nats_L[:, None]).to(d_hidden_LC.dtype), None, None
