"""Cross-entropy of rows of logits, with the gradient in the same go. L loss-bearing rows, V entries."""

from __future__ import annotations

import torch

from tunesmith.model.native.kernels.dispatch import use_triton
from tunesmith.model.native.kernels.formats import IGNORED

#: Logits worked on at once in plain torch: 16 MiB in fp32.
_CHUNK = 1 << 22


def cross_entropy(logits_LV: torch.Tensor, targets_L: torch.Tensor,
                  d_logits_LV: torch.Tensor | None) -> torch.Tensor:
    """Each row's loss [L] in nats, fp32: logsumexp(logits) minus the target's logit; 0 if it is IGNORED.

    logits_LV: fp32, bf16 or fp16, contiguous; computed in fp32. targets_L: int64, in [0, V) or IGNORED.
    d_logits_LV: of any float dtype and contiguous; where given it is filled with the gradient of each row's
    own loss, softmax minus one-hot, and with 0 in ignored rows. It may be logits_LV itself, which the
    gradient then overwrites.
    """
    if use_triton(logits_LV):
        from tunesmith.model.native.kernels.cross_entropy_triton import cross_entropy_triton

        return cross_entropy_triton(logits_LV, targets_L, d_logits_LV)
    return cross_entropy_plain(logits_LV, targets_L, d_logits_LV)


def cross_entropy_plain(logits_LV: torch.Tensor, targets_L: torch.Tensor,
                        d_logits_LV: torch.Tensor | None) -> torch.Tensor:
    """`cross_entropy` in plain torch, some rows at a time, so that it takes little memory of its own."""
    rows, entries = logits_LV.shape
    nats_L = torch.empty(rows, dtype=torch.float32, device=logits_LV.device)
    step = max(1, _CHUNK // entries)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        log_p_RV = torch.log_softmax(logits_LV[part], dim=1, dtype=torch.float32)
        ignored_R = targets_L[part] == IGNORED
        target_R1 = targets_L[part].masked_fill(ignored_R, 0)[:, None]
        nats_L[part] = log_p_RV.gather(1, target_R1)[:, 0].neg_().masked_fill_(ignored_R, 0)
        if d_logits_LV is not None:
            p_RV = log_p_RV.exp_()
            p_RV.scatter_add_(1, target_R1, p_RV.new_full((), -1.0).expand(target_R1.shape))
            d_logits_LV[part] = p_RV.masked_fill_(ignored_R[:, None], 0)
    return nats_L
