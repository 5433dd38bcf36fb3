"""What is known of one way of keeping the frozen weights of a base: `none`, `int8`, `nf4`, or a new one.

A way is one file of this package with a subclass of `Way`, and a row in `WAYS`. Nothing here imports torch
before it is called: the recipe, planning and the command line read these files, too. Shapes: O outputs, I
inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: The tensors that a way makes of a weight, by name, in a fixed order.
Parts = Mapping[str, "torch.Tensor"]


class Way:
    """What a subclass does not say is as for weights that are kept in the dtype of their products.

    name: as the recipe says it. about: what the recipe's help adds to the name. also_called: settings of
    other programs that mean it. quantised: whether linear layers are kept in fewer bits than they are
    computed in. size_share: of its size in 16 bits, about what a whole base takes up, embeddings and scales
    counted. tensors_beside: a regular expression of the last parts of names that a checkpoint kept this way
    has beside a weight. loading_code, loading_import: how a model card loads the base with transformers.
    """

    name: str
    about: str = ""
    also_called: tuple[str, ...] = ()
    quantised: bool = True
    size_share: float = 1.0
    tensors_beside: str | None = None
    loading_code: str
    loading_import: str | None = None

    # Arithmetic and words

    def value_bytes(self, computed_bytes: int) -> float:
        """Bytes of one value of a linear layer. computed_bytes: of a value in the dtype of the products."""
        return computed_bytes

    def keeps(self, config: Mapping[str, Any]) -> bool:
        """Whether bitsandbytes' part of a checkpoint's config.json says that it is kept this way already."""
        return False

    def fails_on(self, config: Mapping[str, Any], device: str) -> str | None:
        """Why a library is known to fail at a base (its config.json) on a device; None where it is not."""
        return None

    # The hf engine: transformers and bitsandbytes

    def transformers_config(self, dtype: torch.dtype) -> Any:
        """What `from_pretrained` takes as `quantization_config`. dtype: of the products."""
        return None

    def prepare(self, model: torch.nn.Module) -> None:
        """Mend what transformers loaded, before it is used."""

    def reaches(self, model: torch.nn.Module) -> frozenset[str]:
        """The modules of a model without weights (on torch's meta device) that loading would keep this way.

        Transformers' own quantiser is asked, where there is one; the model is changed by asking.
        """
        import torch
        from transformers.quantizers.auto import AutoHfQuantizer

        config = self.transformers_config(torch.float32)
        if config is None:
            return frozenset()
        quantiser = AutoHfQuantizer.from_config(config, pre_quantized=False)
        quantiser.preprocess_model(model=model, device_map={"": "cpu"}, dtype=torch.float32)
        return frozenset(name for name, module in model.named_modules() if hasattr(module, "source_cls"))

    def is_whole(self, layer: torch.nn.Module) -> bool | None:
        """Whether a layer has all that turns its weight back to floats; None for a layer of another way."""
        return None

    def count(self, parameter: torch.nn.Parameter) -> int | None:
        """How many of a base's values a parameter holds; None for one that is not kept this way."""
        return None

    def layer(self, inputs: int, outputs: int) -> torch.nn.Module:
        """A linear layer without a bias, as the hf engine has it; it quantises the weight that it loads."""
        raise NotImplementedError(f"{self.name} has no layer of its own")

    # The native engine

    def quantise(self, weight_OI: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is kept of a weight."""
        raise NotImplementedError(f"{self.name} keeps weights as they are")

    def fill(self, parts: Parts, out_OI: torch.Tensor) -> None:
        """Write the weight that `parts` are kept of into a buffer, in the buffer's dtype."""
        raise NotImplementedError(f"{self.name} keeps weights as they are")

    def side_by_side(self, each: Sequence[Parts]) -> dict[str, torch.Tensor] | None:
        """The parts of weights with the same input as those of one weight, outputs one after another.

        None where they cannot be one: then each is kept and turned back by itself.
        """
        return None

    def int8_rows(self, parts: Parts) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(int8 [O, I], fp32 scale [O]) whose product the weight is, where that is how it is kept: products
        in 8 bits take these as they are.
        """
        return None
