"""Read a checkpoint in transformers' names straight to the device, quantising as it comes."""

from __future__ import annotations

import itertools
import re
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from tunesmith.errors import IntegrityError
from tunesmith.model.families import parts
from tunesmith.model.files import BaseFiles
from tunesmith.model.native.ahead import ReadAhead
from tunesmith.model.native.linear import Linear, Mode, Part
from tunesmith.model.native.norm import Norm
from tunesmith.model.native.weights import build_weight, frozen, side_by_side

#: Some checkpoints of a family are saved without the name of the body in front (bigscience/bloom-7b1).
_PREFIXES = ("transformer.", "model.")


def _layer_order(name: str) -> tuple[int, str]:
    """Sorts names by their layer; the embeddings come first, what has no number last."""
    number = re.search(r"\.(\d+)\.", name)
    return (-1 if "embed" in name else int(number[1]) if number else 1 << 30), name


class Checkpoint:
    """The tensors of a base, by name, wherever they lie among its files. Use it as a context manager.

    quantization: how linear layers are kept. dtype: what products are computed in.
    Raises IntegrityError when a tensor is missing, of another shape than it should, or not readable.
    """

    def __init__(self, base: BaseFiles, *, quantization: str, dtype: torch.dtype,
                 device: torch.device) -> None:
        self.base, self.quantization, self.dtype, self.device = base, quantization, dtype, device
        self.mode = Mode()
        self._files: list[Any] = []
        self._file_of: dict[str, Any] = {}
        self._ahead: ReadAhead | None = None

    def __enter__(self) -> Checkpoint:
        try:
            for path in self.base.weights:
                file = safe_open(path, framework="pt", device=str(self.device)).__enter__()
                self._files.append(file)
                self._file_of |= dict.fromkeys(file.keys(), file)
        except (SafetensorError, OSError) as error:
            raise IntegrityError(f"{self.base.name} cannot be loaded: {error}",
                                 setting="model.base") from None
        if self.device.type == "cuda":
            # By layer, as a family asks, with what stands before and behind the layers around them.
            self._ahead = ReadAhead(sorted(self._file_of, key=_layer_order), self._get_tensor)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._ahead is not None:
            self._ahead.close()
        for file in self._files:
            file.__exit__(kind, error, trace)
        self._file_of.clear()

    def _name(self, name: str) -> str | None:
        names = [name, *(name.removeprefix(prefix) for prefix in _PREFIXES)]
        return next((each for each in names if each in self._file_of), None)

    def _get_tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def _raw(self, name: str, *shape: int) -> torch.Tensor:
        stored_name = self._name(name)
        if stored_name is None:
            raise IntegrityError(
                f"{self.base.name} lacks weights that its config.json calls for, such as {name}",
                "Copy or download the base again.", setting="model.base")
        try:
            tensor = self._ahead.get(stored_name) if self._ahead else self._get_tensor(stored_name)
        except (SafetensorError, OSError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise IntegrityError(f"{self.base.name} cannot be loaded: {name}: {error}",
                                 setting="model.base") from None
        if tensor.shape != shape:
            raise IntegrityError(f"{self.base.name} cannot be loaded: {name} is {list(tensor.shape)}, its "
                                 f"config.json calls for {list(shape)}", "Copy or download the base again.",
                                 setting="model.base")
        return tensor

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """In the dtype of the products."""
        return self._raw(name, *shape).to(self.dtype)

    def norm(self, norm: parts.Norm) -> Norm:
        """LayerNorm with a shift, RMSNorm without."""
        weight_C = self._raw(f"{norm.name}.weight", norm.width)
        if norm.gain != 1:
            weight_C = weight_C.float() * norm.gain
        return Norm(weight_C, self._raw(f"{norm.name}.bias", norm.width) if norm.shift else None, norm.eps)

    def head(self, embedding_VC: nn.Parameter, *, tied: bool) -> nn.Parameter:
        """The head. A tied one may be in the file too: as a copy of the embedding, or as another head."""
        if tied and self._name("lm_head.weight") is None:
            return embedding_VC
        head_VC = self.tensor("lm_head.weight", *embedding_VC.shape)
        return embedding_VC if tied and torch.equal(head_VC, embedding_VC) else frozen(head_VC)

    def linear(self, projection: parts.Projection) -> Linear:
        """Its modules side by side."""
        outputs = projection.outputs
        weights = [build_weight(self._raw(f"{name}.weight", width, projection.inputs), self.quantization,
                                self.dtype) for name, width in outputs.items()]
        biases = ([self._raw(f"{name}.bias", width) for name, width in outputs.items()] if projection.bias
                  else [])
        ends = list(itertools.accumulate(outputs.values()))
        modules = [Part(name, end - outputs[name], end) for name, end in zip(outputs, ends, strict=True)]
        return Linear(side_by_side(weights), torch.cat(biases) if biases else None, modules, self.mode)
