"""How much memory the activations of a step may take, and how a step is split into micro-batches for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.model.quantization import WAYS
from tunesmith.planning.activations import activation_bytes, native_activation_bytes

#: Of an adapter's parameter: itself, its gradient and two moments, in fp32.
_TRAINED_BYTES = 16
#: The share of a GPU's free memory that a plan counts on; the rest is for what is not counted.
_GPU_SHARE = 0.8
#: Of a CPU's whole memory, not of what is free now: a resumed run must split its steps as the first one did.
_HOST_SHARE = 0.25


@dataclass(frozen=True)
class MicroBatchLimits:
    """How steps are split into micro-batches.

    rows: samples at once, None to choose by length. max_tokens: tokens at once when chosen. overhead_tokens:
    what a micro-batch costs beyond its tokens, in tokens. checkpointing: the share of the layers that are
    recomputed in the backward pass; may_checkpoint, may_offload: what may be done about memory that runs out
    all the same.
    """

    rows: int | None
    max_tokens: int
    overhead_tokens: int
    checkpointing: float
    may_checkpoint: bool
    may_offload: bool


def activation_budget_bytes(*, free_bytes: int | None, host_bytes: int, quantization: str, value_bytes: int,
                            linear: int, others: int, trainable: int, gpus: int = 1) -> float:
    """What is left for activations once base and adapter are there [bytes].

    free_bytes: of the GPU, with nothing loaded yet; None on a CPU, which has host_bytes in all.
    linear, others: values of the base that quantisation reaches, and all others. trainable: of the adapter.
    gpus: over how many the base is spread.
    """
    if free_bytes is None:
        return _HOST_SHARE * host_bytes
    base = linear * WAYS[quantization].value_bytes(value_bytes) + others * value_bytes
    return max(0.0, _GPU_SHARE * (free_bytes - base / gpus - _TRAINED_BYTES * trainable))


def micro_batch_limits(config: dict[str, Any], *, engine: str, budget_bytes: float, value_bytes: int,
                       longest: int, on_gpu: bool, micro_batch_size: int | str,
                       gradient_checkpointing: bool | str) -> MicroBatchLimits:
    """The limits for a budget. longest: tokens of the longest row, which always goes through alone.

    micro_batch_size, gradient_checkpointing: as the recipe has them, `auto` for what fits.
    """
    native = engine == "native"
    bytes_of = native_activation_bytes if native else activation_bytes

    def fitting_tokens(share: float) -> int:
        per_token, fixed = bytes_of(config, value_bytes=value_bytes, checkpointing=share)
        return int((budget_bytes - fixed) / per_token)

    share = 1.0 if gradient_checkpointing is True else 0.0
    if gradient_checkpointing == "auto":
        shares = (0.0, 0.25, 0.5, 0.75, 1.0) if native else (0.0, 1.0)  # hf recomputes all layers or none
        share = next((each for each in shares if fitting_tokens(each) >= longest), 1.0)
    return MicroBatchLimits(
        micro_batch_size if isinstance(micro_batch_size, int) else None, max(longest, fitting_tokens(share)),
        overhead_tokens=512 if on_gpu else 96, checkpointing=share,
        may_checkpoint=gradient_checkpointing == "auto",
        may_offload=native and on_gpu and gradient_checkpointing is not False)
