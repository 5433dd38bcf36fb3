"""Steps as CUDA graphs: one launch for a forward and backward pass of each batch size that recurs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tunesmith.model.native.packed_batch import PackedBatch

#: A pass over a batch on the device: (batch, weight of the loss) -> nats of each token that bears loss.
Pass = Callable[[PackedBatch, torch.Tensor], torch.Tensor]
#: Longer streams keep the GPU busy by themselves.
_MOST_TOKENS = 16384


class _Captured:
    """A graph, and the tensors that it reads and writes."""

    def __init__(self, run: Pass, batch: PackedBatch, weight: torch.Tensor, pool: Any,
                 stream: torch.cuda.Stream) -> None:
        self.batch, self.weight, self.graph = batch, weight.clone(), torch.cuda.CUDAGraph()
        # What another thread does meanwhile (an import that looks at the GPU) is allowed, and not captured.
        with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.nats_L = run(self.batch, self.weight)

    def replay(self, batch: PackedBatch, weight: torch.Tensor) -> torch.Tensor:
        """Copy the step's inputs in and launch."""
        for name, tensor in self.batch.tensors().items():
            tensor.copy_(getattr(batch, name).pin_memory(), non_blocking=True)
        self.weight.copy_(weight)
        self.graph.replay()
        return self.nats_L


class StepGraphs:
    """Runs passes: by itself the first time that a size comes, as a graph from the second.

    The first time compiles what is to be compiled, so nothing but launches is left to capture. All graphs
    share one pool of memory: no two run at once, and what one leaves behind is read before the next is
    launched. They share the stream that they are captured on, too, since a pool's memory belongs to one
    stream. It is our own: torch's default for captures is one for all GPUs, on the one that was current
    first.
    """

    def __init__(self, run: Pass, device: torch.device, *, enabled: bool) -> None:
        """enabled: whether passes may be captured; the plain path asks the host for lengths, and may not."""
        self._run, self._device, self._enabled = run, device, enabled
        self._capture_stream = torch.cuda.Stream(device) if enabled else None
        self.forget()

    def forget(self) -> None:
        """Drop every graph, and the memory that they hold."""
        self._captured: dict[tuple[int, int, int, bool], _Captured] = {}
        self._seen_keys: set[tuple[int, int, int, bool]] = set()
        self._pool = torch.cuda.graph_pool_handle() if self._enabled else None

    def run(self, batch: PackedBatch, weight: torch.Tensor, *,
            capture: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """(nats of each token that bears loss [L], whose they are [L]) of a batch that lies on the host.

        capture: whether a graph may be made of this pass, or taken for it.
        """
        key = (len(batch.ids_N), len(batch.loss_positions_L), batch.length, batch.dropout_keys_N is not None)
        if not self._enabled or not capture or key[0] > _MOST_TOKENS:
            return self._plain(batch, weight)
        try:
            if key not in self._captured:
                if key not in self._seen_keys:
                    self._seen_keys.add(key)
                    return self._plain(batch, weight)
                torch.cuda.synchronize(self._device)
                torch.cuda.empty_cache()  # what the pass outside the graph left behind is of no use inside
                assert self._capture_stream is not None
                with torch.cuda.device(self._device):
                    self._captured[key] = _Captured(self._run, self._static(batch), weight, self._pool,
                                                    self._capture_stream)
            captured = self._captured[key]
            return captured.replay(batch, weight), captured.batch.sample_L
        except torch.OutOfMemoryError:
            self.forget()
            raise

    def _static(self, batch: PackedBatch) -> PackedBatch:
        return replace(batch.to(self._device), spans=())

    def _plain(self, batch: PackedBatch, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        on_device = batch.to(self._device)
        return self._run(on_device, weight), on_device.sample_L
