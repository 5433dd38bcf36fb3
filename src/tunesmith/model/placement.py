"""Where a base is put, how it is kept and computed there, and by which engine: decided once, then obeyed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import EnvironmentFault
from tunesmith.model.base_config import require_computable
from tunesmith.model.engines import choose_engine, settle_engine
from tunesmith.model.files import BaseFiles
from tunesmith.model.quantization import WAYS

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """What the builders of engines obey.

    engine: hf or native. reason: why this one. device: as torch names it. matmul: exact, fp8 or int8: how the
    native engine multiplies with frozen weights while training. spread: the base goes on all GPUs, as
    accelerate splits it. free_bytes: of the device's memory when this was decided; None on a CPU.
    fallback_reason: why the native engine, which takes the base, does not run it; None where it does.
    """

    engine: str
    reason: str
    device: str
    dtype: torch.dtype
    quantization: str
    matmul: str = "exact"
    spread: bool = False
    free_bytes: int | None = None
    fallback_reason: str | None = None

    @property
    def dtype_name(self) -> str:
        """float32, bfloat16 or float16."""
        return str(self.dtype).removeprefix("torch.")


def place(config: dict[str, Any], name: str, *, quantization: str, dtype: str, device: str, base_bytes: float,
          engine: str = "auto", matmul: str = "exact", adapter_reason: str | None = None) -> Placement:
    """Decide it all, from the base's config.json and this machine as it is now.

    name: of the base. base_bytes: of its weights in 16 bits. engine: auto, or the one that is asked for.
    adapter_reason: why the native engine does not take the adapter, whatever it says of the base.
    Raises RecipeError or EnvironmentFault where what is asked for cannot be had.
    """
    chosen, reason = choose_engine(engine, config, matmul)
    chosen_device = choose_device(device)
    require_computable(config, name, quantization, chosen_device)
    _require_eight_bit(matmul, chosen_device)
    free_bytes = free_memory()
    needed = 2 * WAYS[quantization].size_share * base_bytes  # with as much again for the work
    fallback_reason = why_spread(name, needed, device, free_bytes)
    settled, reason = settle_engine(chosen, reason, fallback_reason, wanted=engine, matmul=matmul)
    if settled == "native" and adapter_reason:
        settled, reason, fallback_reason = "hf", adapter_reason, adapter_reason
    spread = device == "auto" and chosen_device == "cuda" and needed >= free_bytes[0] and settled == "hf"
    index = torch.device(chosen_device).index or 0
    return Placement(
        settled, reason, chosen_device, choose_dtype(dtype, chosen_device), quantization, matmul, spread,
        free_bytes[index] if chosen_device.startswith("cuda") else None,
        fallback_reason if settled != chosen else None)


def place_base(base: BaseFiles, *, quantization: str, dtype: str = "auto", device: str = "auto",
               engine: str = "auto", matmul: str = "exact", adapter: Path | None = None) -> Placement:
    """The same for a base that is here. adapter: one that is to sit on it; IntegrityError if not readable."""
    adapter_reason = None
    if adapter is not None:
        from tunesmith.model.lora import lora_config_of
        from tunesmith.model.native.adapter import why_not

        adapter_reason = why_not(lora_config_of(adapter), base.config)
    return place(base.config, base.name, quantization=quantization, dtype=dtype, device=device,
                 base_bytes=base.weight_bytes(), engine=engine, matmul=matmul, adapter_reason=adapter_reason)


def choose_device(device: str) -> str:
    """`auto` as cuda where there is one, else cpu. Raises EnvironmentFault for a GPU that is missing."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise EnvironmentFault(
                f"{device}, but torch sees no CUDA GPU here",
                "Set model.device to auto or cpu; `tunesmith doctor` says what this machine has.",
                setting="model.device")
        index = int(device.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise EnvironmentFault(f"{device}, but this machine has {torch.cuda.device_count()} GPUs",
                                   "They count from cuda:0.", setting="model.device")
    return device


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """`auto` as float32 on CPU, bfloat16 on a GPU that has it, else float16."""
    if dtype != "auto":
        return _DTYPES[dtype]
    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def free_memory() -> list[int]:
    """Free bytes of each GPU, as they are now; empty where there is none."""
    here = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return [torch.cuda.mem_get_info(index)[0] for index in here]


def why_spread(name: str, needed_bytes: float, asked: str, free_bytes: Sequence[int]) -> str | None:
    """Why a base goes on several GPUs, which only the hf engine does; None where one holds it or is alone.

    asked: the recipe's device. free_bytes: of each GPU.
    """
    if asked != "auto" or len(free_bytes) < 2 or needed_bytes < free_bytes[0]:
        return None
    return (f"one GPU does not hold {name}: about {needed_bytes / 2**30:.1f} GiB are needed, "
            f"{free_bytes[0] / 2**30:.1f} GiB are free, so it goes on {len(free_bytes)} GPUs")


def _require_eight_bit(matmul: str, device: str) -> None:
    """Raise EnvironmentFault where 8-bit products are asked for and the device has none."""
    if matmul == "exact":
        return
    if not device.startswith("cuda"):
        raise EnvironmentFault(f"{matmul} needs a GPU that multiplies in it", "Set train.matmul to exact.",
                               setting="train.matmul")
    needed, capability = (8, 9) if matmul == "fp8" else (8, 0), torch.cuda.get_device_capability(device)
    if capability < needed:
        raise EnvironmentFault(f"{matmul} needs compute capability {needed[0]}.{needed[1]} or newer; "
                               f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}",
                               "Set train.matmul to exact.", setting="train.matmul")
