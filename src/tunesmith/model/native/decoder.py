"""What every family shares: embedding, a stack of layers on the residual stream, a last norm, a head.

A family is a file that builds its layers from a checkpoint and says how its attention is positioned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from tunesmith.model.native.attention import Cache, CachedAttention, FillingAttention, Heads, PackedAttention, Rope
from tunesmith.model.native.linear import Linear, Mode
from tunesmith.model.native.norm import HeadNorm, Norm
from tunesmith.model.native.packed_batch import PackedBatch
from tunesmith.model.native.recompute import Offload, recomputed

#: Attention of one pass: q, k, v side by side [N, W] and the layer's number -> [N, H D].
Attend = Callable[[torch.Tensor, int], torch.Tensor]


#: What maps (the residual stream, what is still to be added to it or None) to the same: a layer, or a half of one.
Stretch = Callable[[torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]


def _alone(stretch: Stretch, residual_NC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A stretch whose input is the residual stream alone."""
    return stretch(residual_NC, None)


class Reader(Protocol):
    """Builds the parts of a decoder from a checkpoint, by the base's own names. See `load.Checkpoint`."""

    mode: Mode
    device: torch.device

    def linear(self, inputs: int, outputs: dict[str, int], *, bias: bool) -> Linear:
        """One layer of one module, or of several side by side: each one's name and how many outputs it has."""
        ...

    def norm(self, name: str, width: int, eps: float, *, shift: bool) -> Norm:
        """LayerNorm with a shift, RMSNorm without."""
        ...

    def head(self, embedding_VC: nn.Parameter, *, tied: bool) -> nn.Parameter:
        """The head [V, C]; the embedding itself where they are one."""
        ...

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """A tensor in the dtype of the products."""
        ...


class Decoder(nn.Module):
    """A frozen decoder with LoRA. Subclasses set what is annotated here and may override `embed` and `rope`.

    embedding, head: [V, C], the same tensor when tied. slopes: ALiBi's, one a head, fp32, or None.
    window: how many tokens back a token sees, itself counted; None for all.
    """

    embedding: nn.Parameter
    head: nn.Parameter
    layers: nn.ModuleList
    final_norm: Norm
    heads: Heads
    slopes: torch.Tensor | None
    window: int | None
    mode: Mode
    #: How many layers, from the first, recompute their activations in the backward pass, and where their inputs wait.
    recomputed_layers: int = 0
    offload: Offload | None = None

    def embed(self, ids_N: torch.Tensor) -> torch.Tensor:
        """The residual stream at its beginning [N, C]."""
        return torch.nn.functional.embedding(ids_N, self.embedding)

    def rope(self, positions_N: torch.Tensor) -> Rope | None:
        """Rotations of the queries and keys, for families that have them."""
        return None

    def hidden(self, ids_N: torch.Tensor, attend: Attend, rows_L: torch.Tensor | None) -> torch.Tensor:
        """The normed last hidden state [L, C] of the chosen places of the batch, or of all."""
        residual_NC = self.embed(ids_N)
        delta_NC: torch.Tensor | None = None
        if self.offload is not None:
            self.offload.begin()
        for stretch, learnable in self._stretches(attend):
            if learnable is None or not torch.is_grad_enabled():
                residual_NC, delta_NC = stretch(residual_NC, delta_NC)
            else:
                # Only one tensor is kept for each stretch when the sum is made before it.
                residual_NC = residual_NC if delta_NC is None else residual_NC + delta_NC
                residual_NC, delta_NC = recomputed(partial(_alone, stretch), residual_NC, learnable, self.mode.recompute,
                                                   self.offload)
        if rows_L is not None:
            residual_NC, delta_NC = residual_NC[rows_L], None if delta_NC is None else delta_NC[rows_L]
        normed_LC: torch.Tensor = self.final_norm(residual_NC, delta_NC)[1]
        return normed_LC

    def _stretches(self, attend: Attend) -> Iterator[tuple[Stretch, list[nn.Parameter] | None]]:
        """The layers in order, each with what learns in it where it is to be recomputed, else with None.

        Inputs that wait on the host cost no memory, so there each half of a layer keeps its own: then the attention's last
        product is not made again. The last half of all is not recomputed: its backward pass comes at once.
        """
        layer: Any
        for number, layer in enumerate(self.layers):
            whole = partial(layer, attend=attend, number=number)
            if number >= self.recomputed_layers:
                yield whole, None
                continue
            learnable = [each for each in layer.parameters() if each.requires_grad]
            if self.offload is None:
                yield whole, learnable
            else:
                yield partial(layer.attention, attend=attend, number=number, alone=True), learnable
                yield layer.mlp, learnable if number + 1 < len(self.layers) else None

    def _positioned(self, positions_N: torch.Tensor) -> dict[str, Any]:
        return {"rope": self.rope(positions_N), "slopes_H": self.slopes, "window": self.window}

    def packed(self, batch: PackedBatch) -> Attend:
        """Attention over a batch."""
        return PackedAttention(batch, self.heads, **self._positioned(batch.positions_N))

    def filling(self, batch: PackedBatch, cache: Cache) -> Attend:
        """Attention over a batch of prompts that fills a cache."""
        return FillingAttention(cache, batch, self.heads, **self._positioned(batch.positions_N))

    def cached(self, cache: Cache, positions_B: torch.Tensor, longest: int) -> Attend:
        """Attention of one new token for each answer."""
        return CachedAttention(cache, positions_B, longest, self.heads, **self._positioned(positions_B))

    def linears(self) -> Iterator[Linear]:
        """Every linear layer but the head, in order."""
        return (module for module in self.modules() if isinstance(module, Linear))

    def parameter_count(self) -> int:
        """Of the base alone: what is tied counts once, what is quantised counts in full."""
        norms = sum(module.parameter_count() for module in self.modules() if isinstance(module, Norm | HeadNorm))
        tables = self.embedding.numel() + (0 if self.head is self.embedding else self.head.numel())
        return norms + tables + sum(linear.parameter_count() for linear in self.linears())
