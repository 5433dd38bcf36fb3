"""The interface that train, judge and serve know of a model: losses, trainable parameters, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tunesmith.model.files import BaseFiles


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    ids: the new tokens, without the stop token. stopped: whether it ended by itself.
    """

    ids: list[int]
    stopped: bool


def stop_and_pad_ids(tokenizer: Any, config_eos: int | list[int] | None) -> tuple[list[int], int]:
    """(the tokens that end an answer, the token to pad with).

    config_eos: what the base's generation config says.
    """
    stops = config_eos if config_eos is not None else []
    stops = [stops] if isinstance(stops, int) else list(stops)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in stops:
        stops.insert(0, tokenizer.eos_token_id)
    pads = [tokenizer.pad_token_id, tokenizer.unk_token_id, *stops, 0]
    return stops, next(pad for pad in pads if pad is not None)


class MaskedRow(Protocol):
    """One sample: its tokens, and whether each bears loss (the first never does)."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids."""
        ...

    @property
    def loss_mask(self) -> Sequence[bool]:
        """Which of them bear loss, one by one."""
        ...


class Engine(Protocol):
    """A base with one LoRA adapter. Each engine makes its own tensors of the rows that it is given.

    Shapes: B rows, T tokens of a row, V entries of the vocabulary. padded: whether rows that are computed
    together cost as much as the longest of them. selective: whether some layers alone can be recomputed.
    notes: what a run should say of how this engine was built: what was left out, or is not as it is
    elsewhere.
    """

    name: str
    padded: bool
    selective: bool
    base: BaseFiles
    tokenizer: Any
    pad_id: int
    stop_ids: list[int]
    device: torch.device
    dtype: torch.dtype
    quantization: str
    positions: int | None
    notes: tuple[str, ...]

    @property
    def offloads(self) -> bool:
        """Whether activations can wait in the host's memory."""
        ...

    def accumulate(self, rows: Sequence[MaskedRow], weight: torch.Tensor,
                   dropout_seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Add the gradient of weight * (the rows' summed loss) to the adapter's; returns what `losses` does.

        weight: a scalar on the engine's device. dropout_seeds: what each row's dropout is drawn from (64
        bits), see `model.dropout`; needed where the adapter has dropout and training is on. Nothing here
        waits for the device.
        """
        ...

    def losses(self, rows: Sequence[MaskedRow]) -> torch.Tensor:
        """Each row's summed cross-entropy [B] (nats, fp32) over its loss-bearing tokens, without gradient."""
        ...

    def logits(self, rows_ids: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """fp32 logits [T, V] of each row of token ids."""
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

    def values_by_format(self) -> dict[str, int]:
        """How many of the base's values are kept how, by the name of a way or a dtype."""
        ...

    def training(self, on: bool) -> None:
        """Switch dropout (and what else differs) on or off."""
        ...

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Within it the adapter is off: the bare base answers."""
        ...

    def checkpoint_gradients(self, share: float = 1.0, *, offload: bool = False) -> None:
        """Recompute activations in the backward pass from now on, instead of keeping them.

        share: of the layers, for an engine that is `selective`; another one takes all for any share above 0.
        offload: what is still kept waits in the host's memory; only of an engine that `offloads`.
        """
        ...

    def load_adapter_weights(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back adapter tensors by the names in `adapter_model.safetensors`. Raises IntegrityError."""
        ...

    def adapter_files(self) -> dict[str, bytes]:
        """`adapter_config.json` and `adapter_model.safetensors` in PEFT's format, as bytes."""
        ...
