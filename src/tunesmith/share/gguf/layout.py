"""Where the tensors of each family go in a GGUF: their names, and llama.cpp's order of their rows.

The names come from the gguf package's own table (gguf.get_tensor_name_map). Rows are reordered in two
families:
- llama: RoPE turns neighbouring channels in llama.cpp, the two halves of a head in transformers, so the
  rows of q and k go from [head, 2, width / 2] to [head, width / 2, 2];
- bloom: query_key_value goes from [head, 3, width] to [3, head, width], all of q first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunesmith.errors import IntegrityError, RecipeError, TunesmithError
from tunesmith.model.base_config import config_object
from tunesmith.model.families import FAMILIES, Architecture, Gguf, describe, why_not_native
from tunesmith.model.files import BaseFiles

if TYPE_CHECKING:
    import torch

_HEAD = "lm_head"
#: Buffers that old checkpoints carry and nothing reads.
_BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias", "attention.masked_bias")


@dataclass(frozen=True)
class Layout:
    """A base's place in GGUF. config: transformers' own object, every default filled in."""

    base: BaseFiles
    config: Any
    parts: Architecture
    gguf: Gguf

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return self.gguf.architecture

    @property
    def layers(self) -> int:
        """How many decoder layers."""
        return int(self.config.num_hidden_layers)

    @property
    def heads(self) -> int:
        """How many query heads."""
        return int(self.config.num_attention_heads)

    @property
    def key_heads(self) -> int:
        """How many key heads; fewer than query heads where queries are grouped."""
        return int(getattr(self.config, "num_key_value_heads", None) or self.heads)

    @property
    def width(self) -> int:
        """Channels of a head."""
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return bool(self.config.tie_word_embeddings)

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Every parameter that the config calls for, with its shape; a tied head is not among them."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config)
        return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    @cached_property
    def _names(self) -> Any:
        import gguf

        known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
        return gguf.get_tensor_name_map(known[self.architecture], self.layers)

    def canonical(self, name: str) -> str | None:
        """A checkpoint's name of a tensor or module as transformers has it; None for an unused buffer."""
        if name.endswith(_BUFFERS):
            return None
        body = self.gguf.body
        return name if name.startswith((body, _HEAD)) else body + name

    def gguf_name(self, name: str) -> str:
        """llama.cpp's name of a parameter (canonical, with .weight or .bias), else IntegrityError."""
        tries = [name, name.removeprefix(self.gguf.body)]
        known_name = next(filter(None, (self._names.get_name(key=each, try_suffixes=(".weight", ".bias"))
                                        for each in tries)), None)
        if known_name is None:
            raise IntegrityError(
                f"{self.base.name}: the tensor {name} has no place in a GGUF of {self.architecture}")
        return str(known_name)

    def rows(self, name: str) -> torch.Tensor | None:
        """Which row of a module's output stands where in GGUF, [outputs] of int64; None where all stay.

        name: of the module or of its weight or bias. The same order holds for the bias and for a LoRA's B.
        """
        import torch

        module = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        order = self.gguf.row_orders.get(module)
        if order == "qkv_apart":
            places = torch.arange(3 * self.heads * self.width).view(self.heads, 3, self.width)
            return places.transpose(0, 1).reshape(-1)
        if order == "rope_pairs":
            heads = self.heads if module == "q_proj" else self.key_heads
            places = torch.arange(heads * self.width).view(heads, 2, self.width // 2)
            return places.transpose(1, 2).reshape(-1)
        return None


def layout_of(base: BaseFiles) -> Layout:
    """The layout of a base. Raises RecipeError, naming what it is that GGUF or llama.cpp has no place for."""
    settings = {key: value for key, value in base.config.items()
                if key not in ("hidden_dropout", "attention_dropout")}
    reason, family = why_not_native(settings), FAMILIES.get(base.architecture)
    gguf = family.GGUF if family else None
    if reason is None and gguf is None:
        reason = f"the place of {base.architecture} in GGUF is not known here"
    if reason is None:
        try:
            config = config_object(base.config)
        except TunesmithError:  # a signal of the user's
            raise
        except Exception as error:  # transformers raises whatever its checks meet
            detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reason = f"its config.json is not usable: {detail}"
        else:
            reason = _llama_cpp_lacks(config, gguf) if gguf else None
    architecture = describe(settings) if reason is None else None
    if architecture is None or gguf is None:
        known = ", ".join(sorted(name for name, family in FAMILIES.items() if family.GGUF))
        raise RecipeError(f"{base.name}: cannot be written as GGUF: {reason}",
                          f"This works for {known}; keep the PEFT adapter for the others.")
    return Layout(base, config, architecture, gguf)


def _llama_cpp_lacks(config: Any, gguf: Gguf) -> str | None:
    """What of a base llama.cpp's code of its architecture has no place for; None when it has."""
    if reason := gguf.lacks(config):
        return reason
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "yarn" and rope.get("truncate") is False:
        return "its yarn scaling has truncate: false, which llama.cpp does not know"
    return None
