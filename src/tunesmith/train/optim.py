"""AdamW, the learning-rate schedules, and the loss scaler for fp16."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from tunesmith.errors import RecipeError


def build_optimizer(parameters: Iterable[torch.nn.Parameter], *, learning_rate: float,
                    weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) with betas 0.9 and 0.999, eps 1e-8."""
    return torch.optim.AdamW(list(parameters), lr=learning_rate, betas=(0.9, 0.999), eps=1e-8,
                             weight_decay=weight_decay, fused=True)


def build_scaler(dtype: torch.dtype, device: torch.device) -> torch.amp.GradScaler:
    """The loss scaler: at work for fp16, whose gradients would underflow; without effect for any other dtype."""
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    scaler.scale(torch.zeros((), device=device))  # makes its state now, so that a step can be begun again at any point
    return scaler


def learning_rate_at(step: int, *, kind: str, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of optimiser step `step` (counted from 0).

    It climbs from 0 (the first step of a warm-up learns nothing, as in transformers' schedules) to `peak` over
    `warmup_steps`, then goes to 0 at `total_steps` along a line or half a cosine, or stays.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    share_left = max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    if kind == "linear":
        return peak * share_left
    if kind == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (1 - share_left)))
    if kind == "constant":
        return peak
    raise RecipeError(f"train.lr_scheduler: unknown schedule {kind!r}", "linear, cosine or constant.")
