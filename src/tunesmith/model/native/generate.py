"""Greedy answers: the prompts as one packed batch, then one token at a time for all answers together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tunesmith.model.engine import Answer
from tunesmith.model.native.attention import Cache
from tunesmith.model.native.decoder import Decoder
from tunesmith.model.native.linear import matmul_fp32


@dataclass(frozen=True)
class _Prompt:
    ids: Sequence[int]

    @property
    def loss_mask(self) -> list[bool]:
        return [False] * len(self.ids)


@torch.no_grad()
def generate(model: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int,
             stop_ids: list[int]) -> list[Answer]:
    """The likeliest token each time, until one of `stop_ids` or `max_new_tokens`. All prompts at once."""
    device, dtype = model.embedding.device, model.embedding.dtype
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    cache = Cache(len(model.layers), len(prompts), longest + max_new_tokens, model.heads, dtype, device)
    hidden_BC = _fill(model, prompts, cache)
    stops = torch.tensor(stop_ids, device=device, dtype=torch.int64)
    position_B, alive = lengths.to(device), list(range(len(prompts)))
    answer_ids: list[list[int]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)
    for count in range(max_new_tokens):
        token_B = matmul_fp32(hidden_BC, model.head.T).argmax(-1)
        ends = torch.isin(token_B, stops).tolist()
        for answer, token, end in zip(alive, token_B.tolist(), ends, strict=True):
            stopped[answer] = end
            if not end:
                answer_ids[answer].append(token)
        if any(ends):
            stay = torch.tensor([i for i, end in enumerate(ends) if not end], device=device,
                                dtype=torch.int64)
            alive = [answer for answer, end in zip(alive, ends, strict=True) if not end]
            token_B, position_B = token_B[stay], position_B[stay]
            cache.only(stay)
        if not alive or count == max_new_tokens - 1:
            break
        if model.short_rope_limit is not None and bool((position_B == model.short_rope_limit).any()):
            # An answer has become a long sample, of another RoPE from its first token on: new keys for it.
            hidden_BC = _fill(model, [[*prompts[answer], *answer_ids[answer]] for answer in alive], cache)
        else:
            hidden_BC = model.hidden(token_B, model.cached(cache, position_B, longest + count + 1), None)
        position_B = position_B + 1
    return [Answer(ids, end) for ids, end in zip(answer_ids, stopped, strict=True)]


def _fill(model: Decoder, rows_ids: Sequence[Sequence[int]], cache: Cache) -> torch.Tensor:
    """Put the keys and values of whole rows into the cache; the last hidden state of each row [B, C]."""
    device = model.embedding.device
    batch = model.pack([_Prompt(ids) for ids in rows_ids]).to(device)
    last_B = (torch.tensor([len(ids) for ids in rows_ids]).cumsum(0) - 1).to(device)
    return model.hidden(batch.ids_N, model.filling(batch, cache), last_B)
