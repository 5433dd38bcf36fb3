"""Dropout whose mask is a pure function of (seed, salt, position): nothing is stored, and every device draws the same.

The mask hashes each element's flat index with two rounds of lowbias32, a 32-bit mixer that Christopher Wellons
searched for the lowest bias (hash-prospector, https://github.com/skeeto/hash-prospector, public domain).
Between the rounds come two 32-bit keys: for a given salt, the 64-bit seed and the pair of keys are one to one.

    key_1 = mix(low(seed) ^ mix(salt + g))       key_2 = mix(key_1 + (high(seed) ^ mix(mix(salt + g) + g)))
    hash  = mix(mix(low(index) ^ key_1) ^ key_2 ^ mix(high(index)))       kept where hash >= floor(p * 2**32)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tunesmith.model.native.kernels.dispatch import power_of_two, use_triton

#: lowbias32's two multipliers, and 2**32 over the golden ratio: mix(0) is 0, which this keeps the salt 0 away from.
MULTIPLIER_1, MULTIPLIER_2, _GOLDEN = 0x7FEB352D, 0x846CA68B, 0x9E3779B9
_STEPS = ((16, MULTIPLIER_1), (15, MULTIPLIER_2))
_MASK = 0xFFFFFFFF
#: Elements hashed at once: few enough for a core's cache on CPU, many enough to fill a GPU. Powers of two, so that a
#: chunk's indices share their high 32 bits.
_CHUNK_CPU, _CHUNK_GPU = 1 << 17, 1 << 24

#: From a chunk's first index and its size to a bool tensor that says what is dropped, good until the next call.
Masks = Callable[[int, int], torch.Tensor]


def dropout(x_NC: torch.Tensor, p: float, seed: torch.Tensor, salt: int) -> torch.Tensor:
    """x / (1 - p) where kept, else 0, in x's dtype; x itself where p is 0. Its backward pass is itself on the gradient.

    p: the share that is dropped, 0 <= p < 1. seed: int64, one element, on x's device, where it is also read: a CUDA
    graph that is replayed with another seed draws another mask. salt: tells apart the places that share a seed,
    0 <= salt < 2**32. Raises ValueError where p or salt is outside its range.
    """
    if not 0 <= p < 1:
        raise ValueError(f"the dropout probability must be in [0, 1), but is {p}")
    if p == 0:
        return x_NC
    if use_triton(x_NC):
        from tunesmith.model.native.kernels.dropout_triton import dropout_triton

        return dropout_triton(x_NC, p, seed, salt)
    return dropout_plain(x_NC, p, seed, salt)


def threshold(p: float) -> int:
    """floor(p * 2**32): hashes below it are dropped."""
    return int(p * 2**32)


def salt_keys(salt: int) -> tuple[int, int]:
    """What the salt adds to the two keys, as signed 32-bit numbers."""
    if not 0 <= salt <= _MASK:
        raise ValueError(f"the dropout salt must be in [0, 2**32), but is {salt}")
    first = mix((salt + _GOLDEN) & _MASK)
    return _signed(first), _signed(mix((first + _GOLDEN) & _MASK))


def mix(h: int) -> int:
    """lowbias32 of an unsigned 32-bit number."""
    h = (h ^ h >> 16) * MULTIPLIER_1 & _MASK
    h = (h ^ h >> 15) * MULTIPLIER_2 & _MASK
    return h ^ h >> 16


def dropout_plain(x_NC: torch.Tensor, p: float, seed: torch.Tensor, salt: int) -> torch.Tensor:
    """`dropout` in plain torch, with 0 < p < 1; on CPU the hashes are numpy's, which is quicker there (`_numpy_masks`)."""
    y_NC = torch.empty_like(x_NC, memory_format=torch.contiguous_format)
    x, y, count = x_NC.reshape(-1), y_NC.view(-1), x_NC.numel()
    most, masks = (_CHUNK_CPU, _numpy_masks) if x.device.type == "cpu" else (_CHUNK_GPU, _torch_masks)
    chunk = min(most, power_of_two(count))
    dropped = masks(chunk, p, seed, salt)
    for start in range(0, count, chunk):
        part = slice(start, min(start + chunk, count))
        torch.mul(x[part], 1 / (1 - p), out=y[part])
        y[part].masked_fill_(dropped(start, part.stop - start), 0)
    return y_NC


def _numpy_masks(chunk: int, p: float, seed: torch.Tensor, salt: int) -> Masks:
    """The masks in numpy, for a seed on CPU. Unlike torch it has unsigned shifts, and its calls cost little, which is
    most of what a small tensor takes."""
    salt_1, salt_2 = salt_keys(salt)
    value = int(seed)
    key_1 = mix((value ^ salt_1) & _MASK)
    key_2 = mix(key_1 + (value >> 32 ^ salt_2) & _MASK)
    # uint32 scalars, without which numpy would go on in 64 bits.
    limit = np.uint32(threshold(p))
    index = np.arange(chunk, dtype=np.uint32)
    hashes, spare, mask = np.empty_like(index), np.empty_like(index), np.empty_like(index, dtype=np.bool_)

    def dropped(start: int, size: int) -> torch.Tensor:
        h, other = hashes[:size], spare[:size]
        np.bitwise_xor(index[:size], np.uint32(key_1 ^ start & _MASK), out=h)
        _numpy_mix_(h, other)
        np.bitwise_xor(h, np.uint32(key_2 ^ mix(start >> 32)), out=h)
        _numpy_mix_(h, other)
        return torch.from_numpy(np.less(h, limit, out=mask[:size]))

    return dropped


def _numpy_mix_(h: np.ndarray, spare: np.ndarray) -> None:
    """lowbias32 in place on uint32; `spare` is overwritten."""
    for shift, multiplier in _STEPS:
        np.bitwise_xor(h, np.right_shift(h, np.uint32(shift), out=spare), out=h)
        np.multiply(h, np.uint32(multiplier), out=h)
    np.bitwise_xor(h, np.right_shift(h, np.uint32(16), out=spare), out=h)


def _torch_masks(chunk: int, p: float, seed: torch.Tensor, salt: int) -> Masks:
    """The masks in torch's int32, whose products wrap, for any device; the seed stays there."""
    salt_1, salt_2 = salt_keys(salt)
    low, high = seed.view(1).view(torch.int32).unbind()  # little-endian, as all that torch runs on
    key_1 = _torch_mix(low ^ salt_1)
    key_2 = _torch_mix(key_1 + (high ^ salt_2))
    index = torch.arange(chunk, dtype=torch.int32, device=seed.device)
    # Signed numbers compare as unsigned ones once both have their highest bit flipped.
    limit = threshold(p) - 2**31

    def dropped(start: int, size: int) -> torch.Tensor:
        h = _torch_mix(index[:size] ^ (key_1 ^ _signed(start & _MASK)))
        h = _torch_mix(h ^ (key_2 ^ _signed(mix(start >> 32))))
        return (h ^ -(2**31)) < limit

    return dropped


def _torch_mix(h: torch.Tensor) -> torch.Tensor:
    """lowbias32 on int32. torch's shift brings in copies of the sign from the left, which are cut off again."""
    for shift, multiplier in _STEPS:
        h = (h ^ (h >> shift & (1 << 32 - shift) - 1)) * _signed(multiplier)
    return h ^ (h >> 16 & 0xFFFF)


def _signed(value: int) -> int:
    """The signed 32-bit number with the bits of an unsigned one."""
    return value - 2**32 if value >= 2**31 else value
