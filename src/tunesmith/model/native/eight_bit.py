"""8-bit products for training on frozen weights, in both directions: `train.matmul: fp8`.

Only products with the base's weights are in 8 bits; LoRA, norms, attention and the head are as ever, and so is judging.
Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import torch

from tunesmith.model.native.kernels.fp8 import cast_weight, quantise_rows, scaled_product
from tunesmith.model.native.weights import FrozenWeight, Int8Weight, frozen

#: What the GPU's fp8 products ask of both widths.
_MULTIPLE = 16


class Fp8Weight(FrozenWeight):
    """Multiplies an exact weight in fp8: one scale a token for what comes in, one an output for the weight.

    Forward: y = (x_q W_q^T) s_x s_W. Backward: dX = ((dY s_W)_q W_q) s_dY, so one set of rounded weights serves both.
    They are made for each product from the weight as it is kept, which stays the only copy. int8 values are taken as
    they are, with their own scale.
    """

    def __init__(self, exact: FrozenWeight) -> None:
        super().__init__(exact.outputs, exact.inputs, exact.dtype)
        # Not a submodule: it is one of the layer's already.
        self._exact = [exact]
        if isinstance(exact, Int8Weight):
            self.scale = exact.scale
        else:
            self.scale = frozen((exact.dense().abs().amax(dim=1).float() / 448).clamp_min(1e-12))
        self.register_buffer("ones", torch.ones(1, exact.inputs, device=self.scale.device), persistent=False)

    def _rounded(self, transposed: bool) -> torch.Tensor:
        exact = self._exact[0]
        if isinstance(exact, Int8Weight):
            return cast_weight(exact.q, None, transposed=transposed)
        return cast_weight(exact.dense(), self.scale, transposed=transposed)

    def project(self, x_NI: torch.Tensor, bias_O: torch.Tensor | None, low_NR: torch.Tensor | None = None,
                b_OR: torch.Tensor | None = None) -> torch.Tensor:
        """x W^T + bias + low b^T."""
        x_q, scale_N1 = quantise_rows(x_NI, None)
        y_NO = scaled_product(x_q, scale_N1, self._rounded(False), self.scale[None], self.dtype)
        if low_NR is not None:
            y_NO.addmm_(low_NR, b_OR.T)
        return y_NO if bias_O is None else y_NO.add_(bias_O)

    def project_back(self, dy_NO: torch.Tensor, dlow_NR: torch.Tensor | None = None,
                     a_RI: torch.Tensor | None = None) -> torch.Tensor:
        """dY W + dlow a."""
        dy_q, scale_N1 = quantise_rows(dy_NO.contiguous(), self.scale)
        dx_NI = scaled_product(dy_q, scale_N1, self._rounded(True), self.ones, self.dtype)
        return dx_NI if dlow_NR is None else dx_NI.addmm_(dlow_NR, a_RI)


def fits_fp8(weight: FrozenWeight) -> bool:
    """Whether both widths are what the products ask for; other layers stay exact."""
    return weight.outputs % _MULTIPLE == 0 and weight.inputs % _MULTIPLE == 0
