"""The hf engine: transformers + peft + bitsandbytes behind the interface of `model/engine.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig

from tunesmith.errors import OutOfMemory
from tunesmith.model.dropout import require_seeds
from tunesmith.model.engine import Answer, MaskedRow, stop_and_pad_ids
from tunesmith.model.files import BaseFiles
from tunesmith.model.hf import adapter as lora
from tunesmith.model.hf.dropout import dropout_of_base, install_sample_dropout
from tunesmith.model.hf.padded import IGNORED, collate, padded_keys
from tunesmith.model.memory import in_parts
from tunesmith.model.quantization import smallest
from tunesmith.model.value_counts import values_by_format

#: Prompts answered at once; more only pads more.
_GENERATE_ROWS = 32


class HfEngine:
    """Any causal language model, with or without a LoRA adapter; see `model.engine.Engine`."""

    name, padded, offloads, selective = "hf", True, False, False

    def __init__(self, model: torch.nn.Module, tokenizer: Any, base: BaseFiles, *, quantization: str,
                 dtype: torch.dtype, notes: Sequence[str] = ()) -> None:
        """model: a PeftModel, or transformers' own without adapter. notes: what to say of how it was made."""
        self.model: Any = model
        self.tokenizer, self.base = tokenizer, base
        self.quantization, self.dtype, self.positions = quantization, dtype, base.positions
        base_model = self._base_model
        self.device: torch.device = base_model.get_input_embeddings().weight.device
        self.stop_ids, self.pad_id = stop_and_pad_ids(tokenizer, base_model.generation_config.eos_token_id)
        self._token_keys = install_sample_dropout(model)
        self.notes = (*notes, *_dropout_note(base_model))
        self._keeps_logits = "logits_to_keep" in inspect.signature(base_model.forward).parameters
        rope = getattr(base_model.config, "rope_parameters", None) or {}
        self._short_rope_limit = (rope["original_max_position_embeddings"]
                                  if rope.get("rope_type") == "longrope" else None)

    @property
    def _base_model(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def checkpoint_gradients(self, share: float = 1.0, *, offload: bool = False) -> None:
        """Recompute all activations in the backward pass instead of keeping them."""
        self._base_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def accumulate(self, rows: Sequence[MaskedRow], weight: torch.Tensor,
                   dropout_seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Add the gradient of weight * (the rows' summed loss); returns each row's loss [B]."""
        def accumulate_chosen(chosen: Sequence[int]) -> torch.Tensor:
            return self._accumulate([rows[i] for i in chosen], weight,
                                    dropout_seeds and [dropout_seeds[i] for i in chosen])

        return self._by_length(rows, accumulate_chosen)

    def _by_length(self, rows: Sequence[MaskedRow],
                   compute: Callable[[Sequence[int]], torch.Tensor]) -> torch.Tensor:
        """What `compute` returns of the rows [B], computed together.

        Under longrope transformers takes one set of frequencies for a whole batch, by its longest row, so
        rows that want the other set are computed apart.
        """
        if self._short_rope_limit is None:
            return compute(range(len(rows)))
        long = [len(row.ids) > self._short_rope_limit for row in rows]
        groups = [[i for i, each in enumerate(long) if each == kind] for kind in (False, True)]
        parts = [compute(group) for group in groups if group]
        order = torch.tensor([i for group in groups for i in group], device=parts[0].device)
        return torch.cat(parts)[order.argsort()]

    def _accumulate(self, rows: Sequence[MaskedRow], weight: torch.Tensor,
                    dropout_seeds: Sequence[int] | None) -> torch.Tensor:
        if self._token_keys is not None and self.model.training:
            self._token_keys.keys_BT = padded_keys(rows, require_seeds(dropout_seeds)).to(self.device)
        try:
            losses_B = self._losses(rows)
            # which may run layers again, with the same keys
            (losses_B.sum() * weight.to(losses_B.device)).backward()
        finally:
            if self._token_keys is not None:
                self._token_keys.keys_BT = None
        return losses_B.detach()

    @torch.no_grad()
    def losses(self, rows: Sequence[MaskedRow]) -> torch.Tensor:
        """Each row's summed cross-entropy [B] in nats over its tokens that bear loss, fp32."""
        return self._by_length(rows, lambda chosen: self._losses([rows[i] for i in chosen]))

    def _losses(self, rows: Sequence[MaskedRow]) -> torch.Tensor:
        batch = collate(rows, self.pad_id)
        targets_BT = torch.full_like(batch.labels_BT, IGNORED)
        targets_BT[:, :-1] = batch.labels_BT[:, 1:]
        more = {}
        if self._keeps_logits:  # the head, the widest product of all, only where some row bears loss
            columns = (targets_BT != IGNORED).any(dim=0).nonzero()[:, 0]
            more["logits_to_keep"] = columns.to(self.device)
            targets_BT = targets_BT[:, columns]
        with self._autocast():
            logits = self.model(input_ids=batch.input_ids_BT.to(self.device), use_cache=False, **more,
                                attention_mask=batch.attention_mask_BT.to(self.device)).logits
        bears_BT = targets_BT != IGNORED
        chosen = bears_BT.flatten().nonzero()[:, 0].to(logits.device)
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1)[chosen].float(),
                                                 targets_BT.flatten().to(logits.device)[chosen],
                                                 reduction="none")
        # The chosen tokens stand row after row, so each row's are one slice.
        return torch.stack([part.sum() for part in nats.split(bears_BT.sum(dim=1).tolist())])

    @torch.no_grad()
    def logits(self, rows_ids: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """fp32 logits [T, V] of each row."""
        logits = []
        for ids in rows_ids:
            with self._autocast():
                out = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False)
            logits.append(out.logits[0].float())
        return logits

    @torch.no_grad()
    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Answer]:
        """Greedy answers to token prompts, in their order."""
        config = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=max_new_tokens,
                                  pad_token_id=self.pad_id, eos_token_id=self.stop_ids or None,
                                  use_cache=True)
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        answers: dict[int, Answer] = {}

        def too_large(prompt: int) -> OutOfMemory:
            return OutOfMemory(f"answering a prompt of {len(prompts[prompt])} tokens does not fit in memory",
                               f"Lower judge.max_new_tokens, or quantise the base ({smallest()}).")

        parts = [order[start:start + _GENERATE_ROWS] for start in range(0, len(order), _GENERATE_ROWS)]
        def answer(part: Sequence[int]) -> list[Answer]:
            return self._generate([prompts[i] for i in part], config)

        for part, part_answers in in_parts(parts, answer, too_large):
            answers |= zip(part, part_answers, strict=True)
        return [answers[i] for i in range(len(prompts))]

    def _generate(self, prompts: Sequence[list[int]], config: GenerationConfig) -> list[Answer]:
        """Answers to prompts that are computed together, padded on the left."""
        width = max(map(len, prompts))
        ids_BT = torch.full((len(prompts), width), self.pad_id, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):
            ids_BT[row, width - len(prompt):] = torch.tensor(prompt)
            mask_BT[row, width - len(prompt):] = 1
        with self._autocast():
            out = self.model.generate(input_ids=ids_BT.to(self.device),
                                      attention_mask=mask_BT.to(self.device), generation_config=config)
        answers = []
        for new in out[:, width:].tolist():
            end = next((k for k, token in enumerate(new) if token in self.stop_ids), None)
            answers.append(Answer(new if end is None else new[:end], end is not None))
        return answers

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's parameters by name, sorted."""
        return dict(sorted(lora.trainable(self.model).items()))

    def parameter_counts(self) -> tuple[int, int]:
        """(trainable, all) as PEFT counts them."""
        if not isinstance(self.model, PeftModel):
            return 0, sum(values_by_format(self.model).values())
        counts: tuple[int, int] = self.model.get_nb_trainable_parameters()
        return counts

    def values_by_format(self) -> dict[str, int]:
        """The base's values by how they are kept."""
        return values_by_format(self.model)

    def training(self, on: bool) -> None:
        """Dropout on or off."""
        self.model.train(on)

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """The bare base, its adapter switched off."""
        with self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext():
            yield

    def load_adapter_weights(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back adapter tensors. Raises IntegrityError when they are not this adapter's."""
        lora.set_state(self.model, state)

    def adapter_files(self) -> dict[str, bytes]:
        """PEFT's two files."""
        return lora.adapter_files(self.model, self.base.name, self.base.pinned)


def _dropout_note(base_model: Any) -> list[str]:
    """What is to be said where the base drops something of its own in training."""
    dropouts = dropout_of_base(base_model)
    if not dropouts:
        return []
    named = ", ".join(f"{key} {value:g}" for key, value in dropouts.items())
    return [f"The base drops something of its own in training ({named}). Those masks depend on how a step is "
            "cut into micro-batches, so another cut gives another run, if only by chance."]
