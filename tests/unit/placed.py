"""A placement as a test wants it, whatever the machine would choose."""

from __future__ import annotations

import torch

from tunesmith.model.placement import Placement


def at(engine: str, quantization: str, dtype: str = "auto", device: str = "cpu") -> Placement:
    kind = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    return Placement(engine, "a test", device, kind, quantization)
