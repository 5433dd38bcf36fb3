"""What a GGUF says about a model besides its weights: sizes, norms, and how its positions are turned.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Standardized key-value pairs".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tunesmith.errors import RecipeError
from tunesmith.share.gguf.layout import Layout

if TYPE_CHECKING:
    import torch

#: BLOOM's positions have no end (ALiBi); what llama.cpp is told when the config has no seq_length.
_BLOOM_POSITIONS = 2048


def context_length(layout: Layout) -> tuple[int, str | None]:
    """(how many positions the GGUF admits, a note where these are fewer than the model's own).

    llama.cpp's code of these families has no sliding window. Up to the window's length it makes no
    difference, so a model with one is written as a model of that length.
    """
    config = layout.config
    if layout.architecture == "bloom":
        return int(layout.base.config.get("seq_length") or _BLOOM_POSITIONS), None
    whole = int(config.max_position_embeddings)
    size = min((each for each in layout.parts.windows if each), default=None)
    if size and size < whole:
        return size, (f"the model sees {size} tokens back (sliding_window), which llama.cpp does not do for "
                      f"this family; its context is set to {size} instead of {whole}, within which both are "
                      "the same")
    return whole, None


def write_hyperparameters(writer: Any, layout: Layout) -> list[str]:
    """Put the sizes into a gguf.GGUFWriter; notes on what is not as in the checkpoint."""
    config, hidden = layout.config, int(layout.config.hidden_size)
    positions, note = context_length(layout)
    writer.add_context_length(positions)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layout.layers)
    writer.add_head_count(layout.heads)
    writer.add_head_count_kv(layout.key_heads)
    writer.add_vocab_size(int(config.vocab_size))
    if layout.architecture == "bloom":
        writer.add_feed_forward_length(4 * hidden)
        writer.add_layer_norm_eps(float(config.layer_norm_epsilon))
        return []
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_key_length(layout.width)
    writer.add_value_length(layout.width)
    writer.add_rope_dimension_count(layout.width)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    _write_scaling(writer, config)
    return [note] if note else []


def _write_scaling(writer: Any, config: Any) -> None:
    """The RoPE scalings that are numbers. llama3's is a tensor: `rope_factors`."""
    import gguf

    rope = config.rope_parameters
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif rope["rope_type"] == "yarn":
        factor, attention = float(rope["factor"]), _scaled(config)[1]
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        # llama.cpp multiplies by 0.1 ln(factor) + 1 (Peng et al. 2023, eq. 22) itself; this is the rest.
        writer.add_rope_scaling_attn_factors(attention / (0.1 * math.log(factor) + 1 if factor > 1 else 1.0))
        writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))


def rope_factors(layout: Layout) -> torch.Tensor | None:
    """llama.cpp's divisor of each frequency, [width / 2] of f32 (rope_freqs), for llama3's scaling, or None.

    From the frequencies that transformers computes for the same config, so the two agree by construction.
    """
    import torch

    config = layout.config
    if layout.architecture == "bloom" or config.rope_parameters["rope_type"] != "llama3":
        return None
    places = torch.arange(0, layout.width, 2, dtype=torch.float64) / layout.width
    plain_D2 = float(config.rope_parameters["rope_theta"]) ** -places
    return (plain_D2 / _scaled(config)[0].double()).float()


def _scaled(config: Any) -> tuple[torch.Tensor, float]:
    """(inverse frequencies [width / 2], attention factor) of a scaled RoPE. Raises RecipeError."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = config.rope_parameters["rope_type"]
    try:
        inverse_D2, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"config.json asks for the RoPE scaling {kind!r} without a usable {error}") from None
    return inverse_D2, float(factor)
