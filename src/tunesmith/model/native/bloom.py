"""BLOOM (Le Scao et al. 2022, https://arxiv.org/abs/2211.05100): LayerNorm, ALiBi, GELU, q, k and v fused, a tied head."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tunesmith.model.native.attention import Heads
from tunesmith.model.native.decoder import Attend, Decoder, Reader
from tunesmith.model.native.weights import frozen

#: What a config.json may leave out, and what transformers then takes.
_DEFAULTS = {"vocab_size": 250880, "hidden_size": 64, "n_layer": 2, "n_head": 8, "layer_norm_epsilon": 1e-5,
             "tie_word_embeddings": True}
_OTHER_NAMES = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """What `Bloom` reads of a config.json, with what it leaves out, as transformers takes it.

    transformers' own class would say so too, but in some versions any config class imports the machinery of all models,
    which takes seconds. A test holds the two together. Raises TypeError for a value of another type.
    """
    known = {name: config.get(name, default) for name, default in _DEFAULTS.items()}
    known |= {name: config[other] for other, name in _OTHER_NAMES.items() if config.get(other) is not None}
    for name, default in _DEFAULTS.items():
        if type(known[name]) is not type(default):
            raise TypeError(f"{name} is {known[name]!r}")
    return known


def alibi_slopes(heads: int) -> list[float]:
    """ALiBi's slopes (Press et al. 2021, section 3): a geometric sequence; between two powers of two every other one
    of the next power's is taken."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]


class Layer(nn.Module):
    """Attention, then the MLP, each on a normed copy of the residual stream."""

    def __init__(self, read: Reader, name: str, hidden: int, eps: float) -> None:
        super().__init__()
        self.input_layernorm = read.norm(f"{name}.input_layernorm", hidden, eps, shift=True)
        self.query_key_value = read.linear(hidden, {f"{name}.self_attention.query_key_value": 3 * hidden}, bias=True)
        self.dense = read.linear(hidden, {f"{name}.self_attention.dense": hidden}, bias=True)
        self.post_attention_layernorm = read.norm(f"{name}.post_attention_layernorm", hidden, eps, shift=True)
        self.dense_h_to_4h = read.linear(hidden, {f"{name}.mlp.dense_h_to_4h": 4 * hidden}, bias=True)
        self.dense_4h_to_h = read.linear(4 * hidden, {f"{name}.mlp.dense_4h_to_h": hidden}, bias=True)

    def forward(self, residual_NC: torch.Tensor, delta_NC: torch.Tensor | None, attend: Attend,
                number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(the residual stream, what is still to be added to it), both [N, C]."""
        return self.mlp(*self.attention(residual_NC, delta_NC, attend, number))

    def attention(self, residual_NC: torch.Tensor, delta_NC: torch.Tensor | None, attend: Attend, number: int, *,
                  alone: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The first half; alone: when it is recomputed, the second is not."""
        residual_NC, x_NC = self.input_layernorm(residual_NC, delta_NC, self.query_key_value.room)
        return residual_NC, self.dense(attend(self.query_key_value(x_NC), number), last=alone)

    def mlp(self, residual_NC: torch.Tensor, delta_NC: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The second half."""
        residual_NC, x_NC = self.post_attention_layernorm(residual_NC, delta_NC, self.dense_h_to_4h.room)
        return residual_NC, self.dense_4h_to_h(self.dense_h_to_4h(x_NC), front="gelu", last=True)


class Bloom(Decoder):
    """BLOOM from its config, `completed`, and its checkpoint."""

    def __init__(self, config: dict[str, Any], read: Reader) -> None:
        super().__init__()
        hidden, heads, eps = config["hidden_size"], config["n_head"], config["layer_norm_epsilon"]
        self.mode = read.mode
        self.embedding = frozen(read.tensor("transformer.word_embeddings.weight", config["vocab_size"], hidden))
        self.head = read.head(self.embedding, tied=config["tie_word_embeddings"])
        self.word_embeddings_layernorm = read.norm("transformer.word_embeddings_layernorm", hidden, eps, shift=True)
        self.layers = nn.ModuleList(Layer(read, f"transformer.h.{i}", hidden, eps) for i in range(config["n_layer"]))
        self.final_norm = read.norm("transformer.ln_f", hidden, eps, shift=True)
        self.heads = Heads(heads, heads, hidden // heads, interleaved=True)
        self.register_buffer("slopes", torch.tensor(alibi_slopes(heads), device=read.device), persistent=False)
        self.window = None

    def embed(self, ids_N: torch.Tensor) -> torch.Tensor:
        """Embeddings, normed (section 3.2.1 of the paper)."""
        normed_NC: torch.Tensor = self.word_embeddings_layernorm(super().embed(ids_N), None)[1]
        return normed_NC
