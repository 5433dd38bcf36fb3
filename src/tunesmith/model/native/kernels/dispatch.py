"""Whether a tensor's kernel runs in Triton or as its plain-torch twin, and what the launchers share."""

from __future__ import annotations

import functools

import torch

#: The oldest CUDA compute capability that the Triton kernels run on (Ampere: the first with bf16).
_OLDEST = (8, 0)


def use_triton(tensor: torch.Tensor) -> bool:
    """True where the Triton kernel is to run: a CUDA tensor, Ampere or newer, with Triton importable."""
    return tensor.is_cuda and _has_triton() and _new_enough(tensor.device.index)


@functools.cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


@functools.cache
def _new_enough(index: int) -> bool:
    return torch.cuda.get_device_capability(index) >= _OLDEST


def power_of_two(count: int) -> int:
    """The least power of two that is no less than `count`."""
    return 1 << max(0, count - 1).bit_length()


def warps(elements: int, *, per_warp: int = 256, most: int = 16) -> int:
    """How many warps (of 32 threads) work on a block of `elements`, a power of two; one to `most`.

    256 elements are eight to a thread: one 16-byte load each of bf16 or fp16.
    """
    return max(1, min(most, elements // per_warp))


def row_block(columns: int) -> tuple[int, bool]:
    """(the block in which a program takes a row, whether the row fits into it).

    A program of 16 warps holds a row of up to 32,768 values in its registers, 64 to a thread; wider ones come
    in pieces.
    """
    return (power_of_two(columns), True) if columns <= 32768 else (4096, False)


def require_contiguous(*tensors: torch.Tensor | None) -> None:
    """Raise ValueError for a tensor with gaps or transposed: the kernels address bare memory."""
    for tensor in tensors:
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"a kernel was given a tensor {tuple(tensor.shape)} with strides "
                             f"{tensor.stride()}; it must be contiguous")
