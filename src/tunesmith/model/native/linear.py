"""A frozen linear layer with LoRA folded in, and the activation before it; forward and backward written out.

Shapes: N tokens, I inputs, O outputs, r the rank. A layer may be several of the base's modules side by side
("parts": q, k and v; gate and up), each with an adapter of its own or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.model.dropout import module_salt
from tunesmith.model.native.kernels.activations import gelu, gelu_backward, swiglu, swiglu_backward
from tunesmith.model.native.kernels.dispatch import use_triton
from tunesmith.model.native.kernels.dropout import dropout
from tunesmith.model.native.weights import FrozenWeight, prefers_concat

#: What may stand before a linear layer: (forward, backward). The backward takes the gradient, the input, and
#: where to put the forward's result again.
_ACTIVATIONS: dict[str, Any] = {"gelu": (gelu, gelu_backward), "swiglu": (swiglu, swiglu_backward)}


@dataclass
class Mode:
    """How the whole model runs just now, shared by its layers.

    adapter: whether LoRA is on. dropout_keys_N: each token's, int64, on the device while training with
    dropout, None otherwise. eight_bit: whether layers that have a weight for 8-bit products use it.
    recomputing: a layer runs again for what its backward pass needs; what it gives to the next one is not
    wanted.
    """

    adapter: bool = True
    dropout_keys_N: torch.Tensor | None = None
    eight_bit: bool = False
    recomputing: bool = False

    @contextmanager
    def recompute(self) -> Iterator[None]:
        """While it lasts, layers run for their backward pass alone."""
        self.recomputing = True
        try:
            yield
        finally:
            self.recomputing = False


@dataclass(frozen=True)
class Part:
    """One of the base's modules: its full name there, and which outputs of the layer are its."""

    name: str
    start: int
    stop: int


class Adapter(nn.Module):
    """LoRA on one part (Hu et al. 2021, https://arxiv.org/abs/2106.09685): y += alpha / r * B A dropout(x).

    A [r, I] and B [O, r] learn in fp32. salt: makes its dropout differ from every other's.
    """

    def __init__(self, part: Part, inputs: int, r: int, device: torch.device) -> None:
        super().__init__()
        self.part, self.salt = part, module_salt(part.name)
        self.A = nn.Parameter(torch.zeros(r, inputs, device=device))
        self.B = nn.Parameter(torch.zeros(part.stop - part.start, r, device=device))


class Adapters(nn.Module):
    """The adapters of one layer, R ranks together, as they are multiplied with: in the dtype of the products.

    a_RI: their A below each other. b_OR: alpha / r times their B, each at its outputs and ranks, zero
    elsewhere. So one product serves q, k and v. concat: that product and the base's are one, see
    `weights.prefers_concat`.
    """

    a_RI: torch.Tensor
    b_OR: torch.Tensor

    def __init__(self, weight: FrozenWeight, adapters: list[Adapter], scale: float, dropout: float) -> None:
        super().__init__()
        self.adapters, self.scale, self.dropout = nn.ModuleList(adapters), scale, dropout
        self.each = tuple(adapters)  # the same, with their type
        device, self.r = adapters[0].A.device, adapters[0].A.shape[0]
        ranks = self.r * len(adapters)
        self.concat = prefers_concat(weight, ranks)
        self.register_buffer("a_RI", torch.zeros(ranks, weight.inputs, dtype=weight.dtype, device=device),
                             persistent=False)
        self.register_buffer("b_OR", weight.allocate_b(ranks), persistent=False)

    def learnable(self) -> list[torch.Tensor]:
        """A and B of each adapter in turn."""
        return [matrix for adapter in self.each for matrix in (adapter.A, adapter.B)]

    def slices(self) -> list[tuple[Adapter, slice, slice]]:
        """Each adapter with its ranks and its outputs."""
        return [(adapter, slice(i * self.r, (i + 1) * self.r), slice(adapter.part.start, adapter.part.stop))
                for i, adapter in enumerate(self.each)]


class Linear(nn.Module):
    """x -> activation(x) W^T + bias, with LoRA on some of its parts."""

    def __init__(self, weight: FrozenWeight, bias_O: torch.Tensor | None, parts: list[Part],
                 mode: Mode) -> None:
        super().__init__()
        self.weight, self.parts, self.mode = weight, parts, mode
        self.bias = None if bias_O is None else nn.Parameter(bias_O.to(weight.dtype), requires_grad=False)
        self.lora: Adapters | None = None
        self.eight_bit: FrozenWeight | None = None

    def forward(self, x_NI: torch.Tensor, activation: str | None = None, *,
                last: bool = False) -> torch.Tensor:
        """[N, O]; `activation` is gelu, swiglu (which halves the width of x) or nothing.

        last: nothing of its decoder layer comes after it. While that is recomputed, the result holds nothing.
        """
        call = self._call(activation, last)
        y_NO: torch.Tensor = _Linear.apply(x_NI, call, *(call.lora.learnable() if call.lora else []))
        return y_NO

    def _call(self, activation: str | None = None, last: bool = False) -> _Call:
        lora = self.lora if self.mode.adapter else None
        weight = self.eight_bit if self.eight_bit is not None and self.mode.eight_bit else self.weight
        return _Call(weight, self.bias, lora, activation, self.mode.dropout_keys_N,
                     last and self.mode.recomputing)

    @property
    def spare_columns(self) -> int:
        """How many values it puts behind each row of its input; an input with that many is spared a copy."""
        call = self._call()
        return call.adapters.a_RI.shape[0] if call.concatenates else 0

    def parameter_count(self) -> int:
        """Of the base alone."""
        return self.weight.outputs * (self.weight.inputs + (self.bias is not None))


@dataclass(frozen=True)
class _Call:
    """What one application of a layer is made of, besides its input."""

    weight: FrozenWeight
    bias_O: torch.Tensor | None
    lora: Adapters | None
    activation: str | None
    dropout_keys_N: torch.Tensor | None
    discarded: bool

    @property
    def adapters(self) -> Adapters:
        """Those that are on, where some are."""
        assert self.lora is not None
        return self.lora

    @property
    def dropout_keys(self) -> torch.Tensor:
        """Each token's, where the adapters drop something."""
        assert self.dropout_keys_N is not None
        return self.dropout_keys_N

    @property
    def has_dropout(self) -> bool:
        """Whether the adapters see less than the whole input."""
        return self.dropout_keys_N is not None and self.lora is not None and self.lora.dropout > 0

    @property
    def concatenates(self) -> bool:
        """Whether the adapters' product is one with the base's; dropout, drawn again, needs no gaps."""
        return (self.lora is not None and self.lora.concat and self.activation is None
                and self.weight.can_concat and not self.has_dropout)

    def masks(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Each adapter's dropout as a factor [N, I], where keeping it pays: on a CPU. A GPU draws it again.

        x: any tensor of the N tokens in the dtype of the products.
        """
        if not self.has_dropout or use_triton(x):
            return []
        ones = x.new_ones(len(x), self.weight.inputs)
        lora = self.adapters
        return [dropout(ones, lora.dropout, self.dropout_keys, adapter.salt) for adapter in lora.each]

    def apply_dropout(self, x: torch.Tensor, number: int, masks: Sequence[torch.Tensor]) -> torch.Tensor:
        """The dropout of one adapter; the same places in forward and backward."""
        if masks:
            return x * masks[number]
        return dropout(x, self.adapters.dropout, self.dropout_keys, self.adapters.each[number].salt)

    def down_project(self, h_NI: torch.Tensor, masks: Sequence[torch.Tensor]) -> torch.Tensor:
        """A dropout(h) of every adapter [N, R]."""
        lora = self.adapters
        if not self.has_dropout:
            return h_NI @ lora.a_RI.T
        xa_parts = [self.apply_dropout(h_NI, i, masks) @ lora.a_RI[ranks].T
                    for i, (_, ranks, _) in enumerate(lora.slices())]
        return xa_parts[0] if len(xa_parts) == 1 else torch.cat(xa_parts, dim=1)

    def d_a(self, d_xa_NR: torch.Tensor, h_NI: torch.Tensor,
            masks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The gradient of each A, fp32."""
        slices = self.adapters.slices()
        if not self.has_dropout:
            d_a_RI = matmul_fp32(d_xa_NR.T, h_NI)
            return [d_a_RI[ranks] for _, ranks, _ in slices]
        return [matmul_fp32(d_xa_NR[:, ranks].T, self.apply_dropout(h_NI, i, masks))
                for i, (_, ranks, _) in enumerate(slices)]

    def d_b(self, dy_NO: torch.Tensor, xa_NR: torch.Tensor) -> list[torch.Tensor]:
        """The gradient of each B, fp32."""
        d_b_OR = matmul_fp32(dy_NO.T, xa_NR).mul_(self.adapters.scale)
        return [d_b_OR[outputs, ranks] for _, ranks, outputs in self.adapters.slices()]

    def d_input(self, dy_NO: torch.Tensor, d_xa_NR: torch.Tensor | None,
                masks: Sequence[torch.Tensor]) -> torch.Tensor:
        """The gradient of h, through the base and the adapters."""
        if d_xa_NR is None:
            return self.weight.project_back(dy_NO)
        lora = self.adapters
        if not self.has_dropout:
            return self.weight.project_back(dy_NO, d_xa_NR, lora.a_RI)
        dh_NI = self.weight.project_back(dy_NO)
        for i, (_, ranks, _) in enumerate(lora.slices()):
            dh_NI.add_(self.apply_dropout(d_xa_NR[:, ranks] @ lora.a_RI[ranks], i, masks))
        return dh_NI


def matmul_fp32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b with the result in fp32, whatever a and b are in."""
    if a.dtype == torch.float32:
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else (a @ b).float()


def _concat_xa(x_NI: torch.Tensor, xa_NR: torch.Tensor) -> torch.Tensor:
    """[x, x A^T], in the memory of x where that has spare columns: nobody else reads such an input."""
    tokens, inputs, width = *x_NI.shape, x_NI.shape[1] + xa_NR.shape[1]
    if x_NI.stride() != (width, 1) or x_NI.untyped_storage().nbytes() != tokens * width * x_NI.itemsize:
        return torch.cat([x_NI, xa_NR], dim=1)
    joined_NIR = x_NI.as_strided((tokens, width), (width, 1))
    joined_NIR[:, inputs:] = xa_NR
    return joined_NIR


class _Linear(torch.autograd.Function):
    """The gradient flows to x and to each adapter's A and B; the base's weight is never differentiated."""

    @staticmethod
    def forward(ctx: Any, x_NI: torch.Tensor, call: _Call, *learnable: torch.Tensor) -> torch.Tensor:
        # A frozen layer without an adapter needs its input only to differentiate what stands before it.
        kept_NI = x_NI if call.lora is not None or call.activation else None
        ctx.call = call
        if call.discarded:
            ctx.save_for_backward(kept_NI, None)
            return x_NI.new_empty(len(x_NI), call.weight.outputs)
        h_NI = x_NI if call.activation is None else _ACTIVATIONS[call.activation][0](x_NI)
        if call.lora is None:
            ctx.save_for_backward(kept_NI, None)
            return call.weight.project(h_NI, call.bias_O)
        masks = call.masks(h_NI)
        xa_NR, b_OR = call.down_project(h_NI, masks), call.lora.b_OR
        if call.concatenates:
            joined_NIR = _concat_xa(x_NI, xa_NR)
            inputs = x_NI.shape[1]
            ctx.save_for_backward(joined_NIR[:, :inputs], joined_NIR[:, inputs:])
            return torch.nn.functional.linear(joined_NIR, call.weight.concat_b(b_OR), call.bias_O)
        ctx.save_for_backward(kept_NI, xa_NR, *masks)
        return call.weight.project(h_NI, call.bias_O, xa_NR, b_OR)

    @staticmethod
    def backward(ctx: Any, dy_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call: _Call = ctx.call
        x_NI, xa_NR, *masks = ctx.saved_tensors
        if call.discarded:
            masks = call.masks(dy_NO)
        d_xa_NR = None if call.lora is None else dy_NO @ call.lora.b_OR
        dx_NI = call.d_input(dy_NO, d_xa_NR, masks) if ctx.needs_input_grad[0] else None
        h_NI = x_NI
        if call.activation:
            forward, backward = _ACTIVATIONS[call.activation]
            if dx_NI is None:
                h_NI = forward(x_NI)
            else:  # the gradient of h has served when h is there again, so it gives its place
                h_NI = dx_NI if call.lora is not None else None
                dx_NI = backward(dx_NI, x_NI, h_NI)
        if call.lora is None or d_xa_NR is None:
            return dx_NI, None
        if xa_NR is None:
            xa_NR = call.down_project(h_NI, masks)
        pairs = zip(call.d_a(d_xa_NR, h_NI, masks), call.d_b(dy_NO, xa_NR), strict=True)
        return dx_NI, None, *(grad for pair in pairs for grad in pair)
