"""How the frozen weights are kept. A new way is one file here: `config` for loading, `prepare` for what came out."""

from __future__ import annotations

from types import ModuleType

from tunesmith.model.hf.quantize import int8, nf4, none

WAYS: dict[str, ModuleType] = {"none": none, "int8": int8, "nf4": nf4}
