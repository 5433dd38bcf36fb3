"""Attention of short samples on a CPU: small products, of which the half above the diagonal is not computed.

torch's own attention computes whole squares for samples of this size. Shapes: N tokens, H heads of queries, K
of keys and values, G = H / K, D the width of a head; n tokens of a sample, c of a block of its queries, e
keys up to the block's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

#: The most probabilities that a layer keeps for its backward pass (64 MB); beyond, torch's own attention
#: keeps none.
_MAX_PROBABILITIES = 1 << 24
#: Queries at once.
_BLOCK = 128


def fits_short_attention(spans: tuple[tuple[int, int], ...], heads: int) -> bool:
    """Whether the samples are short enough for this."""
    return heads * sum((stop - start) ** 2 for start, stop in spans) <= _MAX_PROBABILITIES


def short_attention(q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor,
                    spans: tuple[tuple[int, int], ...], slopes_H: torch.Tensor | None,
                    scale: float | None = None) -> torch.Tensor:
    """[N, H, D]: causal inside each span; differentiable, fp32. scale: of q k^T; None for 1 / sqrt(D)."""
    scale = q_NHD.shape[2] ** -0.5 if scale is None else scale
    o_NHD: torch.Tensor = _ShortAttention.apply(q_NHD, k_NKD, v_NKD, spans, slopes_H, scale)
    return o_NHD


def _blocks(spans: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, slice, slice]]:
    """(how many of its sample's keys precede the block, its queries, the keys up to its end), for all."""
    for start, stop in spans:
        for begin in range(start, stop, _BLOCK):
            end = min(begin + _BLOCK, stop)
            yield begin - start, slice(begin, end), slice(start, end)


def _heads_first(x_NHD: torch.Tensor) -> torch.Tensor:
    return x_NHD.transpose(0, 1).contiguous()


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor,
                spans: tuple[tuple[int, int], ...], slopes_H: torch.Tensor | None,
                scale: float) -> torch.Tensor:
        (N, H, D), K = q_NHD.shape, k_NKD.shape[1]
        q, k, v = _heads_first(q_NHD).mul_(scale).view(K, H // K, N,
                                                       D), _heads_first(k_NKD), _heads_first(v_NKD)
        out = torch.empty(K, H // K, N, D)
        causal_mask_cc = torch.full((_BLOCK, _BLOCK), float("-inf")).triu_(1)
        longest = max(stop - start for start, stop in spans)
        bias = None if slopes_H is None else slopes_H.view(K, H // K, 1, 1) * torch.arange(longest)
        probabilities: list[torch.Tensor] = []
        for before, queries, keys in _blocks(spans):
            count, key_count = queries.stop - queries.start, keys.stop - keys.start
            s = torch.bmm(q[:, :, queries].reshape(K, -1, D),
                          k[:, keys].transpose(1, 2)).view(K, H // K, count, key_count)
            # a softmax does not see what is added to a whole row, so the key's place is enough
            if bias is not None:
                s += bias[..., :key_count]
            s[..., before:] += causal_mask_cc[:count, :count]
            p = torch.softmax(s, dim=-1).view(K, -1, key_count)
            out[:, :, queries] = torch.bmm(p, v[:, keys]).view(K, H // K, count, D)
            probabilities.append(p)
        ctx.spans, ctx.scale = spans, scale
        ctx.save_for_backward(q, k, v, out, *probabilities)
        return out.view(H, N, D).transpose(0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, do_NHD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, *probabilities = ctx.saved_tensors
        K, G, N, D = q.shape
        do = _heads_first(do_NHD).view(K, G, N, D)
        delta = (do * out).sum(-1, keepdim=True)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (_, queries, keys), p in zip(_blocks(ctx.spans), probabilities, strict=True):
            do_here = do[:, :, queries].reshape(K, -1, D)
            dv[:, keys] += torch.bmm(p.transpose(1, 2), do_here)
            ds = torch.baddbmm(delta[:, :, queries].reshape(K, -1, 1), do_here, v[:, keys].transpose(1, 2),
                               beta=-1).mul_(p)
            dq[:, :, queries] = torch.bmm(ds, k[:, keys]).view(K, G, -1, D)
            dk[:, keys] += torch.bmm(ds.transpose(1, 2), q[:, :, queries].reshape(K, -1, D))
        dq.mul_(ctx.scale)
        return dq.view(K * G, N, D).transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1), None, None, None
