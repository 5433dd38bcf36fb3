"""How far 8-bit products bend LoRA gradients: each gradient's cosine to the exact one, on trained bases.

    python benchmarks/eight_bit_quality.py BASE [BASE ...] [--out FILE]

BASE: a folder, a Hub id or embedded:sprout. On the CPU, where the plain twins of the kernels round alike; 16
of the embedded rows, LoRA r=8 on every linear layer with a B that is not zero, fp32 otherwise. int8 is
measured after its calibration.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from tunesmith.data import TokenRow, read_text, tokenize_text
from tunesmith.data.tokenize import Rules
from tunesmith.model.files import locate_base
from tunesmith.model.lora import LoraSettings
from tunesmith.model.native.adapter import attach
from tunesmith.model.native.engine import NativeEngine, load_decoder
from tunesmith.model.native.int8_products import CALIBRATION_PASSES
from tunesmith.model.tokenizer import load_tokenizer
from tunesmith.recipe import parse_recipe, preset_text


def gradients(base: Any, tokenizer: Any, rows: list[TokenRow], quantization: str,
              matmul: str) -> tuple[float, list[torch.Tensor]]:
    """(the loss of the rows, each LoRA gradient) of a step after calibration."""
    model = load_decoder(base, quantization=quantization, dtype=torch.float32, device=torch.device("cpu"))
    settings = attach(model, LoraSettings(8, 16, 0.0, "all-linear"), base.architecture, seed=0)
    engine = NativeEngine(model, settings, tokenizer, base, quantization=quantization, matmul=matmul)
    generator = torch.Generator().manual_seed(1)
    for parameter in engine.trainable().values():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.02
    weight = torch.full((), 1e-3)
    for _ in range(CALIBRATION_PASSES):
        engine.accumulate(rows, weight)
    for parameter in engine.trainable().values():
        parameter.grad.zero_()
    loss = engine.accumulate(rows, weight).sum().item()
    return loss, [parameter.grad.flatten() for parameter in engine.trainable().values()]


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="+")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    results = []
    for name in chosen.bases:
        base = locate_base(name, None)
        tokenizer = load_tokenizer(base)
        recipe = parse_recipe(preset_text("demo"))
        rows = tokenize_text(read_text(recipe.data), tokenizer,
                             Rules("all", False, 512, "truncate")).train[:16]
        for quantization in ("none", "int8", "nf4"):
            exact_loss, exact = gradients(base, tokenizer, rows, quantization, "exact")
            for matmul in ("fp8", "int8"):
                loss, found = gradients(base, tokenizer, rows, quantization, matmul)
                cosines = [torch.cosine_similarity(a, b, dim=0).item()
                           for a, b in zip(exact, found, strict=True)]
                results.append({"base": Path(name).name, "quantization": quantization, "matmul": matmul,
                                "loss_off": abs(loss - exact_loss) / exact_loss, "cosine_min": min(cosines),
                                "cosine_mean": sum(cosines) / len(cosines)})
                print(json.dumps(results[-1]), flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
