"""The shapes of the families whose arithmetic is known here, from their config.json.

A family is one function that returns its linear modules and how many other parameters it has. Families that are not
here are counted by building the model without memory (`model/hf/meta.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Linear:
    """One linear module: its name in the model, its widths, how often it occurs, whether it has a bias."""

    name: str
    inputs: int
    outputs: int
    count: int
    bias: bool

    @property
    def parameters(self) -> int:
        """Parameters of all its occurrences."""
        return self.count * (self.inputs * self.outputs + (self.outputs if self.bias else 0))


@dataclass(frozen=True)
class Shapes:
    """A decoder: its linear modules inside the layers, and the parameters of everything else (head, embeddings, norms)."""

    layers: int
    hidden: int
    vocabulary: int
    linears: list[Linear]
    other_parameters: int
    auto_targets: tuple[str, ...]


def _bloom(config: dict[str, Any]) -> Shapes:
    """BLOOM (Le Scao et al. 2022, https://arxiv.org/abs/2211.05100): LayerNorm, fused QKV with bias, tied head."""
    hidden = int(config.get("hidden_size", config.get("n_embed", 64)))
    layers = int(config.get("n_layer", config.get("num_hidden_layers", 2)))
    vocabulary = int(config["vocab_size"])
    linears = [
        Linear("query_key_value", hidden, 3 * hidden, layers, True),
        Linear("dense", hidden, hidden, layers, True),
        Linear("dense_h_to_4h", hidden, 4 * hidden, layers, True),
        Linear("dense_4h_to_h", 4 * hidden, hidden, layers, True),
    ]
    norms = 2 * hidden * (2 * layers + 2)  # two a layer, one behind the embeddings, one before the head
    return Shapes(layers, hidden, vocabulary, linears, vocabulary * hidden + norms, ("query_key_value",))


def _llama_line(config: dict[str, Any]) -> Shapes:
    """Llama, Mistral, Qwen2 and Qwen3: RMSNorm, grouped queries, SwiGLU; they differ in biases and norms of q and k."""
    kind = config["model_type"]
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head = int(config.get("head_dim") or (128 if kind == "qwen3" else hidden // heads))
    inner, vocabulary = int(config["intermediate_size"]), int(config["vocab_size"])
    bias = kind == "qwen2" or bool(config.get("attention_bias", False))
    output_bias = kind != "qwen2" and bool(config.get("attention_bias", False))
    mlp_bias = bool(config.get("mlp_bias", False))
    linears = [
        Linear("q_proj", hidden, heads * head, layers, bias),
        Linear("k_proj", hidden, kv_heads * head, layers, bias),
        Linear("v_proj", hidden, kv_heads * head, layers, bias),
        Linear("o_proj", heads * head, hidden, layers, output_bias),
        Linear("gate_proj", hidden, inner, layers, mlp_bias),
        Linear("up_proj", hidden, inner, layers, mlp_bias),
        Linear("down_proj", inner, hidden, layers, mlp_bias),
    ]
    norms = hidden * (2 * layers + 1) + (2 * head * layers if kind == "qwen3" else 0)
    tied = bool(config.get("tie_word_embeddings", False))
    return Shapes(layers, hidden, vocabulary, linears, vocabulary * hidden * (1 if tied else 2) + norms,
                  ("q_proj", "v_proj"))


FAMILIES: dict[str, Callable[[dict[str, Any]], Shapes]] = {
    "bloom": _bloom, "llama": _llama_line, "mistral": _llama_line, "qwen2": _llama_line, "qwen3": _llama_line}
