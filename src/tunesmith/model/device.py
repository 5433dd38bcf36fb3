"""Where a base is put and what it computes in, whichever engine holds it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunesmith.errors import EnvironmentFault
from tunesmith.model.files import BaseFiles

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str) -> str:
    """`auto` as cuda where there is one, else cpu. Raises EnvironmentFault when a GPU is asked for and missing."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise EnvironmentFault(f"model.device: {device}, but torch sees no CUDA GPU here",
                                   "Set model.device to auto or cpu; `tunesmith doctor` says what this machine has.")
        index = int(device.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise EnvironmentFault(f"model.device: {device}, but this machine has {torch.cuda.device_count()} GPUs",
                                   "They count from cuda:0.")
    return device


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """`auto` as float32 on CPU, bfloat16 on a GPU that has it, else float16."""
    if dtype != "auto":
        return _DTYPES[dtype]
    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


#: The share of its 16-bit size that a base takes up, by how it is kept.
_SHARES = {"none": 1.0, "int8": 0.6, "nf4": 0.35}


def needed_bytes(base: BaseFiles, quantization: str) -> float:
    """About how much memory a base takes, with as much again for the work; files are taken to be 16 bits."""
    return 2 * _SHARES[quantization] * base.weight_bytes()


def one_gpu_holds(base: BaseFiles, quantization: str) -> bool:
    """Whether the first GPU has room for the base."""
    return needed_bytes(base, quantization) < torch.cuda.mem_get_info(0)[0]


def why_spread(base: BaseFiles, quantization: str, asked: str, free_bytes: Sequence[int] | None = None) -> str | None:
    """Why a base goes on several GPUs, which the hf engine alone does; None where one holds it, or there is one alone.

    asked: the recipe's device. free_bytes: of each GPU; by default as they are now.
    """
    if free_bytes is None:
        here = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        free_bytes = [torch.cuda.mem_get_info(index)[0] for index in here]
    needed = needed_bytes(base, quantization)
    if asked != "auto" or len(free_bytes) < 2 or needed < free_bytes[0]:
        return None
    return (f"one GPU does not hold {base.name}: about {needed / 2**30:.1f} GiB are needed, {free_bytes[0] / 2**30:.1f} GiB "
            f"are free, so it goes on {len(free_bytes)} GPUs")
