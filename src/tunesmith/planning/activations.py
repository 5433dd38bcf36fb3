"""About how many bytes of activations a training step keeps: so many a token, and so many in any case.

Generous, and only used to choose how a step is split.
"""

from __future__ import annotations

import math
from typing import Any

from tunesmith.model.families import describe

#: Tensors of the hidden width that a layer keeps for its backward pass: norms, attention, MLP, dropout.
_KEPT_PER_LAYER = 34
#: Rows of logits that the native engine has at once, at most; each in fp32, with its gradient.
_LOGITS_ROWS = 1024


def activation_bytes(config: dict[str, Any], *, value_bytes: int, checkpointing: float) -> tuple[int, int]:
    """(bytes a padded token, bytes in any case) of the hf engine.

    value_bytes: of one activation (4 for fp32, 2 for bf16 and fp16). The head's logits and their gradient, in
    fp32, are counted in full. Korthikanti et al. 2022 (https://arxiv.org/abs/2205.05198), eq. 2 counts the
    same 34 h bytes in 16 bits; here it is 34 values, since the frozen base's products are kept in the dtype
    that they run in.
    """
    architecture = describe(config)
    if architecture is not None:
        layers, hidden, vocabulary = len(architecture.layers), architecture.hidden, architecture.vocabulary
    else:
        layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 32)
        hidden = int(config.get("hidden_size") or config.get("n_embd") or 4096)
        vocabulary = int(config.get("vocab_size") or 50_000)
    kept = 2 * layers + _KEPT_PER_LAYER if checkpointing else _KEPT_PER_LAYER * layers
    return kept * hidden * value_bytes + vocabulary * (4 + 4 + value_bytes), 0


def native_activation_bytes(config: dict[str, Any], *, value_bytes: int,
                            checkpointing: float) -> tuple[int, int]:
    """(bytes a token, bytes in any case) of the native engine, for a base that it takes.

    checkpointing: the share of the layers that keep their input alone, and run again for the backward pass.

    A layer keeps what its linear modules put out, two sums of the residual stream less the two modules that
    become part of them, and two norms: the outputs and two hidden widths. Its gradients take about as much
    again for one layer.
    """
    architecture = describe(config)
    if architecture is None:
        raise ValueError(f"the native engine does not know the architecture {config.get('model_type')!r}")
    layers = len(architecture.layers)
    outputs = sum(sum(each.outputs.values()) for each in architecture.projections())
    per_layer = outputs // layers + 2 * architecture.hidden
    recomputed = math.ceil(checkpointing * layers)
    kept = recomputed * architecture.hidden + (layers - recomputed + 2 + (recomputed > 0)) * per_layer
    return kept * value_bytes, _LOGITS_ROWS * architecture.vocabulary * (4 + value_bytes)
