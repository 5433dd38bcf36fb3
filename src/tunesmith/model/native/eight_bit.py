"""8-bit products in the backward pass through frozen weights: `train.matmul: fp8`.

Only the gradient's products with the base's weights are in 8 bits. The forward pass, LoRA, norms, attention,
the head and judging are as ever: with activations rounded to fp8 as well, single LoRA gradients of small
trained bases fell to a cosine of 0.974 against the exact ones, with the gradient alone none falls below 0.997
(benchmarks/eight_bit_quality.py). Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import torch

from tunesmith.model.native.kernels.formats import FP8_LARGEST
from tunesmith.model.native.kernels.fp8 import cast_weight, quantise_rows, scaled_product
from tunesmith.model.native.weights import FrozenWeight, frozen

#: What the GPU's fp8 products ask of both widths.
_MULTIPLE = 16


class Fp8Weight(FrozenWeight):
    """An exact weight whose `project_back` is in fp8: dX = ((dY s)_q W_q) s_dY with W = W_q s.

    s has one value an output and is taken into dY, which then gets one scale a token. W_q is made for each
    product from the weight as it is kept, which stays the only copy; int8 values are taken as they are, with
    their own scale.
    """

    ones: torch.Tensor

    def __init__(self, exact: FrozenWeight) -> None:
        super().__init__(exact.outputs, exact.inputs, exact.dtype)
        # Not a submodule: it is one of the layer's already.
        self._exact = [exact]
        if rows := exact.int8_rows():
            self.scale = rows[1]
        else:
            self.scale = frozen((exact.dense().abs().amax(dim=1).float() / FP8_LARGEST).clamp_min(1e-12))
        self.register_buffer("ones", torch.ones(1, exact.inputs, device=self.scale.device), persistent=False)

    def project(self, x_NI: torch.Tensor, bias_O: torch.Tensor | None, xa_NR: torch.Tensor | None = None,
                b_OR: torch.Tensor | None = None) -> torch.Tensor:
        """x W^T + bias + (x A^T) b^T, exact."""
        return self._exact[0].project(x_NI, bias_O, xa_NR, b_OR)

    def concat_b(self, b_OR: torch.Tensor) -> torch.Tensor:
        """[W b], exact."""
        return self._exact[0].concat_b(b_OR)

    def project_back(self, dy_NO: torch.Tensor, d_xa_NR: torch.Tensor | None = None,
                     a_RI: torch.Tensor | None = None) -> torch.Tensor:
        """dY W + d(x A^T) a, the first in fp8."""
        exact = self._exact[0]
        if rows := exact.int8_rows():
            w_IO = cast_weight(rows[0], None, transposed=True)
        else:
            w_IO = cast_weight(exact.dense(), self.scale, transposed=True)
        dy_q, scale_N1 = quantise_rows(dy_NO.contiguous(), self.scale)
        dx_NI = scaled_product(dy_q, scale_N1, w_IO, self.ones, self.dtype)
        return dx_NI if d_xa_NR is None or a_RI is None else dx_NI.addmm_(d_xa_NR, a_RI)


def fits_fp8(weight: FrozenWeight) -> bool:
    """Whether both widths are what the products ask for; other layers stay exact."""
    return weight.outputs % _MULTIPLE == 0 and weight.inputs % _MULTIPLE == 0
