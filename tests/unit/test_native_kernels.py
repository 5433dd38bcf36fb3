"""The native engine by its Triton kernels, in Triton's interpreter: what a GPU runs, against plain torch."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from native_bases import SEED, Bases, error, gradients, randomise, samples, tokenizer

from tunesmith.model.lora import LoraSettings
from tunesmith.model.native import adapter
from tunesmith.model.native.engine import NativeEngine, load_decoder
from tunesmith.model.native.int8_products import CALIBRATION_PASSES

pytestmark = [pytest.mark.filterwarnings("ignore:overflow encountered in exp"),
              pytest.mark.skipif(torch.cuda.is_available(),
                                 reason="a GPU runs the kernels themselves: tests/gpu")]


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
        if (
            name.startswith("tunesmith.model.native")
            and hasattr(module, "use_triton")
            and not name.endswith(".engine")
        ):
            monkeypatch.setattr(module, "use_triton", lambda tensor: True)


def computed(engine: NativeEngine, rows: Any, checkpointing: float,
             passes: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    engine._bucket = 64
    if checkpointing:
        engine.checkpoint_gradients(checkpointing)
    for _ in range(passes):
        torch.manual_seed(SEED)
        found = gradients(engine, rows)
    return found


class OnHost:
    """Inputs that wait elsewhere, without a GPU's streams; `most` counts how many did."""

    def begin(self) -> None:
        self.kept: list[torch.Tensor] = []

    def put(self, x: torch.Tensor) -> int:
        self.kept.append(x.clone())
        return len(self.kept) - 1

    def get(self, place: int) -> torch.Tensor:
        assert place == len(self.kept) - 1, "the last in is the first out"
        return self.kept.pop()


@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_halves_recomputed_from_the_host_are_the_plain_step(bases: Bases, family: str,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"TUNESMITH_TEST_SEED={SEED}")
    torch.manual_seed(SEED)
    rows = samples([1, 30, 7])
    want_losses, want = computed(engine_of(bases, family, "none", 0.3, "exact"), rows, 0.0, 1)
    for kernels in (False, True):
        if kernels:
            by_kernels(monkeypatch)
        engine = engine_of(bases, family, "none", 0.3, "exact")
        engine.checkpoint_gradients()
        engine.model.offload = OnHost()
        segments = list(engine.model._segments(lambda qkv, layer: qkv))
        assert len(segments) == 2 * len(engine.model.layers)
        assert [learnable is None for _, learnable in segments] == [False] * (len(segments) - 1) + [True]
        losses, got = computed(engine, rows, 0.0, 1)
        assert not engine.model.offload.kept
        assert error(losses, want_losses) < 1e-5
        for name, grad in want.items():
            assert error(got[name], grad) < 1e-4, name


def test_a_norm_with_room_spares_the_copy(bases: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    by_kernels(monkeypatch)
    engine = engine_of(bases, "llama", "none", 0.0, "exact")
    adapter.refresh(engine.model)
    layer = engine.model.layers[0]
    x = torch.randn(9, layer.mlp_input.weight.inputs)
    assert layer.mlp_input.spare_columns > 0
    _, narrow = layer.mlp_norm(x, None)
    _, wide = layer.mlp_norm(x, None, layer.mlp_input.spare_columns)
    assert torch.equal(narrow, wide)
    want = layer.mlp_input(narrow)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", lambda *a, **k: pytest.fail("a copy was made"))
        assert torch.equal(layer.mlp_input(wide), want)
    # What only looks like it is copied: a view into something longer belongs to someone else.
    longer = torch.randn(10, wide.shape[1] + layer.mlp_input.spare_columns)
    kept = longer.clone()
    layer.mlp_input(longer[:9, :wide.shape[1]])
    assert torch.equal(longer, kept)
    engine.training(True)
    engine.model.mode.dropout_keys_N = torch.zeros(9, dtype=torch.int64)
    layer.mlp_input.lora.dropout = 0.1
    assert layer.mlp_input.spare_columns == 0, "what is dropped needs an input without gaps"


@pytest.mark.parametrize(("dropout", "checkpointing"), [(0.0, 0.5), (0.3, 0.0)])
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_a_step_by_the_kernels_is_the_plain_step(bases: Bases, family: str, quantization: str, dropout: float,
                                                 checkpointing: float,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"TUNESMITH_TEST_SEED={SEED}")
    torch.manual_seed(SEED)
    rows = samples([1, 30, 7])
    want_losses, want = computed(engine_of(bases, family, quantization, dropout, "exact"), rows, 0.0, 1)
    by_kernels(monkeypatch)
    engine = engine_of(bases, family, quantization, dropout, "exact")
    joined = [linear for linear in engine.model.linears() if linear.lora and linear.lora.concat]
    assert joined, "LoRA's product joins the base's somewhere"
    losses, got = computed(engine, rows, checkpointing, 1)
    assert error(losses, want_losses) < 1e-5
    for name, grad in want.items():
        assert error(got[name], grad) < 1e-4, name


@pytest.mark.parametrize("quantization", ["none", pytest.param("int8", marks=pytest.mark.slow)])
def test_int8_steps_by_the_kernels_are_the_plain_ones(bases: Bases, quantization: str,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"TUNESMITH_TEST_SEED={SEED}")
    torch.manual_seed(SEED)
    rows = samples([25, 9])
    passes = CALIBRATION_PASSES + 1
    want_losses, want = computed(engine_of(bases, "llama", quantization, 0.0, "int8"), rows, 0.0, passes)
    by_kernels(monkeypatch)
    losses, got = computed(engine_of(bases, "llama", quantization, 0.0, "int8"), rows, 0.0, passes)
    assert error(losses, want_losses) < 1e-3
    # a value between two steps may be rounded either way: 1/127 of a row's largest, each time
    for name, grad in want.items():
        assert error(got[name], grad) < 0.05, name
