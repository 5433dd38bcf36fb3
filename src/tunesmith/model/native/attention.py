"""Causal attention inside each sample of a packed batch, and over a cache when answers are generated.

Shapes: N tokens of a batch, H heads of queries, K heads of keys and values (K divides H), D the width of a
head, W = (H + 2 K) D the width of q, k and v side by side. B answers, T positions of a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.model.families.parts import Heads
from tunesmith.model.native.kernels.attention_cudnn import (
    SHORTEST,
    attention_backward_cudnn,
    attention_forward_cudnn,
    fits_cudnn,
)
from tunesmith.model.native.kernels.dispatch import use_triton
from tunesmith.model.native.packed_batch import PackedBatch
from tunesmith.model.native.rope import Rope
from tunesmith.model.native.short_attention import fits_short_attention, short_attention


@dataclass(frozen=True)
class LayerSettings:
    """How one layer sees positions. rope: None for no rotation. window: its index in the batch's windows."""

    rope: Rope | None
    window: int


def split_heads(heads: Heads, qkv_NW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views q [N, H, D], k and v [N, K, D] of q, k and v side by side."""
    if heads.interleaved:
        q, k, v = qkv_NW.view(len(qkv_NW), heads.queries, 3, heads.width).unbind(2)
        return q, k, v
    every = qkv_NW.view(len(qkv_NW), heads.queries + 2 * heads.keys, heads.width)
    q, k, v = every.split([heads.queries, heads.keys, heads.keys], dim=1)
    return q, k, v


class PackedAttention:
    """Attention of one pass over a batch.

    layer_settings: of each layer. slopes_H: ALiBi's (Press et al. 2021, https://arxiv.org/abs/2108.12409),
    fp32. windows: those that occur, in the order of the batch's `first_key_WN`. scale: of q k^T; None for 1 /
    sqrt(D).
    """

    def __init__(self, batch: PackedBatch, heads: Heads, layer_settings: list[LayerSettings], *,
                 slopes_H: torch.Tensor | None, windows: Sequence[int | None], scale: float | None) -> None:
        self.batch, self.heads, self.layer_settings, self.slopes_H = batch, heads, layer_settings, slopes_H
        self.windows, self.scale = windows, scale
        self.first_keys, self.last_queries = batch.first_key_WN.unbind(), batch.last_query_WN.unbind()
        longest = batch.length or max((stop - start for start, stop in batch.spans), default=0)
        whole = [window is None or longest <= window for window in windows]
        dense = (batch.length >= SHORTEST and slopes_H is None
                 and not torch.are_deterministic_algorithms_enabled())
        short = batch.ids_N.device.type == "cpu" and fits_short_attention(batch.spans, heads.queries)
        self.dense, self._short = [dense and each for each in whole], [short and each for each in whole]

    def __call__(self, qkv_NW: torch.Tensor, layer: int) -> torch.Tensor:
        """[N, H D]. On a GPU q and k are rotated where they lie."""
        settings = self.layer_settings[layer]
        if use_triton(qkv_NW):
            o_NW: torch.Tensor = _PackedAttention.apply(qkv_NW, self, settings)
            return o_NW
        q, k, v = split_heads(self.heads, qkv_NW)
        if settings.rope is not None:
            q, k = settings.rope.rotated(q), settings.rope.rotated(k)
        self.store_kv(k, v, layer)
        if self._short[settings.window] and qkv_NW.dtype == torch.float32:
            return short_attention(q, k, v, self.batch.spans, self.slopes_H, self.scale).flatten(1)
        return packed_attention_plain(q, k, v, self.batch.spans, self.slopes_H, self.windows[settings.window],
                                      self.scale).flatten(1)

    def store_kv(self, k_NKD: torch.Tensor, v_NKD: torch.Tensor, layer: int) -> None:
        """Gets the rotated keys and the values of each layer; a cache that is being filled keeps them."""


def packed_attention_plain(q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor,
                           spans: tuple[tuple[int, int], ...], slopes_H: torch.Tensor | None,
                           window: int | None, scale: float | None = None) -> torch.Tensor:
    """[N, H, D], sample by sample through torch's attention; differentiable. Twin of the Triton kernels."""
    lengths = [stop - start for start, stop in spans]
    out = []
    for q, k, v in zip(q_NHD.split(lengths), k_NKD.split(lengths), v_NKD.split(lengths), strict=True):
        count = len(q)
        mask = None
        if slopes_H is not None or (window is not None and count > window):
            offset_TT = torch.arange(count, device=q.device) - torch.arange(count, device=q.device)[:, None]
            masked_TT = offset_TT > 0
            if window is not None:
                masked_TT = masked_TT | (offset_TT <= -window)
            slopes = torch.zeros(1, device=q.device) if slopes_H is None else slopes_H
            mask = (slopes[:, None, None] * offset_TT).masked_fill(masked_TT, float("-inf")).to(q.dtype)[None]
        sample_out = scaled_dot_product_attention(
            q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], attn_mask=mask,
            is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        out.append(sample_out[0].transpose(0, 1))
    return torch.cat(out)


class _PackedAttention(torch.autograd.Function):
    """Rope and attention in Triton. Its input is its own: no one else reads q and k unrotated."""

    @staticmethod
    def forward(ctx: Any, qkv_NW: torch.Tensor, attention: PackedAttention,
                settings: LayerSettings) -> torch.Tensor:
        from tunesmith.model.native.kernels.attention_triton import attention_forward_triton

        q, k, v = split_heads(attention.heads, qkv_NW)
        if settings.rope is not None:
            settings.rope.rotate_(q)
            settings.rope.rotate_(k)
        ctx.attention, ctx.settings, ctx.dense = attention, settings, None
        if attention.dense[settings.window] and fits_cudnn(q, k, v, attention.batch.length):
            o_NHD, ctx.dense = attention_forward_cudnn(q, k, v, attention.batch.length, attention.scale)
            ctx.save_for_backward(qkv_NW, o_NHD)
        else:
            o_NHD, lse_HN = attention_forward_triton(q, k, v, attention.first_keys[settings.window],
                                                     attention.slopes_H, attention.scale)
            ctx.save_for_backward(qkv_NW, o_NHD, lse_HN)
        return o_NHD.flatten(1)

    @staticmethod
    def backward(ctx: Any, do_NHD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from tunesmith.model.native.kernels.attention_triton import attention_backward_triton

        attention: PackedAttention = ctx.attention
        settings: LayerSettings = ctx.settings
        qkv_NW, o_NHD, *lse = ctx.saved_tensors
        d_qkv_NW = torch.empty_like(qkv_NW)
        q, k, v = split_heads(attention.heads, qkv_NW)
        dq, dk, dv = split_heads(attention.heads, d_qkv_NW)
        do_NHD = do_NHD.contiguous().view_as(o_NHD)
        if ctx.dense is not None:
            grads = attention_backward_cudnn(do_NHD, q, k, v, o_NHD, ctx.dense, attention.batch.length,
                                             attention.scale)
            dv.copy_(grads[2])
        else:
            attention_backward_triton(do_NHD, q, k, v, o_NHD, lse[0], attention.first_keys[settings.window],
                                      attention.last_queries[settings.window], attention.slopes_H, dq, dk, dv,
                                      attention.scale)
            grads = (dq, dk, dv)
        for target, each in zip((dq, dk), grads, strict=False):
            if settings.rope is not None:
                settings.rope.rotate_(target, inverse=True, source_NHD=each)
            elif each is not target:
                target.copy_(each)
        return d_qkv_NW, None, None


class Cache:
    """Keys and values of B answers under way, for every layer, with the capacity for T tokens each."""

    def __init__(self, layers: int, answers: int, capacity: int, heads: Heads, dtype: torch.dtype,
                 device: torch.device) -> None:
        shape = (layers, answers, heads.keys, capacity, heads.width)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    def write(self, layer: int, answer_N: torch.Tensor, position_N: torch.Tensor, k_NKD: torch.Tensor,
              v_NKD: torch.Tensor) -> None:
        """Keep one token's keys and values for each of N (answer, position)."""
        self.k[layer][answer_N, :, position_N] = k_NKD
        self.v[layer][answer_N, :, position_N] = v_NKD

    def only(self, answers: torch.Tensor) -> None:
        """Keep these answers alone."""
        self.k, self.v = self.k[:, answers], self.v[:, answers]


class FillingAttention(PackedAttention):
    """Packed attention over the prompts that leaves their keys and values in a cache."""

    def __init__(self, cache: Cache, batch: PackedBatch, heads: Heads, layer_settings: list[LayerSettings],
                 **more: Any) -> None:
        super().__init__(batch, heads, layer_settings, **more)
        self.cache = cache
        total = batch.spans[-1][1]
        self.answer_N = torch.zeros(total, dtype=torch.int64)
        for answer, (start, stop) in enumerate(batch.spans):
            self.answer_N[start:stop] = answer
        self.answer_N = self.answer_N.to(batch.ids_N.device)

    def __call__(self, qkv_NW: torch.Tensor, layer: int) -> torch.Tensor:
        """As the packed attention; on a GPU, what was rotated in place is kept afterwards."""
        out = super().__call__(qkv_NW, layer)
        if use_triton(qkv_NW):
            _, k, v = split_heads(self.heads, qkv_NW)
            self.store_kv(k, v, layer)
        return out

    def store_kv(self, k_NKD: torch.Tensor, v_NKD: torch.Tensor, layer: int) -> None:
        """Into the cache."""
        self.cache.write(layer, self.answer_N, self.batch.positions_N, k_NKD, v_NKD)


class CachedAttention:
    """One new token of each of B answers against all that came before it."""

    def __init__(self, cache: Cache, positions_B: torch.Tensor, longest: int, heads: Heads,
                 layer_settings: list[LayerSettings], *, slopes_H: torch.Tensor | None,
                 windows: Sequence[int | None], scale: float | None) -> None:
        """longest: positions of the cache in use, this token's included. The rest as in `PackedAttention`."""
        self.cache, self.positions_B, self.longest, self.heads = cache, positions_B, longest, heads
        self.layer_settings, self.scale = layer_settings, scale
        offset_BT = torch.arange(longest, device=positions_B.device) - positions_B[:, None]
        slopes = torch.zeros(1, device=positions_B.device) if slopes_H is None else slopes_H
        bias_BHT = slopes[:, None] * offset_BT[:, None]
        self.masks: list[torch.Tensor] = []
        for window in windows:
            masked_BT = offset_BT > 0
            if window is not None:
                masked_BT = masked_BT | (offset_BT <= -window)
            mask_BHT = bias_BHT.masked_fill(masked_BT[:, None], float("-inf"))
            self.masks.append(mask_BHT[:, :, None].to(cache.k.dtype))
        self.answers_B = torch.arange(len(positions_B), device=positions_B.device)

    def __call__(self, qkv_BW: torch.Tensor, layer: int) -> torch.Tensor:
        """[B, H D]."""
        settings = self.layer_settings[layer]
        q, k, v = split_heads(self.heads, qkv_BW)
        if settings.rope is not None:
            q, k = settings.rope.rotated(q), settings.rope.rotated(k)
        self.cache.write(layer, self.answers_B, self.positions_B, k, v)
        keys, values = self.cache.k[layer][:, :, :self.longest], self.cache.v[layer][:, :, :self.longest]
        out = scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=self.masks[settings.window],
                                           scale=self.scale,
                                           enable_gqa=self.heads.queries != self.heads.keys)
        return out[:, :, 0].flatten(1)
