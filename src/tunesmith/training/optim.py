"""AdamW, the learning-rate schedules, and the loss scaler for fp16."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw

from tunesmith.errors import RecipeError


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) with betas 0.9 and 0.999, eps 1e-8.

    torch's own fused function, on the state that torch.optim.AdamW would keep. To make one of those imports
    torch's compiler, which takes seconds. A test holds the two together, to the bit. param_groups: one, of
    params, lr and weight_decay. state: of each parameter that had a gradient. found_inf, grad_scale: scalars
    on the device, there for one step. Names are torch's: GradScaler takes this for its own.
    """

    # GradScaler asks: whether a step that overflowed is left out on the device
    _step_supports_amp_scaling = True

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, learning_rate: float,
                 weight_decay: float) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(parameters), "lr": learning_rate, "weight_decay": weight_decay}]
        self.state: defaultdict[torch.nn.Parameter, dict[str, torch.Tensor]] = defaultdict(dict)

    def zero_grad(self, *, set_to_none: bool) -> None:
        """Forget the gradients; kept as tensors of zeros unless set_to_none."""
        for group in self.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            if set_to_none:
                for parameter in with_grad:
                    parameter.grad = None
            elif with_grad:
                torch._foreach_zero_([p.grad for p in with_grad])

    @torch.no_grad()
    def step(self) -> None:
        """One step, of the parameters that have a gradient; none where `found_inf` is 1."""
        for group in self.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            for parameter in with_grad:
                if not self.state[parameter]:
                    self.state[parameter] = {"step": torch.zeros((), device=parameter.device),
                                             "exp_avg": torch.zeros_like(parameter),
                                             "exp_avg_sq": torch.zeros_like(parameter)}
            steps, means, squares = ([self.state[p][name] for p in with_grad]
                                     for name in ("step", "exp_avg", "exp_avg_sq"))
            adamw(with_grad, [p.grad for p in with_grad], means, squares, [], steps, fused=True,
                  amsgrad=False, maximize=False, beta1=0.9, beta2=0.999, eps=1e-8, lr=group["lr"],
                  weight_decay=group["weight_decay"], found_inf=getattr(self, "found_inf", None),
                  grad_scale=getattr(self, "grad_scale", None))


def build_optimizer(parameters: Iterable[torch.nn.Parameter], *, learning_rate: float,
                    weight_decay: float) -> AdamW:
    """The optimiser of a run."""
    return AdamW(parameters, learning_rate=learning_rate, weight_decay=weight_decay)


def build_scaler(dtype: torch.dtype, device: torch.device) -> torch.amp.GradScaler:
    """The loss scaler: at work for fp16, whose gradients would underflow; without effect for other dtypes."""
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    # makes its state now, so that a step can be begun again at any point
    scaler.scale(torch.zeros((), device=device))
    return scaler


def learning_rate_at(step: int, *, kind: str, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of optimiser step `step` (counted from 0).

    It climbs from 0 (the first step of a warm-up learns nothing, as in transformers' schedules) to `peak`
    over `warmup_steps`, then goes to 0 at `total_steps` along a line or half a cosine, or stays.
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
    raise RecipeError(f"unknown schedule {kind!r}", "linear, cosine or constant.",
                      setting="train.lr_scheduler")
