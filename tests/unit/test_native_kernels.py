"""The whole native engine by its Triton kernels, in Triton's interpreter: what a GPU runs, against the plain way."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from native_bases import SEED, Bases, error, gradients, randomise, samples, tokenizer

from tunesmith.model.lora import LoraSettings
from tunesmith.model.native import adapter
from tunesmith.model.native.engine import NativeEngine, load_decoder
from tunesmith.model.native.int8_products import CALIBRATION_PASSES

pytestmark = [pytest.mark.filterwarnings("ignore:overflow encountered in exp"),
              pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the kernels themselves: tests/gpu")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))


def engine_of(bases: Bases, family: str, quantization: str, dropout: float, matmul: str) -> NativeEngine:
    base = bases(family)
    model = load_decoder(base, quantization=quantization, dtype=torch.float32, device=torch.device("cpu"))
    settings = adapter.attach(model, LoraSettings(4, 8, dropout, "all-linear"), base.architecture, seed=0)
    engine = NativeEngine(model, settings, tokenizer(), base, quantization=quantization, matmul=matmul)
    torch.manual_seed(SEED)
    randomise(engine)
    engine.training(True)
    return engine


def by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every module but the engine's (it would capture graphs) takes the kernels' way."""
    for name, module in list(sys.modules.items()):
        if name.startswith("tunesmith.model.native") and hasattr(module, "use_triton") and not name.endswith(".engine"):
            monkeypatch.setattr(module, "use_triton", lambda tensor: True)


def computed(engine: NativeEngine, rows: Any, checkpointing: float, passes: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    engine._bucket = 64
    if checkpointing:
        engine.checkpoint_gradients(checkpointing)
    for _ in range(passes):
        torch.manual_seed(SEED)
        found = gradients(engine, rows)
    return found


@pytest.mark.parametrize(("dropout", "checkpointing"), [(0.0, 0.5), (0.3, 0.0)])
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_a_step_by_the_kernels_is_the_plain_step(bases: Bases, family: str, quantization: str, dropout: float,
                                                 checkpointing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"TUNESMITH_TEST_SEED={SEED}")
    torch.manual_seed(SEED)
    rows = samples([1, 30, 7])
    want_losses, want = computed(engine_of(bases, family, quantization, dropout, "exact"), rows, 0.0, 1)
    by_kernels(monkeypatch)
    engine = engine_of(bases, family, quantization, dropout, "exact")
    joined = [linear for linear in engine.model.linears() if linear.lora and linear.lora.wide]
    assert joined, "LoRA's product joins the base's somewhere"
    losses, got = computed(engine, rows, checkpointing, 1)
    assert error(losses, want_losses) < 1e-5
    for name, grad in want.items():
        assert error(got[name], grad) < 1e-4, name


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_int8_steps_by_the_kernels_are_the_plain_ones(bases: Bases, quantization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"TUNESMITH_TEST_SEED={SEED}")
    torch.manual_seed(SEED)
    rows = samples([25, 9])
    passes = CALIBRATION_PASSES + 1
    want_losses, want = computed(engine_of(bases, "llama", quantization, 0.0, "int8"), rows, 0.0, passes)
    by_kernels(monkeypatch)
    losses, got = computed(engine_of(bases, "llama", quantization, 0.0, "int8"), rows, 0.0, passes)
    assert error(losses, want_losses) < 1e-3
    for name, grad in want.items():  # a value between two steps may be rounded either way
        assert error(got[name], grad) < 0.02, name
