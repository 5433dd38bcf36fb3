"""Frozen, quantised weights back to floats: int8 with a scale a row, bitsandbytes' double-quantised nf4.

O output features, I input features.
"""

from __future__ import annotations

import torch

from tunesmith.model.native.kernels.dispatch import use_triton
from tunesmith.model.native.kernels.formats import NF4_BLOCK, NF4_NESTED, Nf4Absmax

#: Values worked on at once in plain torch, a multiple of NF4_BLOCK: 1 MiB in fp32, which stays in a core's
#: cache.
_CHUNK = 1 << 18


def dequantize_int8(q_OI: torch.Tensor, scale_O: torch.Tensor, out_OI: torch.Tensor) -> torch.Tensor:
    """Write q * scale into out_OI (any float dtype) and return it. q_OI: int8. scale_O: fp32, absmax / 127.

    The rows of out_OI may have gaps between them.
    """
    if use_triton(q_OI):
        from tunesmith.model.native.kernels.dequantize_triton import dequantize_int8_triton

        return dequantize_int8_triton(q_OI, scale_O, out_OI)
    return dequantize_int8_plain(q_OI, scale_O, out_OI)


def dequantize_nf4(packed: torch.Tensor, code_16: torch.Tensor, absmax: Nf4Absmax,
                   out_OI: torch.Tensor) -> torch.Tensor:
    """Write code_16[nibble] * its block's absmax into out_OI (fp32, bf16 or fp16) and return it.

    packed: uint8, two values to a byte over the flattened weight, the high nibble first. code_16: fp32.
    The rows of out_OI may have gaps between them.
    """
    if out_OI.stride(0) != out_OI.shape[1] and (out_OI.shape[1] % NF4_BLOCK or not use_triton(packed)):
        whole_OI = torch.empty(out_OI.shape, dtype=out_OI.dtype, device=out_OI.device)
        return out_OI.copy_(dequantize_nf4(packed, code_16, absmax, whole_OI))
    if use_triton(packed):
        from tunesmith.model.native.kernels.dequantize_triton import dequantize_nf4_triton

        return dequantize_nf4_triton(packed, code_16, absmax, out_OI)
    return dequantize_nf4_plain(packed, code_16, absmax, out_OI)


def dequantize_int8_plain(q_OI: torch.Tensor, scale_O: torch.Tensor, out_OI: torch.Tensor) -> torch.Tensor:
    """`dequantize_int8` in plain torch, some rows at a time: torch copies what it multiplies to fp32."""
    step = max(1, _CHUNK // q_OI.shape[1])
    for start in range(0, q_OI.shape[0], step):
        part = slice(start, start + step)
        torch.mul(q_OI[part], scale_O[part, None], out=out_OI[part])
    return out_OI


def dequantize_nf4_plain(packed: torch.Tensor, code_16: torch.Tensor, absmax: Nf4Absmax,
                         out_OI: torch.Tensor) -> torch.Tensor:
    """`dequantize_nf4` in plain torch, some blocks at a time."""
    block = torch.arange(absmax.q.numel(), device=packed.device)
    absmax_B = absmax.code_256[absmax.q.int()] * absmax.nested[block // NF4_NESTED] + absmax.offset
    byte = torch.arange(256, device=packed.device)
    # Both values of each byte, looked up at once as one 8-byte number.
    pairs = torch.stack([code_16[byte >> 4], code_16[byte & 15]], dim=1).view(torch.int64).view(-1)
    packed, out = packed.view(-1), out_OI.view(-1)
    for start in range(0, out.numel(), _CHUNK):
        values = pairs.index_select(0, packed[start // 2:(start + _CHUNK) // 2].int()).view(torch.float32)
        part = out[start:start + _CHUNK]
        scale_B1 = absmax_B[start // NF4_BLOCK:(start + _CHUNK) // NF4_BLOCK, None]
        whole = part.numel() // NF4_BLOCK * NF4_BLOCK
        torch.mul(values[:whole].view(-1, NF4_BLOCK), scale_B1[:whole // NF4_BLOCK],
                  out=part[:whole].view(-1, NF4_BLOCK))
        # the weight's last block is not full; nor, with an odd number of values, its last byte
        if whole < part.numel():
            torch.mul(values[whole:part.numel()], scale_B1[-1], out=part[whole:])
    return out_OI
