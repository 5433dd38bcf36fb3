"""On a CUDA GPU: every quantisation trains along the CPU's losses; memory that runs out is survived."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch

import tunesmith
from conftest import RECIPE
from tunesmith.recipe import parse_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]


def losses(path: Path, *overrides: str) -> list[float]:
    recipe = parse_recipe(RECIPE, overrides=["lora.dropout=0", "train.max_steps=20", *overrides])
    result = tunesmith.train(recipe, run=path)
    return [json.loads(line)["loss"]
            for line in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]


# The worst relative differences that were measured stand in docs/engines.md. int8 differs most: bitsandbytes
# quantises activations on a GPU but not while training on a CPU.
@pytest.mark.parametrize(("quantization", "dtype", "tolerance"), [
    ("none", "float32", 2e-3), ("none", "bfloat16", 0.03), ("none", "float16", 0.01),
    ("int8", "float32", 0.02), ("int8", "bfloat16", 0.04), ("int8", "float16", 0.02),
    ("nf4", "float32", 2e-3), ("nf4", "bfloat16", 0.04)])
def test_the_same_losses_as_on_the_cpu(tmp_path: Path, quantization: str, dtype: str,
                                       tolerance: float) -> None:
    on_cpu = losses(tmp_path / "cpu", f"model.quantization={quantization}", "model.device=cpu")
    on_gpu = losses(tmp_path / "gpu", f"model.quantization={quantization}", "model.device=cuda",
                    f"model.dtype={dtype}")
    worst = max(abs(a - b) / max(a, 0.3) for a, b in zip(on_cpu, on_gpu, strict=True))
    print(f"TRAJECTORY {quantization} {dtype}: cpu {on_cpu[0]:.4f} -> {on_cpu[-1]:.4f}, gpu {on_gpu[0]:.4f} "
          f"-> {on_gpu[-1]:.4f}, worst relative difference {worst:.5f}")
    assert worst < tolerance


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_bloom_560m_shape(tmp_path: Path, quantization: str) -> None:
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

    from tunesmith import embedded

    base = tmp_path / "bloom-560m"
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = BloomForCausalLM(BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16,
                                             bos_token_id=1, eos_token_id=2, pad_token_id=3))
    model.half().save_pretrained(base)
    del model
    torch.cuda.empty_cache()
    AutoTokenizer.from_pretrained(embedded.path_of(embedded.BASE_NAME)).save_pretrained(base)
    torch.cuda.reset_peak_memory_stats()
    common = [f"model.base={base}", f"model.quantization={quantization}", "train.learning_rate=1e-3",
              "judge.stop_rows=0", "judge.samples=0", "train.eval_steps=0", "data.validation=4"]
    on_gpu = losses(tmp_path / "gpu", *common, "train.max_steps=20")
    result = json.loads((tmp_path / "gpu" / "result.json").read_text())
    on_cpu = losses(tmp_path / "cpu", *common, "train.max_steps=3", "model.device=cpu",
                    "train.lr_scheduler=constant")
    again = losses(tmp_path / "gpu3", *common, "train.max_steps=3", "train.lr_scheduler=constant")
    worst = max(abs(a - b) / a for a, b in zip(on_cpu, again, strict=True))
    print(f"BLOOM-560M {quantization}: 20 steps {on_gpu[0]:.4f} -> {on_gpu[-1]:.4f}, "
          f"{result['tokens_per_second']:.0f} tok/s, "
          f"peak {result['peak_memory_bytes'] / 2**30:.2f} GiB; 3 steps cpu {on_cpu}, gpu {again}, "
          f"worst {worst:.5f}")
    assert on_gpu[-1] < on_gpu[0]
    assert worst < 0.02


def test_when_memory_runs_out_the_step_is_cut_smaller(tmp_path: Path) -> None:
    whole = losses(tmp_path / "whole", "model.device=cuda", "train.max_steps=3", "train.batch_size=64")
    from tunesmith.training import step as step_module

    original, failures = step_module.optimiser_step, []

    def out_of_memory(*args: object, **kwargs: object) -> object:
        if kwargs["plan"].max_tokens > 300:
            failures.append(kwargs["plan"].max_tokens)
            raise torch.OutOfMemoryError("planted")
        return original(*args, **kwargs)

    step_module.optimiser_step = out_of_memory
    try:
        cut = losses(tmp_path / "cut", "model.device=cuda", "train.max_steps=3", "train.batch_size=64")
    finally:
        step_module.optimiser_step = original
    assert failures
    assert cut == pytest.approx(whole, rel=2e-3)


def test_a_full_gpu_is_exit_6(tmp_path: Path) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    hogs = []
    for size in (1 << 28, 1 << 20, 1 << 12):  # also what earlier tests left in torch's cache
        try:
            while True:
                hogs.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            pass
    try:
        with pytest.raises(tunesmith.TunesmithError) as caught:
            losses(tmp_path / "run", "model.device=cuda", "train.batch_size=64")
        assert caught.value.exit_code == 6
    finally:
        hogs.clear()
        torch.cuda.empty_cache()


def test_the_adapter_answers_on_the_gpu(tmp_path: Path) -> None:
    losses(tmp_path / "run", "model.quantization=int8", "train.max_steps=60", "train.batch_size=16")
    found = tunesmith.evaluate(tmp_path / "run")
    print("EVALUATE", {key: found[key] for key in ("loss_base", "loss_tuned", "stop_rate_base",
                                                   "stop_rate_tuned", "verdict")})
    assert found["verdict"] in ("helps", "loss only")
    assert tunesmith.generate(tmp_path / "run" / "adapter",
                              prompt="“Never glow before the lamp is bright.” ->: ")["stopped"]
