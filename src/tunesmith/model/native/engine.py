"""The native engine behind the interface of `model/engine.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tunesmith.errors import OutOfMemory, RecipeError, TunesmithError
from tunesmith.model import lora
from tunesmith.model.base_config import config_object
from tunesmith.model.dropout import require_seeds
from tunesmith.model.engine import Answer, MaskedRow, stop_and_pad_ids
from tunesmith.model.families import Architecture, describe
from tunesmith.model.files import BaseFiles, generation_eos
from tunesmith.model.lora import LoraSettings
from tunesmith.model.memory import in_parts
from tunesmith.model.native import adapter
from tunesmith.model.native.decoder import Decoder
from tunesmith.model.native.eight_bit import Fp8Weight, fits_fp8
from tunesmith.model.native.generate import generate
from tunesmith.model.native.graphs import StepGraphs
from tunesmith.model.native.head import head_losses
from tunesmith.model.native.int8_products import Int8Products, fits_int8
from tunesmith.model.native.kernels.dispatch import use_triton
from tunesmith.model.native.linear import matmul_fp32
from tunesmith.model.native.load import Checkpoint
from tunesmith.model.native.packed_batch import PackedBatch
from tunesmith.model.native.recompute import Offload
from tunesmith.model.quantization import WAYS, smallest

#: On a GPU streams are padded to multiples of this many tokens: its matrix units work in tiles of 128.
_BUCKET = 128
#: Prompts answered at once.
_GENERATE_ROWS = 64


def load_decoder(base: BaseFiles, *, quantization: str, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The frozen base. Raises IntegrityError or OutOfMemory."""
    architecture, config = architecture_and_config(base)
    try:
        with Checkpoint(base, quantization=quantization, dtype=dtype, device=device) as read:
            return Decoder(architecture, read, config)
    except torch.OutOfMemoryError:
        raise OutOfMemory(f"{base.name} in {quantization} does not fit on {device}",
                          f"Quantise it further (model.quantization: {smallest()}) or choose a smaller base.",
                          setting="model.base") from None


def architecture_and_config(base: BaseFiles) -> tuple[Architecture, Any]:
    """(a base's parts, transformers' object of its config where RoPE's frequencies want it).

    In some versions any config class of transformers imports the machinery of all models, which takes
    seconds. Raises RecipeError for a config that is not usable.
    """
    try:
        architecture = describe(base.config)
        if architecture is None:
            raise ValueError(f"the native engine does not know the architecture {base.architecture!r}")
        return architecture, config_object(base.config) if architecture.ropes else None
    except TunesmithError:  # a signal of the user's
        raise
    except Exception as error:  # transformers raises whatever its validation meets
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"{base.name}: its config.json is not usable: {reason}",
                          "Copy the base's config.json again.", setting="model.base") from None


class NativeEngine:
    """A decoder of our own with LoRA. See `model.engine.Engine` for what each method promises."""

    name, padded, selective = "native", False, True

    def __init__(self, model: Decoder, settings: LoraSettings | None, tokenizer: Any, base: BaseFiles, *,
                 quantization: str, matmul: str = "exact") -> None:
        """settings: of the adapter that is on the model; None for a bare base.

        matmul: of training alone, see `eight_bit` and `int8_products`.
        """
        self.model, self.settings, self.tokenizer, self.base = model, settings, tokenizer, base
        self.quantization, self.positions = quantization, base.positions
        self.dtype, self.device = model.embedding.dtype, model.embedding.device
        self.stop_ids, self.pad_id = stop_and_pad_ids(tokenizer, generation_eos(base))
        self.notes: tuple[str, ...] = ()
        self._training = False
        self._gradients: dict[str, torch.Tensor] = {}
        self._calibrating: list[Int8Products] = []
        for linear in model.linears():
            if matmul == "fp8" and fits_fp8(linear.weight):
                linear.eight_bit = Fp8Weight(linear.weight)
            elif matmul == "int8" and fits_int8(linear.weight):
                linear.eight_bit = Int8Products(linear.weight)
                self._calibrating.append(linear.eight_bit)
        kernels = use_triton(model.embedding)
        self._bucket = _BUCKET if kernels else 1
        self._graphs = StepGraphs(self._forward_backward, self.device, enabled=kernels)

    @property
    def offloads(self) -> bool:
        """On a GPU: there the host's memory is another one."""
        return self.device.type == "cuda"

    def checkpoint_gradients(self, share: float = 1.0, *, offload: bool = False) -> None:
        """Recompute the first layers' activations in the backward pass. offload: their inputs to the host."""
        self.model.recomputed_layers = math.ceil(share * len(self.model.layers))
        self.model.offload = Offload(self.device) if offload else None
        self._graphs.forget()

    def _pack(self, rows: Sequence[MaskedRow], dropout_seeds: Sequence[int] | None = None) -> PackedBatch:
        return self.model.pack(rows, bucket=self._bucket, dropout_seeds=dropout_seeds)

    def accumulate(self, rows: Sequence[MaskedRow], weight: torch.Tensor,
                   dropout_seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Add the gradient of weight * (the rows' summed loss); returns each row's loss [B]."""
        self._ensure_gradients()
        drops = self._training and self.settings is not None and self.settings.dropout > 0
        batch = self._pack(rows, require_seeds(dropout_seeds) if drops else None)
        capture = not self._calibrating and self.model.offload is None
        nats_L, sample_L = self._graphs.run(batch, weight, capture=capture)
        if self._calibrating and all(products.calibrated for products in self._calibrating):
            for products in self._calibrating:
                products.settle()
            self._calibrating = []
            self._graphs.forget()
        return torch.zeros(len(rows), device=self.device).index_add_(0, sample_L, nats_L)

    def _ensure_gradients(self) -> None:
        """Zeros for what has no gradient, always in the same memory, where a captured graph writes."""
        for name, parameter in self.trainable().items():
            if parameter.grad is None:
                if name not in self._gradients:
                    self._gradients[name] = torch.empty_like(parameter)
                parameter.grad = self._gradients[name].zero_()

    def _forward_backward(self, batch: PackedBatch, weight: torch.Tensor) -> torch.Tensor:
        """The nats of each loss-bearing token [L]; adds the adapter's gradient. All tensors on the device."""
        self.model.mode.dropout_keys_N, self.model.mode.eight_bit = batch.dropout_keys_N, True
        try:
            with torch.enable_grad():
                adapter.refresh(self.model)
                nats_L = self._nats(batch)
                (nats_L.sum() * weight).backward()
        finally:
            self.model.mode.dropout_keys_N, self.model.mode.eight_bit = None, False
        return nats_L.detach()

    def _nats(self, batch: PackedBatch) -> torch.Tensor:
        hidden_LC = self.model.hidden(batch.ids_N, self.model.packed(batch), batch.loss_positions_L)
        return head_losses(hidden_LC, self.model.head, batch.targets_L)

    @torch.no_grad()
    def losses(self, rows: Sequence[MaskedRow]) -> torch.Tensor:
        """Each row's summed cross-entropy [B] in nats over its tokens that bear loss, fp32."""
        adapter.refresh(self.model)
        batch = self._pack(rows).to(self.device)
        return torch.zeros(len(rows), device=self.device).index_add_(0, batch.sample_L, self._nats(batch))

    @torch.no_grad()
    def logits(self, rows_ids: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """fp32 logits [T, V] of each row."""
        adapter.refresh(self.model)
        rows = [_RowWithoutLoss(ids) for ids in rows_ids]
        batch = self.model.pack(rows, bucket=self._bucket).to(self.device)
        logits_NV = matmul_fp32(self.model.hidden(batch.ids_N, self.model.packed(batch), None),
                                self.model.head.T)
        return [logits_NV[start:stop] for start, stop in batch.spans[:len(rows_ids)]]

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Answer]:
        """Greedy answers to token prompts, in their order."""
        adapter.refresh(self.model)
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        answers: dict[int, Answer] = {}

        def too_large(prompt: int) -> OutOfMemory:
            return OutOfMemory(f"answering a prompt of {len(prompts[prompt])} tokens does not fit in memory",
                               f"Lower judge.max_new_tokens, or quantise the base ({smallest()}).")

        parts = [order[start:start + _GENERATE_ROWS] for start in range(0, len(order), _GENERATE_ROWS)]

        def answer(part: Sequence[int]) -> list[Answer]:
            return generate(self.model, [prompts[i] for i in part], max_new_tokens, self.stop_ids)

        for part, part_answers in in_parts(parts, answer, too_large):
            answers |= zip(part, part_answers, strict=True)
        return [answers[i] for i in range(len(prompts))]

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's parameters by PEFT's names, sorted."""
        return adapter.named_parameters(self.model)

    def parameter_counts(self) -> tuple[int, int]:
        """(trainable, all)."""
        trainable = sum(parameter.numel() for parameter in self.trainable().values())
        return trainable, trainable + self.model.parameter_count()

    def values_by_format(self) -> dict[str, int]:
        """The base's values by how they are kept."""
        trainable, everything = self.parameter_counts()
        plain, base = str(self.dtype).removeprefix("torch."), everything - trainable
        if not WAYS[self.quantization].quantised:
            return {plain: base}
        quantised = sum(linear.weight.outputs * linear.weight.inputs for linear in self.model.linears())
        return {self.quantization: quantised, plain: base - quantised}

    def training(self, on: bool) -> None:
        """Dropout on or off."""
        self._training = on

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """The bare base, its adapter switched off."""
        self.model.mode.adapter = False
        try:
            yield
        finally:
            self.model.mode.adapter = True

    def load_adapter_weights(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back adapter tensors. Raises IntegrityError when they are not this adapter's."""
        lora.copy_state(state, adapter.state(self.model), "the adapter's tensors")

    def adapter_files(self) -> dict[str, bytes]:
        """PEFT's two files. Raises ValueError for a bare base."""
        if self.settings is None:
            raise ValueError("a bare base has no adapter")
        config = lora.peft_config_dict(self.settings)
        return lora.adapter_files(config, adapter.state(self.model), self.base.name, self.base.pinned)


class _RowWithoutLoss:
    """A row without loss."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids, self.loss_mask = ids, [False] * len(ids)
