"""How a frozen weight is kept and multiplied with: 16 or 32 bits, int8, nf4. Shapes: O outputs, I inputs, N tokens.

The exact path quantises no activation. A quantised weight is turned back into a buffer that lives for one product: a
product of some hundred tokens keeps the tensor cores busy for much longer than the buffer takes to write.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from tunesmith.model.libraries import import_bitsandbytes
from tunesmith.model.native.kernels.dequantize import dequantize_int8, dequantize_nf4
from tunesmith.model.native.kernels.dispatch import use_triton
from tunesmith.model.native.kernels.formats import Nf4Absmax

#: How many values of a weight are quantised at once: 64 MiB in fp32.
_VALUES_AT_ONCE = 1 << 24


def frozen(tensor: torch.Tensor) -> nn.Parameter:
    """A parameter that does not learn."""
    return nn.Parameter(tensor, requires_grad=False)


class FrozenWeight(nn.Module):
    """A weight [O, I] that does not learn. Subclasses say how it is kept.

    dtype: what its products are computed in. joins: whether `beside` and one product are another way to `project`.
    """

    joins = True

    def __init__(self, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.outputs, self.inputs, self.dtype = outputs, inputs, dtype

    def fill(self, out_OI: torch.Tensor) -> None:
        """Write the weight into a buffer."""
        raise NotImplementedError

    def dense(self) -> torch.Tensor:
        """The weight in `dtype` [O, I]; a buffer of its own when it is kept in fewer bits."""
        out_OI = torch.empty((self.outputs, self.inputs), dtype=self.dtype, device=next(self.parameters()).device)
        self.fill(out_OI)
        return out_OI

    def project(self, x_NI: torch.Tensor, bias_O: torch.Tensor | None, low_NR: torch.Tensor | None = None,
                b_OR: torch.Tensor | None = None) -> torch.Tensor:
        """x W^T + bias + low b^T [N, O]; the last is LoRA's, and may be left out."""
        if low_NR is None or b_OR is None:
            return torch.nn.functional.linear(x_NI, self.dense(), bias_O)
        # The small product first: the large one then takes its result along instead of a pass of its own.
        return torch.nn.functional.linear(low_NR, b_OR, bias_O).addmm_(x_NI, self.dense().T)

    def room_for_b(self, ranks: int) -> torch.Tensor:
        """Zeros [O, R] for LoRA's B as it is multiplied with."""
        return torch.zeros(self.outputs, ranks, dtype=self.dtype, device=next(self.parameters()).device)

    def beside(self, b_OR: torch.Tensor) -> torch.Tensor:
        """[W b], [O, I + R], in a buffer of its own. b_OR: from `room_for_b`."""
        wide_OIR = torch.empty((self.outputs, self.inputs + b_OR.shape[1]), dtype=self.dtype, device=b_OR.device)
        self.fill(wide_OIR[:, :self.inputs])
        wide_OIR[:, self.inputs:] = b_OR
        return wide_OIR

    def project_back(self, dy_NO: torch.Tensor, dlow_NR: torch.Tensor | None = None,
                     a_RI: torch.Tensor | None = None) -> torch.Tensor:
        """dy W + dlow a [N, I]: the gradient of `project` for its input."""
        if dlow_NR is None or a_RI is None:
            return dy_NO @ self.dense()
        return (dlow_NR @ a_RI).addmm_(dy_NO, self.dense())


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

    def room_for_b(self, ranks: int) -> torch.Tensor:
        """Zeros [O, R]; beside the weight itself, which moves, where the two are multiplied with as one."""
        if not widens(self, ranks):
            return super().room_for_b(ranks)
        self._wide_OIR = self.weight.new_zeros(self.outputs, self.inputs + ranks)
        self._wide_OIR[:, :self.inputs] = self.weight
        self.weight = frozen(self._wide_OIR[:, :self.inputs])
        return self._wide_OIR[:, self.inputs:]

    def beside(self, b_OR: torch.Tensor) -> torch.Tensor:
        """[W b] as it stands."""
        return super().beside(b_OR) if self._wide_OIR is None else self._wide_OIR


class Int8Weight(FrozenWeight):
    """A row's values as multiples of its largest / 127 (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, eq. 3)."""

    def __init__(self, q_OI: torch.Tensor, scale_O: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__(q_OI.shape[0], q_OI.shape[1], dtype)
        self.q, self.scale = frozen(q_OI), frozen(scale_O)

    @classmethod
    def quantise(cls, weight_OI: torch.Tensor, dtype: torch.dtype) -> Int8Weight:
        """By bitsandbytes' own rounding, which starts from fp16; see `quantise_int8`."""
        q_OI, absmax_O = quantise_int8(weight_OI)
        return cls(q_OI, absmax_O / 127, dtype)

    def fill(self, out_OI: torch.Tensor) -> None:
        """q * scale."""
        dequantize_int8(self.q, self.scale, out_OI)


def quantise_int8(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 [O, I], each row's largest magnitude in fp32 [O]); a row of zeros, or with what fp16 cannot hold, becomes zeros.

    To the bit what bitsandbytes.functional.int8_vectorwise_quant does on a CPU, without its import, which takes seconds.
    Its CUDA kernel multiplies in another order, and may differ by one where a value lies halfway between two integers.
    """
    q_OI = torch.empty(weight_OI.shape, dtype=torch.int8, device=weight_OI.device)
    absmax_O = torch.empty(weight_OI.shape[0], device=weight_OI.device)
    for rows in range(0, len(q_OI), step := max(1, _VALUES_AT_ONCE // weight_OI.shape[1])):
        half_RI = weight_OI[rows:rows + step].to(torch.float16)
        absmax_R = half_RI.abs().amax(1).float()
        # 127 / 0 and 127 / infinity leave no numbers in their rows, and what an integer of those is, each machine decides.
        q_OI[rows:rows + step] = (half_RI * (127.0 / absmax_R)[:, None]).round_().nan_to_num_(0.0)
        absmax_O[rows:rows + step] = absmax_R
    return q_OI, absmax_O


class Nf4Weight(FrozenWeight):
    """4-bit NormalFloat in blocks of 64, double-quantised (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314)."""

    def __init__(self, packed: torch.Tensor, state: Any, dtype: torch.dtype) -> None:
        """packed: two values a byte. state: bitsandbytes' QuantState."""
        super().__init__(state.shape[0], state.shape[1], dtype)
        self.packed, self.code = frozen(packed.flatten()), frozen(state.code.float())
        self.absmax_q, self.offset = frozen(state.absmax), frozen(state.offset)
        self.absmax_code = frozen(state.state2.code.float())
        self.absmax_nested = frozen(state.state2.absmax)

    @classmethod
    def quantise(cls, weight_OI: torch.Tensor, dtype: torch.dtype) -> Nf4Weight:
        """By bitsandbytes."""
        bitsandbytes = import_bitsandbytes()
        packed, state = bitsandbytes.functional.quantize_4bit(weight_OI.contiguous(), blocksize=64, compress_statistics=True,
                                                              quant_type="nf4")
        return cls(packed, state, dtype)

    def fill(self, out_OI: torch.Tensor) -> None:
        """code[nibble] * absmax of its block."""
        absmax = Nf4Absmax(self.absmax_q, self.absmax_code, self.absmax_nested, self.offset)
        dequantize_nf4(self.packed, self.code, absmax, out_OI)


class StackedWeight(FrozenWeight):
    """Weights of the same input above each other, each kept in its own way (nf4's second scale spans a whole weight)."""

    def __init__(self, weights: list[FrozenWeight]) -> None:
        super().__init__(sum(weight.outputs for weight in weights), weights[0].inputs, weights[0].dtype)
        self.weights = nn.ModuleList(weights)

    def fill(self, out_OI: torch.Tensor) -> None:
        """Each into its rows."""
        start = 0
        for weight in cast("list[FrozenWeight]", self.weights):
            weight.fill(out_OI[start:start + weight.outputs])
            start += weight.outputs


def widens(weight: FrozenWeight, ranks: int) -> bool:
    """Whether x W^T + low b^T is to be computed as [x low] [W b]^T: with kernels, where the output is the wider side.

    The sum then costs no pass over the output; joining x and low is one over the input. Rows stay in steps of 16 bytes.
    """
    kernels, aligned = use_triton(next(weight.parameters())), (weight.inputs + ranks) % (16 // weight.dtype.itemsize) == 0
    return kernels and aligned and 2 * weight.outputs >= 3 * weight.inputs


def keep(weight_OI: torch.Tensor, quantization: str, dtype: torch.dtype) -> FrozenWeight:
    """A weight as the recipe wants it kept: none, int8 or nf4."""
    if quantization == "int8":
        return Int8Weight.quantise(weight_OI, dtype)
    if quantization == "nf4":
        return Nf4Weight.quantise(weight_OI, dtype)
    return DenseWeight(weight_OI.to(dtype))


def side_by_side(weights: list[FrozenWeight]) -> FrozenWeight:
    """One weight of several with the same input, outputs one after another; rows stay as they are kept."""
    if len(weights) == 1:
        return weights[0]
    if all(isinstance(weight, DenseWeight) for weight in weights):
        return DenseWeight(torch.cat([weight.weight for weight in weights]))  # type: ignore[misc]
    if all(isinstance(weight, Int8Weight) for weight in weights):
        q_OI, scale_O = (torch.cat([getattr(weight, name) for weight in weights]) for name in ("q", "scale"))
        return Int8Weight(q_OI, scale_O, weights[0].dtype)
    return StackedWeight(weights)
