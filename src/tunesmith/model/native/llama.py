"""The Llama line (Touvron et al. 2023, https://arxiv.org/abs/2302.13971): RMSNorm, RoPE, SwiGLU, grouped queries.

Llama 2 and 3, Mistral, Qwen2 and Qwen3 differ by their configs alone: biases, a window, norms of q and k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.model.base_config import config_object
from tunesmith.model.native.attention import Heads, Rope
from tunesmith.model.native.decoder import Attend, Decoder, Reader
from tunesmith.model.native.norm import HeadNorm
from tunesmith.model.native.support import window
from tunesmith.model.native.weights import frozen


class Layer(nn.Module):
    """Attention, then the gated MLP, each on a normed copy of the residual stream."""

    def __init__(self, config: dict[str, Any], read: Reader, name: str, heads: Heads) -> None:
        super().__init__()
        hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        kind, eps = config["model_type"], float(config.get("rms_norm_eps", 1e-6))
        q_width, k_width = heads.queries * heads.width, heads.keys * heads.width
        biased = kind in ("llama", "qwen3") and bool(config.get("attention_bias"))
        mlp_biased = kind == "llama" and bool(config.get("mlp_bias"))
        self.input_layernorm = read.norm(f"{name}.input_layernorm", hidden, eps, shift=False)
        self.qkv_proj = read.linear(hidden, {f"{name}.self_attn.q_proj": q_width, f"{name}.self_attn.k_proj": k_width,
                                             f"{name}.self_attn.v_proj": k_width}, bias=biased or kind == "qwen2")
        self.qk_norm = None
        if kind == "qwen3":
            self.qk_norm = HeadNorm(read.tensor(f"{name}.self_attn.q_norm.weight", heads.width),
                                    read.tensor(f"{name}.self_attn.k_norm.weight", heads.width), heads, eps)
        self.o_proj = read.linear(q_width, {f"{name}.self_attn.o_proj": hidden}, bias=biased)
        self.post_attention_layernorm = read.norm(f"{name}.post_attention_layernorm", hidden, eps, shift=False)
        self.gate_up_proj = read.linear(hidden, {f"{name}.mlp.gate_proj": inner, f"{name}.mlp.up_proj": inner},
                                        bias=mlp_biased)
        self.down_proj = read.linear(inner, {f"{name}.mlp.down_proj": hidden}, bias=mlp_biased)

    def forward(self, residual_NC: torch.Tensor, delta_NC: torch.Tensor | None, attend: Attend,
                number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(the residual stream, what is still to be added to it), both [N, C]."""
        return self.mlp(*self.attention(residual_NC, delta_NC, attend, number))

    def attention(self, residual_NC: torch.Tensor, delta_NC: torch.Tensor | None, attend: Attend, number: int, *,
                  alone: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The first half; alone: when it is recomputed, the second is not."""
        residual_NC, x_NC = self.input_layernorm(residual_NC, delta_NC, self.qkv_proj.room)
        qkv_NW = self.qkv_proj(x_NC)
        if self.qk_norm is not None:
            qkv_NW = self.qk_norm(qkv_NW)
        return residual_NC, self.o_proj(attend(qkv_NW, number), last=alone)

    def mlp(self, residual_NC: torch.Tensor, delta_NC: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The second half."""
        residual_NC, x_NC = self.post_attention_layernorm(residual_NC, delta_NC, self.gate_up_proj.room)
        return residual_NC, self.down_proj(self.gate_up_proj(x_NC), front="swiglu", last=True)


class Llama(Decoder):
    """Any of the line, from its config and checkpoint."""

    inverse_frequencies: torch.Tensor

    def __init__(self, config: dict[str, Any], read: Reader) -> None:
        super().__init__()
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        width = int(config.get("head_dim") or hidden // heads)
        self.mode = read.mode
        self.heads = Heads(heads, int(config.get("num_key_value_heads") or heads), width)
        self.embedding = frozen(read.tensor("model.embed_tokens.weight", int(config["vocab_size"]), hidden))
        self.head = read.head(self.embedding, tied=config.get("tie_word_embeddings", False))
        self.layers = nn.ModuleList(Layer(config, read, f"model.layers.{i}", self.heads)
                                    for i in range(int(config["num_hidden_layers"])))
        self.final_norm = read.norm("model.norm", hidden, float(config.get("rms_norm_eps", 1e-6)), shift=False)
        self.slopes = None
        self.window = window(config)
        inverse_D2, self.rope_factor = _frequencies(config)
        self.register_buffer("inverse_frequencies", inverse_D2.to(read.device), persistent=False)

    def rope(self, positions_N: torch.Tensor) -> Rope:
        """Angles of each position; the factor is yarn's."""
        angles_ND2 = positions_N[:, None].float() * self.inverse_frequencies
        return Rope(angles_ND2.cos() * self.rope_factor, angles_ND2.sin() * self.rope_factor)


def _frequencies(config: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """(inverse frequencies [D / 2], attention factor), as transformers reads them from the config."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    known = config_object(config)
    kind = known.rope_parameters["rope_type"]
    if kind != "default":
        try:
            inverse_D2, factor = ROPE_INIT_FUNCTIONS[kind](known, torch.device("cpu"))
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"model.base: its config.json asks for the RoPE scaling {kind!r} without a usable "
                              f"{error}") from None
        return inverse_D2.float(), float(factor)
    width = getattr(known, "head_dim", None) or known.hidden_size // known.num_attention_heads
    return 1.0 / known.rope_parameters["rope_theta"] ** (torch.arange(0, width, 2).float() / width), 1.0
