"""The frozen decoder: layers on the residual stream, assembled from the parts of a family's file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from tunesmith.model.engine import MaskedRow
from tunesmith.model.families import parts
from tunesmith.model.native.attention import (
    Cache,
    CachedAttention,
    FillingAttention,
    LayerSettings,
    PackedAttention,
)
from tunesmith.model.native.linear import Linear, Mode
from tunesmith.model.native.norm import HeadNorm, Norm
from tunesmith.model.native.packed_batch import PackedBatch, pack
from tunesmith.model.native.recompute import Offload, recomputed
from tunesmith.model.native.rope import Rope, RopeTable, rope_table
from tunesmith.model.native.weights import frozen

#: Attention of one pass: q, k, v side by side [N, W] and the layer's number -> [N, H D].
Attend = Callable[[torch.Tensor, int], torch.Tensor]


#: What maps (the residual stream, what is still to be added to it or None) to the same: a layer, or a half of
#: one.
Segment = Callable[[torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]


def _alone(segment: Segment, residual_NC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A segment whose input is the residual stream alone."""
    return segment(residual_NC, None)


class Reader(Protocol):
    """Builds the parts of a decoder from a checkpoint, by the base's own names. See `load.Checkpoint`."""

    mode: Mode
    device: torch.device

    def linear(self, projection: parts.Projection) -> Linear:
        """Its modules side by side."""
        ...

    def norm(self, norm: parts.Norm) -> Norm:
        """LayerNorm with a shift, RMSNorm without."""
        ...

    def head(self, embedding_VC: nn.Parameter, *, tied: bool) -> nn.Parameter:
        """The head [V, C]; the embedding itself where they are one."""
        ...

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """A tensor in the dtype of the products."""
        ...


def alibi_slopes(heads: int) -> list[float]:
    """ALiBi's slopes (Press et al. 2021, section 3): a geometric sequence; between two powers of two every
    other one of the next power's is taken.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]


class Layer(nn.Module):
    """Attention, then the MLP, each on a normed copy of the residual stream."""

    def __init__(self, layer: parts.Layer, heads: parts.Heads, residual_scale: float, read: Reader) -> None:
        super().__init__()
        self.attention_norm = read.norm(layer.attention_norm)
        self.qkv = read.linear(layer.qkv)
        self.head_norm = None
        if layer.head_norms is not None:
            q, k = layer.head_norms
            self.head_norm = HeadNorm(read.tensor(f"{q.name}.weight", q.width),
                                      read.tensor(f"{k.name}.weight", k.width), heads, q.eps)
        self.attention_output = read.linear(layer.attention_output)
        self.mlp_norm = read.norm(layer.mlp_norm)
        self.mlp_input = read.linear(layer.mlp_input)
        self.mlp_output = read.linear(layer.mlp_output)
        self.activation, self.residual_scale = layer.activation, residual_scale

    def forward(self, residual_NC: torch.Tensor, delta_NC: torch.Tensor | None, attend: Attend,
                number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(the residual stream, what is still to be added to it), both [N, C]."""
        return self.mlp(*self.attention(residual_NC, delta_NC, attend, number))

    def attention(self, residual_NC: torch.Tensor, delta_NC: torch.Tensor | None, attend: Attend, number: int,
                  *, alone: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The first half; alone: when it is recomputed, the second is not."""
        residual_NC, x_NC = self.attention_norm(residual_NC, delta_NC, self.qkv.spare_columns)
        qkv_NW = self.qkv(x_NC)
        if self.head_norm is not None:
            qkv_NW = self.head_norm(qkv_NW)
        return residual_NC, self._scaled(self.attention_output(attend(qkv_NW, number), last=alone))

    def mlp(self, residual_NC: torch.Tensor,
            delta_NC: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The second half."""
        residual_NC, x_NC = self.mlp_norm(residual_NC, delta_NC, self.mlp_input.spare_columns)
        return residual_NC, self._scaled(self.mlp_output(self.mlp_input(x_NC), activation=self.activation,
                                                         last=True))

    def _scaled(self, delta_NC: torch.Tensor) -> torch.Tensor:
        return delta_NC if self.residual_scale == 1 else delta_NC * self.residual_scale


class Decoder(nn.Module):
    """A frozen decoder with LoRA, from its parts and its checkpoint.

    embedding, head: [V, C], the same tensor when tied. slopes: ALiBi's, one a head, fp32, or None.
    config: transformers' object of the base, for RoPE's frequencies; None where nothing is turned.
    """

    slopes: torch.Tensor | None

    def __init__(self, architecture: parts.Architecture, read: Reader, config: Any = None) -> None:
        super().__init__()
        self.parts, self.heads, self.mode = architecture, architecture.heads, read.mode
        self.windows = architecture.windows
        #: How many layers, from the first, recompute their activations in the backward pass; where their
        #: inputs wait.
        self.recomputed_layers = 0
        self.offload: Offload | None = None
        self.embedding = frozen(read.tensor(f"{architecture.embedding}.weight", architecture.vocabulary,
                                            architecture.hidden))
        self.head = read.head(self.embedding, tied=architecture.tied)
        norm = architecture.embedding_norm
        self.embedding_norm = None if norm is None else read.norm(norm)
        self.layers = nn.ModuleList(Layer(layer, self.heads, architecture.residual_scale, read)
                                    for layer in architecture.layers)
        self.final_norm = read.norm(architecture.final_norm)
        slopes = (torch.tensor(alibi_slopes(self.heads.queries), device=read.device) if architecture.alibi
                  else None)
        self.register_buffer("slopes", slopes, persistent=False)
        self.ropes = nn.ModuleDict({name: rope_table(rope, config, self.heads.width, read.device)
                                    for name, rope in (architecture.ropes or {}).items()})

    @property
    def short_rope_limit(self) -> int | None:
        """The longest sample of the short RoPE (see `RopeTable`); None where there is one RoPE for all."""
        tables = [table for table in self.ropes.values() if isinstance(table, RopeTable)]
        return min((table.longest for table in tables if table.longest is not None), default=None)

    def pack(self, rows: Sequence[MaskedRow], *, bucket: int = 1,
             dropout_seeds: Sequence[int] | None = None) -> PackedBatch:
        """Rows as this decoder takes them, see `packed_batch.pack`."""
        return pack(rows, bucket=bucket, windows=self.windows, lengths=self.short_rope_limit is not None,
                    dropout_seeds=dropout_seeds)

    def embed(self, ids_N: torch.Tensor) -> torch.Tensor:
        """The residual stream at its beginning [N, C]."""
        embedded_NC = torch.nn.functional.embedding(ids_N, self.embedding)
        if self.parts.embedding_scale != 1:
            embedded_NC = embedded_NC * self.parts.embedding_scale
        if self.embedding_norm is not None:
            embedded_NC = self.embedding_norm(embedded_NC, None)[1]
        return embedded_NC

    def hidden(self, ids_N: torch.Tensor, attend: Attend, rows_L: torch.Tensor | None) -> torch.Tensor:
        """The normed last hidden state [L, C] of the chosen positions of the batch, or of all."""
        residual_NC = self.embed(ids_N)
        delta_NC: torch.Tensor | None = None
        if self.offload is not None:
            self.offload.begin()
        for segment, learnable in self._segments(attend):
            if learnable is None or not torch.is_grad_enabled():
                residual_NC, delta_NC = segment(residual_NC, delta_NC)
            else:
                # Only one tensor is kept for each segment when the sum is made before it.
                residual_NC = residual_NC if delta_NC is None else residual_NC + delta_NC
                residual_NC, delta_NC = recomputed(partial(_alone, segment), residual_NC, learnable,
                                                   self.mode.recompute, self.offload)
        if rows_L is not None:
            residual_NC, delta_NC = residual_NC[rows_L], None if delta_NC is None else delta_NC[rows_L]
        normed_LC: torch.Tensor = self.final_norm(residual_NC, delta_NC)[1]
        return normed_LC

    def _segments(self, attend: Attend) -> Iterator[tuple[Segment, list[nn.Parameter] | None]]:
        """The layers in order, each with what learns in it where it is to be recomputed, else with None.

        Inputs that wait on the host cost no memory, so there each half of a layer keeps its own: then the
        attention's last product is not made again. The last half of all is not recomputed: its backward pass
        comes at once.
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

    def _layer_settings(self, positions_N: torch.Tensor,
                        lengths_N: torch.Tensor | None) -> list[LayerSettings]:
        """How each layer's attention is positioned; layers of one kind share their tensors."""
        ropes: dict[str, Rope] = {name: table(positions_N, lengths_N) for name, table in self.ropes.items()}
        return [LayerSettings(None if layer.rope is None else ropes[layer.rope],
                              self.windows.index(layer.window)) for layer in self.parts.layers]

    def _attention(self) -> dict[str, Any]:
        return {"slopes_H": self.slopes, "windows": self.windows, "scale": self.parts.attention_scale}

    def packed(self, batch: PackedBatch) -> Attend:
        """Attention over a batch."""
        return PackedAttention(batch, self.heads, self._layer_settings(batch.positions_N, batch.lengths_N),
                               **self._attention())

    def filling(self, batch: PackedBatch, cache: Cache) -> Attend:
        """Attention over a batch of prompts that fills a cache."""
        layer_settings = self._layer_settings(batch.positions_N, batch.lengths_N)
        return FillingAttention(cache, batch, self.heads, layer_settings, **self._attention())

    def cached(self, cache: Cache, positions_B: torch.Tensor, longest: int) -> Attend:
        """Attention of one new token for each answer."""
        layer_settings = self._layer_settings(positions_B, positions_B + 1)
        return CachedAttention(cache, positions_B, longest, self.heads, layer_settings, **self._attention())

    def linears(self) -> Iterator[Linear]:
        """Every linear layer but the head, in order."""
        return (module for module in self.modules() if isinstance(module, Linear))

    def parameter_count(self) -> int:
        """Of the base alone: what is tied counts once, what is quantised counts in full."""
        norms = sum(module.parameter_count() for module in self.modules()
                    if isinstance(module, Norm | HeadNorm))
        tables = self.embedding.numel() + (0 if self.head is self.embedding else self.head.numel())
        return norms + tables + sum(linear.parameter_count() for linear in self.linears())
