"""int8 products for training on frozen weights, in both directions: `train.matmul: int8`.

Only products with the base's weights are in 8 bits; LoRA, norms, attention and the head are as ever, and so
is judging. A few columns of the activations are far greater than the others and would leave these nothing of
a token's scale; they are multiplied exactly (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339, section
3.2). The paper looks for them in each batch, which needs the host; they are the same columns all through
training, so here the first batches tell. Shapes: N tokens, I inputs, O outputs, K columns kept apart.
"""

from __future__ import annotations

import torch

from tunesmith.model.native.kernels.formats import INT8_LARGEST
from tunesmith.model.native.kernels.int8_matmul import (
    int8_product,
    quantise_rows_int8,
    quantise_weight_int8,
    transpose_int8,
)
from tunesmith.model.native.weights import FrozenWeight, frozen

#: Forward passes that `settle` is to wait for.
CALIBRATION_PASSES = 4
#: A column with a greater value is kept apart: the paper's threshold.
THRESHOLD = 6.0
#: At most so many columns are.
_MOST_COLUMNS = 128
#: What the products ask of both widths, and of the number of columns kept apart.
_MULTIPLE = 16


class Int8Products(FrozenWeight):
    """Multiplies an exact weight in int8: one scale a token for what comes in, one an output for the weight.

    Forward: y = (x_q W_q^T) s_x s_W, and the columns kept apart x_K W_K^T. Backward: dX = ((dY s_W)_q W_q)
    s_dY, so one set of rounded weights serves both. int8 values are taken as they are, with their own scale;
    others are rounded for each product from the weight as it is kept, which stays the only copy.

    Until `settle`, products are exact, and forward passes note the greatest value of each column.
    """

    #: `project` is another product than that of the exact weight.
    can_concat = False
    largest_I: torch.Tensor
    columns: torch.Tensor
    dropped_I: torch.Tensor | None
    w_outlier: torch.Tensor | None

    def __init__(self, exact: FrozenWeight) -> None:
        super().__init__(exact.outputs, exact.inputs, exact.dtype)
        # Not a submodule: it is one of the layer's already.
        self._exact = [exact]
        if rows := exact.int8_rows():
            self.scale = rows[1]
        else:
            self.scale = frozen((exact.dense().abs().amax(dim=1).float() / INT8_LARGEST).clamp_min(1e-12))
        self.passes, self.settled = 0, False
        device = self.scale.device
        self.register_buffer("largest_I", torch.zeros(exact.inputs, device=device), persistent=False)
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int64, device=device), persistent=False)
        self.register_buffer("dropped_I", None, persistent=False)
        self.register_buffer("w_outlier", None, persistent=False)

    @property
    def calibrated(self) -> bool:
        """Whether enough forward passes were seen for `settle`."""
        return self.passes >= CALIBRATION_PASSES

    @torch.no_grad()
    def settle(self) -> None:
        """End the calibration: choose the columns to keep apart. Waits for the device, so not within a graph.

        They are those beyond THRESHOLD, the greatest 128 at most, filled up with the next to a multiple of
        16. A second call changes nothing.
        """
        if self.settled:
            return
        self.settled = True
        outliers = min(int((self.largest_I > THRESHOLD).sum()), _MOST_COLUMNS)
        if outliers == 0:
            return
        count = -(-outliers // _MULTIPLE) * _MULTIPLE
        self.columns = self.largest_I.topk(min(count, self.inputs)).indices.sort().values
        self.dropped_I = torch.zeros(self.inputs, dtype=torch.bool, device=self.columns.device)
        self.dropped_I[self.columns] = True
        self.w_outlier = self._exact[0].dense()[:, self.columns].contiguous()

    def _quantised_weight(self, transposed: bool) -> torch.Tensor:
        exact = self._exact[0]
        if rows := exact.int8_rows():
            return transpose_int8(rows[0]) if transposed else rows[0]
        return quantise_weight_int8(exact.dense(), self.scale, transposed=transposed)

    def _calibrate(self, x_NI: torch.Tensor) -> None:
        self.passes += 1
        greatest_I = torch.linalg.vector_norm(x_NI, float("inf"), dim=0)
        torch.maximum(self.largest_I, greatest_I.float(), out=self.largest_I)

    def project(self, x_NI: torch.Tensor, bias_O: torch.Tensor | None, xa_NR: torch.Tensor | None = None,
                b_OR: torch.Tensor | None = None) -> torch.Tensor:
        """x W^T + bias + (x A^T) b^T."""
        if not self.settled:
            self._calibrate(x_NI.detach())
            return self._exact[0].project(x_NI, bias_O, xa_NR, b_OR)
        x_q, scale_N = quantise_rows_int8(x_NI.contiguous(), None, self.dropped_I)
        if self.w_outlier is not None:
            # What is kept apart has few columns, as LoRA has: both go along with the large product.
            xa_NR, b_OR = _concat_pairs(xa_NR, b_OR, x_NI[:, self.columns], self.w_outlier)
        b_OR = None if b_OR is None else b_OR.contiguous()
        return int8_product(x_q, scale_N, self._quantised_weight(False), self.scale, bias_O, self.dtype,
                            xa_NR, b_OR)

    def project_back(self, dy_NO: torch.Tensor, d_xa_NR: torch.Tensor | None = None,
                     a_RI: torch.Tensor | None = None) -> torch.Tensor:
        """dY W + d(x A^T) a."""
        if not self.settled:
            return self._exact[0].project_back(dy_NO, d_xa_NR, a_RI)
        dy_q, scale_N = quantise_rows_int8(dy_NO.contiguous(), self.scale)
        return int8_product(dy_q, scale_N, self._quantised_weight(True), None, None, self.dtype, d_xa_NR,
                            None if a_RI is None else a_RI.T)


def _concat_pairs(xa_NR: torch.Tensor | None, b_OR: torch.Tensor | None, x_NK: torch.Tensor,
                  w_OK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two pairs as one: the products of [x A^T, x] and [b, w] are the sums of both."""
    if xa_NR is None or b_OR is None:
        return x_NK, w_OK
    return torch.cat([xa_NR, x_NK], dim=1), torch.cat([b_OR, w_OK], dim=1)


def fits_int8(weight: FrozenWeight) -> bool:
    """Whether both widths are what the products ask for; other layers stay exact."""
    return weight.outputs % _MULTIPLE == 0 and weight.inputs % _MULTIPLE == 0
