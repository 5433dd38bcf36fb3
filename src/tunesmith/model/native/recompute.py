"""Gradient checkpointing (Chen et al. 2016, https://arxiv.org/abs/1604.06174): a layer keeps its input alone.

Its forward pass runs again when its gradient is wanted. The inputs may wait in the host's memory meanwhile,
on their way there and back while the GPU computes. torch's own checkpoint is not used: it asks that a layer
saves the same tensors both times, and here the second time leaves out what only the next layer would want.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

#: One layer: its input [N, C] -> (the residual stream, what is still to be added to it), both [N, C].
Layer = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
#: Inputs that are on their way to the host and still take up device memory, at most.
_MAX_OUTGOING = 2


class Offload:
    """Keeps the inputs of layers in the host's pinned memory from their forward to their backward pass.

    The copies run on a stream of their own. They come back one layer ahead of their use, in the order of a
    backward pass.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._hosts: list[torch.Tensor] = []
        self.begin()

    def begin(self) -> None:
        """Before a forward pass: nothing is kept."""
        self._offloaded: list[torch.Tensor] = []
        self._outgoing: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        self._incoming: dict[int, tuple[torch.Tensor, torch.cuda.Event]] = {}

    def put(self, x: torch.Tensor) -> int:
        """Begin to copy x to the host; returns its place."""
        place = len(self._offloaded)
        if place == len(self._hosts):
            self._hosts.append(torch.empty(0, dtype=x.dtype, pin_memory=True))
        if self._hosts[place].numel() < x.numel():
            self._hosts[place] = torch.empty(x.numel(), dtype=x.dtype, pin_memory=True)
        host = self._hosts[place][:x.numel()].view(x.shape)
        self._offloaded.append(host)
        self._outgoing.append((x, self._copy(host, x)))
        if len(self._outgoing) > _MAX_OUTGOING:  # by now that copy is long done; its memory may serve again
            _, done = self._outgoing.pop(0)
            torch.cuda.current_stream(x.device).wait_event(done)
        return place

    def get(self, place: int) -> torch.Tensor:
        """The tensor of a place, back on the device; the one before it sets out."""
        # These copies precede the one below on their stream; until that is waited for nothing is computed.
        self._outgoing.clear()
        x, done = self._incoming.pop(place) if place in self._incoming else self._fetch(place)
        torch.cuda.current_stream(x.device).wait_event(done)
        if place > 0:
            self._incoming[place - 1] = self._fetch(place - 1)
        return x

    def _fetch(self, place: int) -> tuple[torch.Tensor, torch.cuda.Event]:
        host = self._offloaded[place]
        x = torch.empty(host.shape, dtype=host.dtype, device=self._stream.device)
        return x, self._copy(x, host)

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> torch.cuda.Event:
        """Copy once all that is queued now is done; the event tells when."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        return done


def recomputed(layer: Layer, residual_NC: torch.Tensor, learnable: Sequence[torch.Tensor],
               again: Callable[[], Any], offload: Offload | None) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layer gives, keeping its input alone.

    learnable: what of the layer gets a gradient. again: a context in which it runs the second time.
    """
    given: tuple[torch.Tensor, torch.Tensor] = _Recomputed.apply(residual_NC, layer, again, offload,
                                                                 *learnable)
    return given


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual_NC: torch.Tensor, layer: Layer, again: Callable[[], Any],
                offload: Offload | None, *learnable: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        results = layer(residual_NC)
        ctx.layer, ctx.again, ctx.offload = layer, again, offload
        ctx.place = None if offload is None else offload.put(residual_NC)
        ctx.save_for_backward(residual_NC if offload is None else None, *learnable)
        return results

    @staticmethod
    def backward(ctx: Any, *d_results: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        residual_NC, *learnable = ctx.saved_tensors
        if residual_NC is None:
            residual_NC = ctx.offload.get(ctx.place)
        residual_NC = residual_NC.detach().requires_grad_(ctx.needs_input_grad[0])
        with torch.enable_grad(), ctx.again():
            results = ctx.layer(residual_NC)
        wanted = [*([residual_NC] if residual_NC.requires_grad else []), *learnable]
        # What enters the first layer learns nothing, nor does what is only handed on of it.
        outputs, d_outputs = zip(*((out, d) for out, d in zip(results, d_results, strict=True)
                                   if out.requires_grad), strict=True)
        grads = list(torch.autograd.grad(outputs, wanted, d_outputs, allow_unused=True))
        d_residual_NC = grads.pop(0) if residual_NC.requires_grad else None
        return d_residual_NC, None, None, None, *grads
