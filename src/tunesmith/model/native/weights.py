"""How a frozen weight is multiplied with, however `model/quantization` keeps it.

Shapes: O outputs, I inputs, N tokens, R ranks. xa: the activations' product with LoRA's A.

The exact path quantises no activation. A quantised weight is turned back into a buffer that lives for one
product: a product of some hundred tokens keeps the tensor cores busy for much longer than the buffer takes to
write.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from tunesmith.model.native.kernels.dispatch import use_triton
from tunesmith.model.quantization import WAYS
from tunesmith.model.quantization.way import Parts, Way


def frozen(tensor: torch.Tensor) -> nn.Parameter:
    """A parameter that does not learn."""
    return nn.Parameter(tensor, requires_grad=False)


class FrozenWeight(nn.Module):
    """A weight [O, I] that does not learn. Subclasses say how it is kept.

    dtype: what its products are computed in. can_concat: whether `concat_b` and one product are another way
    to `project`.
    """

    can_concat = True

    def __init__(self, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.outputs, self.inputs, self.dtype = outputs, inputs, dtype

    def fill(self, out_OI: torch.Tensor) -> None:
        """Write the weight into a buffer."""
        raise NotImplementedError

    def dense(self) -> torch.Tensor:
        """The weight in `dtype` [O, I]; a buffer of its own when it is kept in fewer bits."""
        out_OI = torch.empty((self.outputs, self.inputs), dtype=self.dtype,
                             device=next(self.parameters()).device)
        self.fill(out_OI)
        return out_OI

    def int8_rows(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(int8 [O, I], fp32 scale [O]) whose product it is, where that is how it is kept."""
        return None

    def project(self, x_NI: torch.Tensor, bias_O: torch.Tensor | None, xa_NR: torch.Tensor | None = None,
                b_OR: torch.Tensor | None = None) -> torch.Tensor:
        """x W^T + bias + (x A^T) b^T [N, O]; the last is LoRA's, and may be left out."""
        if xa_NR is None or b_OR is None:
            return torch.nn.functional.linear(x_NI, self.dense(), bias_O)
        # The small product first: the large one then takes its result along instead of a pass of its own.
        return torch.nn.functional.linear(xa_NR, b_OR, bias_O).addmm_(x_NI, self.dense().T)

    def allocate_b(self, ranks: int) -> torch.Tensor:
        """Zeros [O, R] for LoRA's B as it is multiplied with."""
        return torch.zeros(self.outputs, ranks, dtype=self.dtype, device=next(self.parameters()).device)

    def concat_b(self, b_OR: torch.Tensor) -> torch.Tensor:
        """[W b], [O, I + R], in a buffer of its own. b_OR: from `allocate_b`."""
        wide_OIR = torch.empty((self.outputs, self.inputs + b_OR.shape[1]), dtype=self.dtype,
                               device=b_OR.device)
        self.fill(wide_OIR[:, :self.inputs])
        wide_OIR[:, self.inputs:] = b_OR
        return wide_OIR

    def project_back(self, dy_NO: torch.Tensor, d_xa_NR: torch.Tensor | None = None,
                     a_RI: torch.Tensor | None = None) -> torch.Tensor:
        """dy W + d(x A^T) a [N, I]: the gradient of `project` for its input."""
        if d_xa_NR is None or a_RI is None:
            return dy_NO @ self.dense()
        return (d_xa_NR @ a_RI).addmm_(dy_NO, self.dense())


class DenseWeight(FrozenWeight):
    """Kept as it is computed in."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        super().__init__(weight_OI.shape[0], weight_OI.shape[1], weight_OI.dtype)
        self.weight = frozen(weight_OI)
        self._wide_OIR: torch.Tensor | None = None

    def fill(self, out_OI: torch.Tensor) -> None:
        """A copy."""
        out_OI.copy_(self.weight)

    def dense(self) -> torch.Tensor:
        """The weight itself."""
        return self.weight

    def allocate_b(self, ranks: int) -> torch.Tensor:
        """Zeros [O, R]; beside the weight itself, which moves, where the two are multiplied with as one."""
        if not prefers_concat(self, ranks):
            return super().allocate_b(ranks)
        self._wide_OIR = self.weight.new_zeros(self.outputs, self.inputs + ranks)
        self._wide_OIR[:, :self.inputs] = self.weight
        self.weight = frozen(self._wide_OIR[:, :self.inputs])
        return self._wide_OIR[:, self.inputs:]

    def concat_b(self, b_OR: torch.Tensor) -> torch.Tensor:
        """[W b] as it stands."""
        return super().concat_b(b_OR) if self._wide_OIR is None else self._wide_OIR


class QuantisedWeight(FrozenWeight):
    """Kept as `quantization` says: the tensors that a way made of a weight, which it turns back.

    parts: by the way's names for them.
    """

    def __init__(self, way: Way, parts: Parts, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        super().__init__(outputs, inputs, dtype)
        self.way, self._names = way, tuple(parts)
        for name, tensor in parts.items():
            self.register_parameter(f"part_{name}", frozen(tensor))

    @property
    def parts(self) -> Parts:
        """By the way's names."""
        return cast("Parts", {name: self._parameters[f"part_{name}"] for name in self._names})

    def fill(self, out_OI: torch.Tensor) -> None:
        """As the way turns it back."""
        self.way.fill(self.parts, out_OI)

    def int8_rows(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """As the way keeps it."""
        return self.way.int8_rows(self.parts)


class StackedWeight(FrozenWeight):
    """Weights of the same input above each other, each kept by itself."""

    def __init__(self, weights: list[FrozenWeight]) -> None:
        super().__init__(sum(weight.outputs for weight in weights), weights[0].inputs, weights[0].dtype)
        self.weights = nn.ModuleList(weights)

    def fill(self, out_OI: torch.Tensor) -> None:
        """Each into its rows."""
        start = 0
        for weight in cast("list[FrozenWeight]", self.weights):
            weight.fill(out_OI[start:start + weight.outputs])
            start += weight.outputs


def prefers_concat(weight: FrozenWeight, ranks: int) -> bool:
    """Whether to compute x W^T + (x A^T) b^T as [x, x A^T] [W b]^T: with kernels, where outputs are wider.

    The sum then costs no pass over the output; joining the two inputs is one over the input. Rows stay in
    steps of 16 bytes.
    """
    kernels = use_triton(next(weight.parameters()))
    aligned = (weight.inputs + ranks) % (16 // weight.dtype.itemsize) == 0
    return kernels and aligned and 2 * weight.outputs >= 3 * weight.inputs


def build_weight(weight_OI: torch.Tensor, quantization: str, dtype: torch.dtype) -> FrozenWeight:
    """A weight as the recipe wants it kept. dtype: of its products."""
    way = WAYS[quantization]
    if not way.quantised:
        return DenseWeight(weight_OI.to(dtype))
    return QuantisedWeight(way, way.quantise(weight_OI), weight_OI.shape[0], weight_OI.shape[1], dtype)


def side_by_side(weights: list[FrozenWeight]) -> FrozenWeight:
    """One weight of several with the same input, outputs one after another; rows stay as they are kept."""
    first = weights[0]
    if len(weights) == 1:
        return first
    if all(isinstance(weight, DenseWeight) for weight in weights):
        return DenseWeight(torch.cat([weight.weight for weight in weights]))  # type: ignore[misc]
    quantised = [weight for weight in weights if isinstance(weight, QuantisedWeight)]
    if len(quantised) == len(weights) and all(weight.way is quantised[0].way for weight in quantised):
        together = quantised[0].way.side_by_side([weight.parts for weight in quantised])
        if together is not None:
            outputs = sum(weight.outputs for weight in weights)
            return QuantisedWeight(quantised[0].way, together, outputs, first.inputs, first.dtype)
    return StackedWeight(weights)
