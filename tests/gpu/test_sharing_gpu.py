"""On a CUDA GPU: what a run there becomes (one model, GGUF) says what the live adapter says there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tunesmith
from conftest import RECIPE
from tunesmith.recipe import parse_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_merge_and_export(tmp_path: Path, quantization: str, dtype: str) -> None:
    chosen = [f"model.quantization={quantization}", f"model.dtype={dtype}", "model.device=cuda",
              "train.max_steps=60"]
    tunesmith.train(parse_recipe(RECIPE, overrides=chosen), run=tmp_path / "run")
    merged = tunesmith.merge(tmp_path / "run", tmp_path / "merged", device="cuda")
    found = merged["candidates"][merged["taken"]]
    print(f"MERGE {quantization} {dtype}: {merged['taken']}, {found}, bare {merged['bare']['kl']:.3f}")
    assert found["kl"] < 0.01 * merged["bare"]["kl"]
    assert found["top1"] > 0.97
    on_cpu = tunesmith.merge(tmp_path / "run", tmp_path / "on-cpu", device="cpu")
    if on_cpu["taken"] == merged["taken"]:  # the arithmetic is the same wherever it is measured
        weights = "model.safetensors"
        assert (tmp_path / "merged" / weights).read_bytes() == (tmp_path / "on-cpu" / weights).read_bytes()
    exported = tunesmith.export(tmp_path / "run", tmp_path / "gguf", device="cuda")
    assert exported["files"].keys() == {"model.gguf", "Modelfile"}
    prompt = "“Be yourself.” ->: "
    assert tunesmith.generate(tmp_path / "run", prompt=prompt, device="cuda")["stopped"]
