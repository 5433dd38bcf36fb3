"""The MLP's activations, forward and backward: BLOOM's GELU and Llama's SwiGLU.

N tokens, C channels, I the MLP's width (2I: gate and up side by side). Arithmetic is in fp32; results have
the input's dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tunesmith.model.native.kernels.dispatch import use_triton


def gelu(h_NC: torch.Tensor) -> torch.Tensor:
    """BLOOM's tanh approximation: 0.5 h (1 + tanh(0.79788456 h (1 + 0.044715 h²))).

    Hendrycks and Gimpel 2016 (https://arxiv.org/abs/1606.08415), section 2.
    """
    if use_triton(h_NC):
        from tunesmith.model.native.kernels.activations_triton import gelu_triton

        return gelu_triton(h_NC)
    return gelu_plain(h_NC)


def gelu_backward(da_NC: torch.Tensor, h_NC: torch.Tensor,
                  recomputed_NC: torch.Tensor | None = None) -> torch.Tensor:
    """The gradient [N, C] with respect to gelu's input h_NC, from the gradient da_NC of its output.

    recomputed_NC: where given it is filled with gelu(h_NC) on the way; it may be da_NC itself, which is then
    overwritten.
    """
    if use_triton(h_NC):
        from tunesmith.model.native.kernels.activations_triton import gelu_backward_triton

        return gelu_backward_triton(da_NC, h_NC, recomputed_NC)
    return gelu_backward_plain(da_NC, h_NC, recomputed_NC)


def swiglu(gate_up_N2I: torch.Tensor) -> torch.Tensor:
    """silu(the first half of the columns) times the second half [N, I] (https://arxiv.org/abs/2002.05202)."""
    if use_triton(gate_up_N2I):
        from tunesmith.model.native.kernels.activations_triton import swiglu_triton

        return swiglu_triton(gate_up_N2I)
    return swiglu_plain(gate_up_N2I)


def swiglu_backward(da_NI: torch.Tensor, gate_up_N2I: torch.Tensor,
                    recomputed_NI: torch.Tensor | None = None) -> torch.Tensor:
    """The gradient [N, 2I] with respect to swiglu's input, from the gradient da_NI of its output.

    recomputed_NI: where given it is filled with swiglu(gate_up_N2I) on the way; it may be da_NI itself, which
    is then overwritten.
    """
    if use_triton(gate_up_N2I):
        from tunesmith.model.native.kernels.activations_triton import swiglu_backward_triton

        return swiglu_backward_triton(da_NI, gate_up_N2I, recomputed_NI)
    return swiglu_backward_plain(da_NI, gate_up_N2I, recomputed_NI)


def gelu_plain(h_NC: torch.Tensor) -> torch.Tensor:
    """`gelu` in plain torch, whose own fused form has the same constants to more digits than fp32 holds."""
    return F.gelu(h_NC, approximate="tanh")


def gelu_backward_plain(da_NC: torch.Tensor, h_NC: torch.Tensor,
                        recomputed_NC: torch.Tensor | None = None) -> torch.Tensor:
    """`gelu_backward` in plain torch."""
    dh_NC: torch.Tensor = torch.ops.aten.gelu_backward(da_NC, h_NC, approximate="tanh")
    if recomputed_NC is not None:
        recomputed_NC.copy_(gelu_plain(h_NC))
    return dh_NC


def swiglu_plain(gate_up_N2I: torch.Tensor) -> torch.Tensor:
    """`swiglu` in plain torch."""
    gate_NI, up_NI = gate_up_N2I.chunk(2, dim=1)
    return F.silu(gate_NI.float()).mul_(up_NI).to(gate_up_N2I.dtype)


def swiglu_backward_plain(da_NI: torch.Tensor, gate_up_N2I: torch.Tensor,
                          recomputed_NI: torch.Tensor | None = None) -> torch.Tensor:
    """`swiglu_backward` in plain torch."""
    gate_NI, up_NI = (half_NI.float() for half_NI in gate_up_N2I.chunk(2, dim=1))
    d_gate_up_N2I = torch.empty_like(gate_up_N2I)
    d_gate_NI, d_up_NI = d_gate_up_N2I.chunk(2, dim=1)
    d_NI, silu_NI = da_NI.float(), F.silu(gate_NI)
    d_gate_NI.copy_(torch.ops.aten.silu_backward(d_NI * up_NI, gate_NI))
    d_up_NI.copy_(silu_NI * d_NI)
    if recomputed_NI is not None:
        recomputed_NI.copy_(silu_NI.mul_(up_NI))
    return d_gate_up_N2I
