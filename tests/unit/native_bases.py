"""Tiny random bases of the native engine's families, as transformers writes them, and pairs of engines."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from placed import at

from tunesmith import embedded
from tunesmith.model.build import build_for_training
from tunesmith.model.dropout import sample_seeds
from tunesmith.model.files import BaseFiles, locate_base
from tunesmith.model.lora import LoraSettings

#: One a process; a failing test prints it, and TUNESMITH_TEST_SEED brings it back.
SEED = int(os.environ.get("TUNESMITH_TEST_SEED") or random.SystemRandom().randrange(2**31))
VOCABULARY = 1536  # of the embedded tokenizer
WINDOW = 8


@dataclass(frozen=True)
class Sample:
    """What the engines read of a row, and what a step does."""

    ids: list[int]
    loss_mask: list[bool]
    place: str = "a test, row 1"

    @property
    def loss_tokens(self) -> int:
        return sum(self.loss_mask[1:])


def samples(lengths: Sequence[int]) -> list[Sample]:
    """Random rows; about two thirds of the tokens bear loss: the last always, the first (ignored) too."""
    found = []
    for length in lengths:
        loss_mask = (torch.rand(length) < 0.66).tolist()
        loss_mask[-1] = True
        found.append(Sample(torch.randint(4, VOCABULARY, (length,)).tolist(), loss_mask))
    return found


@cache
def tokenizer() -> Any:
    """The embedded base's."""
    return transformers.AutoTokenizer.from_pretrained(embedded.path_of(embedded.BASE_NAME))


def _bloom(hidden: int, heads: int, **more: Any) -> Any:
    return transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=hidden, n_layer=2, n_head=heads,
                                    **more)


def _line(kind: type, hidden: int = 48, heads: int = 4, keys: int = 2, **more: Any) -> Any:
    settings = {"vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": 80,
                "num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": keys,
                "max_position_embeddings": 2048}
    return kind(**settings | {"head_dim": hidden // heads} | more)


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **more}}


_LLAMA, _MISTRAL, _QWEN2, _QWEN3 = (transformers.LlamaConfig, transformers.MistralConfig,
                                    transformers.Qwen2Config, transformers.Qwen3Config)
_SMOLLM3, _GRANITE, _PHI3 = transformers.SmolLM3Config, transformers.GraniteConfig, transformers.Phi3Config
#: Special tokens within the embedded vocabulary, for families whose own are larger.
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
#: Rows of the tests are shorter and longer than this, so that longrope's both sets of frequencies are met.
LONG_FROM = 16


def _phi3(**more: Any) -> Any:
    config = _line(_PHI3, **_TOKENS, **more)
    del config.head_dim  # which _line sets, and Phi-3 has none
    return config


def _longrope(turned: int) -> dict[str, Any]:
    factors = {"short_factor": [1 + i / 10 for i in range(turned // 2)],
               "long_factor": [2 + i / 3 for i in range(turned // 2)]}
    return {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": LONG_FROM,
            **factors}

#: Their configs. `saved` below says how some of them are written.
FAMILIES: dict[str, Callable[[], Any]] = {
    "bloom": lambda: _bloom(64, 8),
    "bloom-6-heads": lambda: _bloom(48, 6, layer_norm_epsilon=1e-3),
    "bloom-1-head": lambda: _bloom(32, 1),
    "bloom-untied": lambda: _bloom(32, 4, tie_word_embeddings=False),
    "bloom-no-prefix-fp16": lambda: _bloom(48, 3),
    "llama": lambda: _line(_LLAMA, tie_word_embeddings=False, rms_norm_eps=1e-3),
    "llama-tied-shards": lambda: _line(_LLAMA, tie_word_embeddings=True),
    "llama-one-key-head": lambda: _line(_LLAMA, keys=1,
                                        rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "llama-all-heads-fp16": lambda: _line(_LLAMA, keys=4),
    "llama-biases": lambda: _line(_LLAMA, attention_bias=True, mlp_bias=True),
    "llama3-rope": lambda: _line(_LLAMA, **_rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0,
                                                 original_max_position_embeddings=16)),
    "linear-rope": lambda: _line(_LLAMA, **_rope("linear")),
    "yarn-rope": lambda: _line(_LLAMA, **_rope("yarn", original_max_position_embeddings=16)),
    "yarn-rope-own-factor": lambda: _line(_QWEN2, **_rope("yarn", original_max_position_embeddings=16,
                                                          attention_factor=0.7, beta_fast=16.0,
                                                          beta_slow=2.0)),
    "mistral-window": lambda: _line(_MISTRAL, sliding_window=WINDOW),
    "mistral": lambda: _line(_MISTRAL, sliding_window=None, head_dim=20),
    "qwen2": lambda: _line(_QWEN2, tie_word_embeddings=True),
    "qwen2-window": lambda: _line(_QWEN2, use_sliding_window=True, sliding_window=WINDOW,
                                  max_window_layers=0),
    "qwen2-window-nowhere": lambda: _line(_QWEN2, use_sliding_window=True, sliding_window=WINDOW,
                                          max_window_layers=2),
    "qwen3": lambda: _line(_QWEN3, head_dim=32, tie_word_embeddings=True),
    "qwen3-biases": lambda: _line(_QWEN3, head_dim=20, attention_bias=True),
    "qwen2-mixed-windows": lambda: _line(_QWEN2, use_sliding_window=True, sliding_window=WINDOW,
                                         max_window_layers=1),
    "smollm3": lambda: _line(_SMOLLM3, num_hidden_layers=5, **_TOKENS),
    "smollm3-windows-untied": lambda: _line(_SMOLLM3, num_hidden_layers=3, no_rope_layers=[0, 1, 0],
                                            use_sliding_window=True, sliding_window=WINDOW,
                                            tie_word_embeddings=False, attention_bias=True, **_TOKENS),
    "granite": lambda: _line(_GRANITE, embedding_multiplier=3.0, residual_multiplier=0.4,
                             attention_multiplier=0.2, logits_scaling=2.5, attention_bias=True,
                             mlp_bias=True),
    "granite-tied-linear-rope": lambda: _line(_GRANITE, tie_word_embeddings=True, embedding_multiplier=12,
                                              residual_multiplier=0.22, **_rope("linear")),
    "phi3": lambda: _phi3(),
    "phi3-part-window": lambda: _phi3(sliding_window=WINDOW, tie_word_embeddings=True, rope_parameters={
        "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}),
    "phi3-longrope": lambda: _phi3(original_max_position_embeddings=LONG_FROM, rope_parameters=_longrope(12)),
    "phi3-part-longrope-fp16": lambda: _phi3(original_max_position_embeddings=LONG_FROM, rope_parameters={
        **_longrope(6), "partial_rotary_factor": 0.5}),
}


def write_base(folder: Path, config: Any, *, dtype: torch.dtype = torch.float32, shards: bool = False,
               prefixed: bool = True, seed: int = 0) -> BaseFiles:
    """A random model as `save_pretrained` writes it, with no 0 or 1: each weight, bias and norm counts."""
    generator = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        fresh = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            fresh = fresh * 0.2 + parameter.detach().float()
        else:
            fresh = fresh * (0.5 if parameter.shape[0] == VOCABULARY else 1.3 / parameter.shape[1] ** 0.5)
        parameter.data = fresh.to(dtype)
    model.save_pretrained(folder, max_shard_size="120KB" if shards else "5GB")
    assert (len(list(folder.glob("*.safetensors"))) > 2) == shards
    if not prefixed:
        rewrite_tensors(folder, lambda tensors: {name.removeprefix("transformer."): t
                                                 for name, t in tensors.items()})
    tokenizer().save_pretrained(folder)
    return locate_base(str(folder), None)


def rewrite_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the tensors of a base that is one file."""
    path = folder / "model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path, metadata={"format": "pt"})


def rewrite_config(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> BaseFiles:
    """Change the config.json of a base."""
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return locate_base(str(folder), None)


class Bases:
    """Bases by the names in FAMILIES, each written once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._found = folder, {}

    def __call__(self, name: str) -> BaseFiles:
        if name not in self._found:
            self._found[name] = write_base(self.folder / name, FAMILIES[name](), shards="shards" in name,
                                           dtype=torch.float16 if "fp16" in name else torch.float32,
                                           prefixed="no-prefix" not in name, seed=SEED + len(self._found))
        return self._found[name]

    def copy(self, name: str, to: Path) -> BaseFiles:
        """A copy of one, to be damaged."""
        shutil.copytree(self(name).folder, to)
        return locate_base(str(to), None)


def build(base: BaseFiles, engine: str, *, quantization: str = "none", targets: Any = "all-linear",
          r: int = 3, alpha: float = 7.5, dropout: float = 0.0, seed: int = 0, dtype: str = "float32") -> Any:
    """An engine in training mode, its adapter fresh."""
    found = build_for_training(base, tokenizer(), at(engine, quantization, dtype),
                               seed=seed, lora=LoraSettings(r, alpha, dropout, targets))
    assert found.name == engine
    found.training(True)
    return found


def randomise(*engines: Any) -> None:
    """The same random adapter, B too, on each."""
    fresh = {name: torch.randn(p.shape) * (0.3 if ".lora_B." in name else p.shape[1] ** -0.5)
             for name, p in engines[0].trainable().items()}
    for engine in engines:
        parameters = engine.trainable()
        assert list(parameters) == list(fresh)
        for name, tensor in fresh.items():
            parameters[name].data.copy_(tensor)


def pair(base: BaseFiles, **settings: Any) -> tuple[Any, Any]:
    """(hf, native) with the same random adapter."""
    hf, native = (build(base, engine, **settings) for engine in ("hf", "native"))
    randomise(hf, native)
    return hf, native


def gradients(engine: Any, rows: Sequence[Any], weight: float = 0.1,
              seeds: Sequence[int] | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(each row's loss, each gradient) of an `accumulate`. seeds: of dropout; by default a first step's."""
    for parameter in engine.trainable().values():
        parameter.grad = None
    losses = engine.accumulate(rows, torch.tensor(weight), seeds or sample_seeds(0, 0, len(rows))).clone()
    return losses, {name: parameter.grad.clone() for name, parameter in engine.trainable().items()}


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """The norm of the difference over the norm of what is wanted."""
    assert got.shape == want.shape
    assert torch.isfinite(want).all()
    assert torch.isfinite(got).all()
    return ((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30)).item()
