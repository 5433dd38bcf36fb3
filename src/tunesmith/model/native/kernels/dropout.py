"""Dropout whose mask is a pure function of (token's key, module's salt, channel): nothing is stored.

A token's key is hashed from the seed of its sample and its place there (`model.dropout`), so that a mask
depends neither on how a step is cut into micro-batches nor on what stands beside the sample, and every device
draws the same.

The mask hashes a channel's number with two rounds of lowbias32, a 32-bit mixer that Christopher Wellons
searched for the lowest bias (hash-prospector, https://github.com/skeeto/hash-prospector, public domain).
Between the rounds come two 32-bit keys: for a given salt, the token's 64-bit key and the pair of keys are one
to one.

    key_1 = mix(low(key) ^ mix(salt + g))        key_2 = mix(key_1 + (high(key) ^ mix(mix(salt + g) + g)))
    hash  = mix(mix(channel ^ key_1) ^ key_2)    kept where hash >= floor(p * 2**32)
"""

from __future__ import annotations

import numpy as np
import torch

from tunesmith.model.native.kernels.dispatch import use_triton
from tunesmith.model.native.kernels.dropout_hash import (
    MASK_32,
    MULTIPLIER_1,
    MULTIPLIER_2,
    salt_keys,
    signed,
    threshold,
)

_STEPS = ((16, MULTIPLIER_1), (15, MULTIPLIER_2))
#: Elements hashed at once: few enough for a core's cache on a CPU, many enough to fill a GPU.
_CHUNK_CPU, _CHUNK_GPU = 1 << 17, 1 << 24


def dropout(x_NC: torch.Tensor, p: float, keys_N: torch.Tensor, salt: int) -> torch.Tensor:
    """x / (1 - p) where kept, else 0, in x's dtype; x itself where p is 0. Its own backward pass, on dy.

    p: the share that is dropped, 0 <= p < 1. keys_N: each token's key, int64, on x's device, where they are
    also read: a CUDA graph that is replayed with other keys draws another mask. salt: tells apart the modules
    that see the same tokens, 0 <= salt < 2**32. Raises ValueError where p or salt is outside its range.
    """
    if not 0 <= p < 1:
        raise ValueError(f"the dropout probability must be in [0, 1), but is {p}")
    if p == 0:
        return x_NC
    if use_triton(x_NC):
        from tunesmith.model.native.kernels.dropout_triton import dropout_triton

        return dropout_triton(x_NC, p, keys_N, salt)
    return dropout_plain(x_NC, p, keys_N, salt)


def dropout_plain(x_NC: torch.Tensor, p: float, keys_N: torch.Tensor, salt: int) -> torch.Tensor:
    """`dropout` in plain torch, with 0 < p < 1; on a CPU the hashes are numpy's (`_numpy_mask`)."""
    y_NC = torch.empty_like(x_NC, memory_format=torch.contiguous_format)
    rows, columns = x_NC.shape
    on_cpu = x_NC.device.type == "cpu"
    step = max(1, (_CHUNK_CPU if on_cpu else _CHUNK_GPU) // max(1, columns))
    mask = _numpy_mask if on_cpu else _torch_mask
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        torch.mul(x_NC[part], 1 / (1 - p), out=y_NC[part])
        y_NC[part].masked_fill_(mask(keys_N[part], columns, p, salt), 0)
    return y_NC


def _numpy_mask(keys_N: torch.Tensor, columns: int, p: float, salt: int) -> torch.Tensor:
    """What is dropped [N, C], in numpy, for keys on a CPU. Unlike torch it has unsigned shifts, and its calls
    cost little, which is most of what a small tensor takes.
    """
    salt_1, salt_2 = salt_keys(salt)
    keys = keys_N.numpy().view(np.uint64)
    spare = np.empty(len(keys), dtype=np.uint32)
    key_1 = keys.astype(np.uint32) ^ np.uint32(salt_1 & MASK_32)
    _numpy_mix_(key_1, spare)
    key_2 = key_1 + ((keys >> np.uint64(32)).astype(np.uint32) ^ np.uint32(salt_2 & MASK_32))
    _numpy_mix_(key_2, spare)
    hashes = np.bitwise_xor(np.arange(columns, dtype=np.uint32), key_1[:, None])
    spare = np.empty_like(hashes)
    _numpy_mix_(hashes, spare)
    np.bitwise_xor(hashes, key_2[:, None], out=hashes)
    _numpy_mix_(hashes, spare)
    return torch.from_numpy(np.less(hashes, np.uint32(threshold(p))))


def _numpy_mix_(h: np.ndarray, spare: np.ndarray) -> None:
    """lowbias32 in place on uint32; `spare` is overwritten."""
    for shift, multiplier in _STEPS:
        np.bitwise_xor(h, np.right_shift(h, np.uint32(shift), out=spare), out=h)
        np.multiply(h, np.uint32(multiplier), out=h)
    np.bitwise_xor(h, np.right_shift(h, np.uint32(16), out=spare), out=h)


def _torch_mask(keys_N: torch.Tensor, columns: int, p: float, salt: int) -> torch.Tensor:
    """What is dropped [N, C], in torch's int32, whose products wrap, for any device; the keys stay there."""
    salt_1, salt_2 = salt_keys(salt)
    # little-endian, as all that torch runs on
    low_32, high_32 = keys_N.contiguous().view(torch.int32).view(-1, 2).unbind(1)
    key_1 = _torch_mix(low_32 ^ salt_1)
    key_2 = _torch_mix(key_1 + (high_32 ^ salt_2))
    columns_C = torch.arange(columns, dtype=torch.int32, device=keys_N.device)
    h = _torch_mix(_torch_mix(columns_C ^ key_1[:, None]) ^ key_2[:, None])
    # Signed numbers compare as unsigned ones once both have their highest bit flipped.
    return (h ^ -(2**31)) < threshold(p) - 2**31


def _torch_mix(h: torch.Tensor) -> torch.Tensor:
    """lowbias32 on int32. torch's shift brings in copies of the sign, which are cut off again."""
    for shift, multiplier in _STEPS:
        h = (h ^ (h >> shift & (1 << 32 - shift) - 1)) * signed(multiplier)
    return h ^ (h >> 16 & 0xFFFF)
