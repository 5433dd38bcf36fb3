"""Where the tensors of each family go in a GGUF: their names there, and in which order llama.cpp wants their rows.

The names come from the gguf package's own table (gguf.get_tensor_name_map). Rows are reordered in two families:
- llama: RoPE turns neighbouring channels in llama.cpp, the two halves of a head in transformers, so the rows of q and k
  go from [head, 2, width / 2] to [head, width / 2, 2];
- bloom: query_key_value goes from [head, 3, width] to [3, head, width], all of q first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunesmith.errors import IntegrityError, RecipeError, TunesmithError
from tunesmith.model.base_config import config_object
from tunesmith.model.files import BaseFiles
from tunesmith.model.native.support import why_not

if TYPE_CHECKING:
    import torch

#: transformers' model_type to llama.cpp's name of the architecture.
ARCHITECTURES = {"bloom": "bloom", "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
#: What stands in front of the names of a body; some checkpoints of the families leave it out.
_BODIES = {"bloom": "transformer.", "llama": "model.", "qwen2": "model.", "qwen3": "model."}
_HEAD = "lm_head"
#: Buffers that old checkpoints carry and nothing reads.
_BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias", "attention.masked_bias")


@dataclass(frozen=True)
class Layout:
    """A base's place in GGUF. config: transformers' own object, every default filled in."""

    base: BaseFiles
    config: Any
    architecture: str

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
        """A checkpoint's name of a tensor or a module as transformers' model has it; None for a buffer that nothing reads."""
        if name.endswith(_BUFFERS):
            return None
        body = _BODIES[self.architecture]
        return name if name.startswith((body, _HEAD)) else body + name

    def gguf_name(self, name: str) -> str:
        """llama.cpp's name of a parameter (canonical, with its .weight or .bias). Raises IntegrityError for an unknown one."""
        tries = [name, name.removeprefix(_BODIES[self.architecture])]
        found = next(filter(None, (self._names.get_name(key=each, try_suffixes=(".weight", ".bias")) for each in tries)), None)
        if found is None:
            raise IntegrityError(f"{self.base.name}: the tensor {name} has no place in a GGUF of {self.architecture}")
        return str(found)

    def rows(self, name: str) -> torch.Tensor | None:
        """Which row of a module's output stands where in GGUF, [outputs] of int64; None where all stay.

        name: of the module or of its weight or bias. The same order holds for the bias and for a LoRA's B.
        """
        import torch

        module = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        if self.architecture == "bloom" and module == "query_key_value":
            places = torch.arange(3 * self.heads * self.width).view(self.heads, 3, self.width)
            return places.transpose(0, 1).reshape(-1)
        if self.architecture == "llama" and module in ("q_proj", "k_proj"):
            heads = self.heads if module == "q_proj" else self.key_heads
            places = torch.arange(heads * self.width).view(heads, 2, self.width // 2)
            return places.transpose(1, 2).reshape(-1)
        return None


def layout_of(base: BaseFiles) -> Layout:
    """The layout of a base. Raises RecipeError, naming what it is that GGUF or llama.cpp has no place for."""
    words = {key: value for key, value in base.config.items() if key not in ("hidden_dropout", "attention_dropout")}
    reason = why_not(words)
    if reason is None:
        try:
            config = config_object(base.config)
        except TunesmithError:  # a signal of the user's
            raise
        except Exception as error:  # transformers raises whatever its checks meet
            reason = f"its config.json is not usable: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
        else:
            reason = _llama_cpp_lacks(config)
    if reason:
        raise RecipeError(f"{base.name}: cannot be written as GGUF: {reason}",
                          f"This works for {', '.join(sorted(ARCHITECTURES))}; keep the PEFT adapter for the others.")
    return Layout(base, config, ARCHITECTURES[base.architecture])


def _llama_cpp_lacks(config: Any) -> str | None:
    """What of a family llama.cpp's code of its architecture has no place for; None when it has."""
    if config.model_type == "qwen3" and config.attention_bias:
        return "its attention has biases (attention_bias), which llama.cpp's qwen3 does not read"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "yarn" and rope.get("truncate") is False:
        return "its yarn scaling has truncate: false, which llama.cpp does not know"
    return None
