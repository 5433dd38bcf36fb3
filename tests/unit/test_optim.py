"""The optimiser, held to torch's own."""

from __future__ import annotations

import copy

import pytest
import torch

from tunesmith.training.optim import build_optimizer, build_scaler


def parameters(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator))
            for shape in ((7, 3), (5,), (2, 2), (4,))]


def give_gradients(ours: list[torch.nn.Parameter], theirs: list[torch.nn.Parameter], step: int) -> None:
    """The same random gradients to both; the second parameter gets its first one late, the last never."""
    for index, (mine, other) in enumerate(zip(ours[:-1], theirs[:-1], strict=True)):
        if index != 1 or step > 2:
            fresh = torch.randn(mine.shape)
            for parameter in (mine, other):
                parameter.grad = fresh.clone()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_torch_s_to_the_bit(weight_decay: float) -> None:
    ours, theirs = parameters(1), parameters(1)
    mine = build_optimizer(iter(ours), learning_rate=0.03, weight_decay=weight_decay)
    reference = torch.optim.AdamW(theirs, lr=0.03, weight_decay=weight_decay, fused=True)
    for step in range(8):
        for optimizer in (mine, reference):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            optimizer.param_groups[0]["lr"] = 0.03 / (step + 1)
        give_gradients(ours, theirs, step)
        bad = torch.tensor(float(step in (0, 4)))
        mine.found_inf = reference.found_inf = bad  # type: ignore[attr-defined]
        before = copy.deepcopy(ours)
        for optimizer in (mine, reference):
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(ours, before, strict=True)) == bool(bad)
        for a, b in zip(ours, theirs, strict=True):
            assert set(mine.state[a]) == set(reference.state[b])
            assert all(torch.equal(mine.state[a][key], value) for key, value in reference.state[b].items())
        del mine.found_inf, reference.found_inf
    assert not mine.state[ours[-1]]


def test_adamw_under_a_loss_scaler_is_torch_s() -> None:
    ours, theirs = parameters(2), parameters(2)
    mine = build_optimizer(ours, learning_rate=0.03, weight_decay=0.01)
    reference = torch.optim.AdamW(theirs, lr=0.03, weight_decay=0.01, fused=True)
    scalers = [build_scaler(torch.float16, torch.device("cpu")) for _ in range(2)]
    for step in range(6):
        give_gradients(ours, theirs, step)
        if step == 3:
            for each in (ours, theirs):
                each[0].grad[0] = float("inf")
        for scaler, optimizer in zip(scalers, (mine, reference), strict=True):
            if step % 2:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert scalers[0].get_scale() == scalers[1].get_scale()


def test_gradients_are_forgotten_or_set_to_zero() -> None:
    ours = parameters(3)
    optimizer = build_optimizer(ours, learning_rate=0.1, weight_decay=0.0)
    optimizer.zero_grad(set_to_none=False)
    ours[0].grad = kept = torch.ones(7, 3)
    optimizer.zero_grad(set_to_none=False)
    assert ours[0].grad is kept
    assert not kept.any()
    optimizer.zero_grad(set_to_none=True)
    assert all(parameter.grad is None for parameter in ours)
