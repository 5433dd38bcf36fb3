"""The hf engine: transformers + peft + bitsandbytes behind the interface of `model/engine.py`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig

from tunesmith.errors import OutOfMemory
from tunesmith.model.engine import Answer
from tunesmith.model.files import BaseFiles
from tunesmith.model.hf import adapter as lora

_IGNORED = -100
#: Prompts answered at once; more only pads more.
_GENERATE_ROWS = 32


class HfEngine:
    """Any causal language model with a LoRA adapter. See `model.engine.Engine` for what each method promises."""

    name = "hf"

    def __init__(self, model: PeftModel, tokenizer: Any, base: BaseFiles, *, quantization: str, dtype: torch.dtype) -> None:
        self.model, self.tokenizer, self.base = model, tokenizer, base
        self.quantization, self.dtype, self.positions = quantization, dtype, base.positions
        self.device = model.get_input_embeddings().weight.device
        config = model.get_base_model().generation_config
        stops = config.eos_token_id if config.eos_token_id is not None else []
        stops = [stops] if isinstance(stops, int) else list(stops)
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in stops:
            stops.insert(0, tokenizer.eos_token_id)
        self.stop_ids: list[int] = stops
        pads = [tokenizer.pad_token_id, tokenizer.unk_token_id, *stops, 0]
        self.pad_id: int = next(pad for pad in pads if pad is not None)
        base_model = model.get_base_model()
        self._keeps_logits = "logits_to_keep" in inspect.signature(base_model.forward).parameters

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def losses(self, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        """Each row's summed cross-entropy [B] in nats over its labels that are not -100, fp32."""
        targets_BT = torch.full_like(labels_BT, _IGNORED)
        targets_BT[:, :-1] = labels_BT[:, 1:]
        more = {}
        if self._keeps_logits:  # the head, the widest product of all, only where some row bears loss
            columns = (targets_BT != _IGNORED).any(dim=0).nonzero()[:, 0]
            more["logits_to_keep"] = columns.to(self.device)
            targets_BT = targets_BT[:, columns]
        with self._autocast():
            logits = self.model(input_ids=input_ids_BT.to(self.device), attention_mask=attention_mask_BT.to(self.device),
                                use_cache=False, **more).logits
        bears_BT = targets_BT != _IGNORED
        chosen = bears_BT.flatten().nonzero()[:, 0].to(logits.device)
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1)[chosen].float(),
                                                 targets_BT.flatten().to(logits.device)[chosen], reduction="none")
        # The chosen tokens stand row after row, so each row's are one slice.
        return torch.stack([part.sum() for part in nats.split(bears_BT.sum(dim=1).tolist())])

    @torch.no_grad()
    def logits(self, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor) -> torch.Tensor:
        """fp32 logits [B, T, V]."""
        with self._autocast():
            out = self.model(input_ids=input_ids_BT.to(self.device), attention_mask=attention_mask_BT.to(self.device),
                             use_cache=False)
        return out.logits.float()

    @torch.no_grad()
    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Answer]:
        """Greedy answers to token prompts, in their order."""
        config = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, pad_token_id=self.pad_id,
                                  eos_token_id=self.stop_ids or None, use_cache=True)
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        answers: dict[int, Answer] = {}
        rows = _GENERATE_ROWS
        while order:
            chosen = order[:rows]
            try:
                answers |= zip(chosen, self._generate([prompts[i] for i in chosen], config), strict=True)
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise OutOfMemory(f"answering a prompt of {len(prompts[chosen[0]])} tokens does not fit in memory",
                                      "Lower judge.max_new_tokens, or quantise the base (nf4).") from None
                rows = len(chosen) // 2 or 1
                torch.cuda.empty_cache()
                continue
            order = order[rows:]
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
            out = self.model.generate(input_ids=ids_BT.to(self.device), attention_mask=mask_BT.to(self.device),
                                      generation_config=config)
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
        return self.model.get_nb_trainable_parameters()

    def training(self, on: bool) -> None:
        """Dropout on or off."""
        self.model.train(on)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The bare base, its adapter switched off."""
        with self.model.disable_adapter():
            yield

    def load_adapter_weights(self, state: dict[str, torch.Tensor]) -> None:
        """Put back adapter tensors. Raises IntegrityError when they are not this adapter's."""
        lora.set_state(self.model, state)

    def adapter_files(self) -> dict[str, bytes]:
        """PEFT's two files."""
        return lora.adapter_files(self.model, self.base.name, self.base.revision)
