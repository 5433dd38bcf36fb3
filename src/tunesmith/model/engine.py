"""The interface that train, judge and serve know of a model: losses, trainable parameters, answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    ids: the new tokens, without the stop token. stopped: whether it ended by itself.
    """

    ids: list[int]
    stopped: bool


class Engine(Protocol):
    """A base with one LoRA adapter. Tensors passed in may be on any device.

    Shapes: B rows, T tokens (padded on the right), V entries of the vocabulary.
    """

    name: str
    tokenizer: Any
    pad_id: int
    stop_ids: list[int]
    device: torch.device
    dtype: torch.dtype
    quantization: str
    positions: int | None

    def losses(self, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        """Each row's summed cross-entropy [B] (nats, fp32) over its labels that are not -100; differentiable."""
        ...

    def logits(self, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor) -> torch.Tensor:
        """fp32 logits [B, T, V]."""
        ...

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Answer]:
        """Greedy answers to token prompts, in their order."""
        ...

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's parameters by PEFT's names, in a fixed order."""
        ...

    def parameter_counts(self) -> tuple[int, int]:
        """(trainable, all) parameters; a weight that is tied or packed counts once and in full."""
        ...

    def training(self, on: bool) -> None:
        """Switch dropout (and what else differs) on or off."""
        ...

    def bare(self) -> AbstractContextManager[None]:
        """Within it the adapter is off: the bare base answers."""
        ...

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass from now on, instead of keeping them."""
        ...

    def load_adapter_weights(self, state: dict[str, torch.Tensor]) -> None:
        """Put back adapter tensors by the names in `adapter_model.safetensors`. Raises IntegrityError."""
        ...

    def adapter_files(self) -> dict[str, bytes]:
        """`adapter_config.json` and `adapter_model.safetensors` in PEFT's format, as bytes."""
        ...
