"""Steps as CUDA graphs: one launch for a forward and backward pass, for each size of stream that comes again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tunesmith.model.native.stream import Stream

#: A pass over a stream on the device: (stream, weight of the loss, seed of the dropout) -> nats of each learnt token.
Pass = Callable[[Stream, torch.Tensor, torch.Tensor | None], torch.Tensor]
#: Longer streams keep the GPU busy by themselves.
_MOST_TOKENS = 16384


class _Captured:
    """A graph, and the tensors that it reads and writes."""

    def __init__(self, run: Pass, stream: Stream, weight: torch.Tensor, seed: torch.Tensor | None, pool: Any) -> None:
        self.stream, self.weight, self.seed = stream, weight.clone(), None if seed is None else seed.clone()
        self.graph = torch.cuda.CUDAGraph()
        # What another thread does meanwhile (an import that looks at the GPU) is no part of the graph, and may be done.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.nats_L = run(self.stream, self.weight, self.seed)

    def replay(self, stream: Stream, weight: torch.Tensor, seed: torch.Tensor | None) -> torch.Tensor:
        """Copy the step's inputs in and launch."""
        for name, tensor in self.stream.tensors().items():
            tensor.copy_(getattr(stream, name).pin_memory(), non_blocking=True)
        self.weight.copy_(weight)
        if self.seed is not None and seed is not None:
            self.seed.copy_(seed.pin_memory(), non_blocking=True)
        self.graph.replay()
        return self.nats_L


class StepGraphs:
    """Runs passes: by itself the first time that a size comes, as a graph from the second.

    The first time compiles what is to be compiled, so nothing but launches is left to capture. All graphs share one
    pool of memory: no two run at once, and what one leaves behind is read before the next is launched.
    """

    def __init__(self, run: Pass, device: torch.device, *, enabled: bool) -> None:
        """enabled: whether passes may be captured; the plain path, which asks the host for lengths, may not."""
        self._run, self._device, self._enabled = run, device, enabled
        self.forget()

    def forget(self) -> None:
        """Drop every graph, and the memory that they hold."""
        self._captured: dict[tuple[int, int, int, bool], _Captured] = {}
        self._seen: set[tuple[int, int, int, bool]] = set()
        self._pool = torch.cuda.graph_pool_handle() if self._enabled else None

    def run(self, stream: Stream, weight: torch.Tensor, seed: torch.Tensor | None, *,
            capture: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """(nats of each learnt token [L], whose they are [L]) of a stream that lies on the host.

        capture: whether a graph may be made of this pass, or taken for it.
        """
        key = (len(stream.ids_N), len(stream.learnt_L), stream.length, seed is not None)
        if not self._enabled or not capture or key[0] > _MOST_TOKENS:
            return self._plain(stream, weight, seed)
        try:
            if key not in self._captured:
                if key not in self._seen:
                    self._seen.add(key)
                    return self._plain(stream, weight, seed)
                torch.cuda.synchronize()
                torch.cuda.empty_cache()  # what the pass outside the graph left behind is of no use inside
                on_device = None if seed is None else seed.to(self._device)
                self._captured[key] = _Captured(self._run, self._static(stream), weight, on_device, self._pool)
            captured = self._captured[key]
            return captured.replay(stream, weight, seed), captured.stream.sample_L
        except torch.OutOfMemoryError:
            self.forget()
            raise

    def _static(self, stream: Stream) -> Stream:
        return replace(stream.to(self._device), spans=())

    def _plain(self, stream: Stream, weight: torch.Tensor, seed: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        on_device = stream.to(self._device)
        seed = seed if seed is None or self._device.type == "cpu" else seed.pin_memory().to(self._device, non_blocking=True)
        return self._run(on_device, weight, seed), on_device.sample_L
