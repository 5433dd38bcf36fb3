"""A PEFT LoRA adapter as the GGUF that llama.cpp puts on a base of its own (--lora).

What llama.cpp expects is in its src/llama-adapter.cpp: each tensor of the base that is changed, by its name
there, with .lora_a [r, inputs] and .lora_b [outputs, r] behind it; the product counts alpha / r times, with
one alpha for the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import IntegrityError, RecipeError
from tunesmith.model.files import BaseFiles
from tunesmith.share.gguf.file import Entry, check_outtype, write_file
from tunesmith.share.gguf.layout import Layout, layout_of

if TYPE_CHECKING:
    import torch

_LORA = re.compile(r"^base_model\.model\.(.+)\.lora_([AB])\.weight$")


def write_adapter_gguf(adapter: Path, base: BaseFiles, out: Path, *, outtype: str = "f32") -> dict[str, Any]:
    """Write a PEFT adapter folder as `out`. outtype: f32 or f16.

    base: what it was trained on; only its config and its names are read, not its weights. Returns {path,
    architecture, outtype, alpha, modules, bytes, notes}. Raises IntegrityError for an adapter that is damaged
    or does not fit the base, RecipeError naming what LoRA in llama.cpp cannot hold, DiskError.
    """
    from tunesmith.model.lora import CONFIG_NAME, check_adapter
    from tunesmith.model.peft_config import require_bounded

    check_outtype(outtype, ("f32", "f16"))
    config = check_adapter(adapter)
    _check_config(adapter, config)
    layout = layout_of(base)
    pairs = _read_pairs(adapter, layout)
    require_bounded(config, list(pairs), adapter / CONFIG_NAME)
    alpha = float(config.get("lora_alpha") or 0) or 1.0  # llama.cpp takes 0 for "no scale"
    entries = []
    for module, (a_RI, b_OR) in pairs.items():
        name, rank = layout.gguf_name(f"{module}.weight"), a_RI.shape[0]
        factor = _scale(config, module, rank) / (alpha / rank)
        entries += [Entry(f"{name}.lora_a", tuple(a_RI.shape), outtype, _as_read(a_RI)),
                    Entry(f"{name}.lora_b", tuple(b_OR.shape), outtype, _as_read(b_OR), layout.rows(module),
                          1.0 if math.isclose(factor, 1.0, rel_tol=1e-9) else factor)]

    def fill(writer: Any) -> None:
        import gguf

        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(adapter.resolve().name)
        writer.add_file_type({"f32": gguf.LlamaFileType.ALL_F32,
                              "f16": gguf.LlamaFileType.MOSTLY_F16}[outtype])
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)

    size = write_file(out, layout.architecture, fill, entries)
    return {"path": str(out), "architecture": layout.architecture, "outtype": outtype, "alpha": alpha,
            "modules": len(pairs), "bytes": size, "notes": []}


def _as_read(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def _check_config(adapter: Path, config: dict[str, Any]) -> None:
    """Raises RecipeError for a setting that llama.cpp's LoRA has no place for."""
    from tunesmith.model.peft_config import GGUF, changes_base, unsupported_setting

    setting = unsupported_setting(config, GGUF)
    if setting is None and changes_base(config.get("init_lora_weights")):
        setting = "init_lora_weights"
    if setting is not None:
        raise RecipeError(
            f"{adapter}: cannot be written as a GGUF adapter: its {setting} is {config[setting]!r}",
            "Merge it into its base and write the whole model as GGUF instead.")


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """PEFT's factor of B A: alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023, eq. 3).

    alpha_pattern's keys are regular expressions that match the end of a module's name, from a dot on.
    """
    patterns = config.get("alpha_pattern") or {}
    key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = float(config.get("lora_alpha") or 0) if key is None else float(patterns[key])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read_pairs(adapter: Path, layout: Layout) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(A [r, inputs], B [outputs, r]) by module. Raises IntegrityError or RecipeError listing misfits."""
    import safetensors.torch

    from tunesmith.model.lora import WEIGHTS_NAME, listing

    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in sorted(safetensors.torch.load_file(adapter / WEIGHTS_NAME).items()):
        match = _LORA.match(name)
        if match is None:
            raise RecipeError(
                f"{adapter}: cannot be written as a GGUF adapter: {name} is not a LoRA of a linear module",
                "Merge it into its base and write the whole model as GGUF instead.")
        halves.setdefault(layout.canonical(match[1]) or match[1], {})[match[2]] = tensor
    if "lm_head" in halves and layout.tied:
        raise RecipeError(f"{adapter}: cannot be written as a GGUF adapter: it is on lm_head, which is the "
                          "embedding in this base, and llama.cpp would change that too",
                          "Merge it into its base and write the whole model as GGUF instead.")
    problems = list(filter(None, (_misfit(module, pair, layout) for module, pair in halves.items())))
    if problems:
        raise IntegrityError(f"{adapter}: does not fit {layout.base.name}:\n  {listing(problems)}",
                             "Is it an adapter for another base?")
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}


def _misfit(module: str, pair: dict[str, torch.Tensor], layout: Layout) -> str | None:
    shape = layout.parameters.get(f"{module}.weight")
    if shape is None:
        return f"{module}: not in this base"
    if len(pair) < 2:
        return f"{module}: has no lora_{'B' if 'A' in pair else 'A'}"
    a_RI, b_OR = pair["A"], pair["B"]
    if a_RI.ndim == b_OR.ndim == 2 and (b_OR.shape[0], a_RI.shape[1]) == shape:
        return None
    return (f"{module}: A is {list(a_RI.shape)} and B {list(b_OR.shape)}, the module {list(shape)} in this "
            "base")
