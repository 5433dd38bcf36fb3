"""What only a CUDA GPU shows of the native engine: cuDNN's attention, inputs kept on the host, graphs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.model.dropout import sample_seeds
from tunesmith.model.lora import LoraSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]


class Row:
    def __init__(self, length: int, vocabulary: int = 1536) -> None:
        self.ids = [random.randrange(4, vocabulary) for _ in range(length)]
        self.loss_mask = [False] + [True] * (length - 1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights with heads of 64 channels and grouped queries."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tunesmith import embedded

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=1536, hidden_size=512, intermediate_size=1024,
                                 num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
                                 max_position_embeddings=8192)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded.path_of(embedded.BASE_NAME)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLOOM of random weights."""
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

    from tunesmith import embedded

    folder = tmp_path_factory.mktemp("bloom")
    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig(vocab_size=1536, hidden_size=512, n_layer=4,
                                 n_head=8)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded.path_of(embedded.BASE_NAME)).save_pretrained(folder)
    return folder


def engine_of(folder: Path, dtype: str, quantization: str = "none", device: str = "cuda",
              dropout: float = 0.0, name: str = "native") -> Any:
    from transformers import AutoTokenizer

    from tunesmith.model.build import build_for_training
    from tunesmith.model.files import locate_base
    from tunesmith.model.placement import place_base
    base = locate_base(str(folder), None)
    engine = build_for_training(base, AutoTokenizer.from_pretrained(folder),
                                place_base(base, engine=name, quantization=quantization, dtype=dtype,
                                                device=device), seed=0,
                                lora=LoraSettings(8, 16, dropout, "all-linear"))
    generator = torch.Generator().manual_seed(1)
    for parameter in engine.trainable().values():
        parameter.data += (torch.randn(parameter.shape, generator=generator) * 0.02).to(parameter.device)
    engine.training(True)
    return engine


def step(engine: Any, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """(each row's loss, every gradient one after another), on the CPU."""
    for parameter in engine.trainable().values():
        parameter.grad = None
    losses = engine.accumulate(rows, torch.full((), 1e-2, device=engine.device),
                               sample_seeds(0, 0, len(rows))).clone()
    return losses.cpu(), torch.cat([parameter.grad.flatten()
                                    for parameter in engine.trainable().values()]).cpu()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a.double(), b.double(), dim=0).item()


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_every_gradient_is_the_exact_one(family: str, quantization: str,
                                         request: pytest.FixtureRequest) -> None:
    """bf16 on the GPU against fp32 on the CPU, on one quantised base; and no worse than bitsandbytes."""
    folder = request.getfixturevalue(family)
    rows = [Row(length) for length in (600, 20, 1, 333, 70)]

    def each(engine: Any) -> tuple[float, dict[str, torch.Tensor]]:
        losses, _ = step(engine, rows)
        return losses.sum().item(), {name: p.grad.flatten().cpu() for name, p in engine.trainable().items()}

    loss, exact = each(engine_of(folder, "float32", quantization, "cpu"))
    worst = {}
    for name in ("native", "hf"):
        found_loss, found = each(engine_of(folder, "bfloat16", quantization, name=name))
        worst[name] = min(cosine(found[key], exact[key]) for key in exact)
        assert abs(found_loss - loss) < 5e-3 * loss
    print(f"GRADIENTS {family} {quantization}: "
          f"lowest cosine native {worst['native']:.5f}, hf {worst['hf']:.5f}")
    assert worst["native"] > 0.999
    assert worst["native"] > worst["hf"] - 5e-4


def test_samples_of_one_length_go_to_cudnn_and_give_the_same(llama: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.model.native import attention

    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("our own kernels are taken here")
    calls = []
    original = attention.attention_forward_cudnn
    monkeypatch.setattr(attention, "attention_forward_cudnn", lambda *a: calls.append(1) or original(*a))
    rows = [Row(1024) for _ in range(3)]
    exact_losses, exact = step(engine_of(llama, "float32", device="cpu"), rows)
    engine = engine_of(llama, "bfloat16")
    losses, found = step(engine, rows)
    assert calls
    calls.clear()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        own_losses, own = step(engine_of(llama, "bfloat16"), rows)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not calls
    print(f"CUDNN cosine to fp32: cudnn {cosine(found, exact):.6f}, own {cosine(own, exact):.6f}")
    assert cosine(found, exact) > 0.999
    assert cosine(own, exact) > 0.999
    assert torch.allclose(losses, exact_losses, rtol=5e-3)
    assert torch.allclose(own_losses, exact_losses, rtol=5e-3)
    # A perturbed sample leaves the others' logits the same bits.
    ids = [row.ids for row in rows]
    before = engine.logits(ids)
    after = engine.logits([ids[0], Row(1024).ids, ids[2]])
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_recomputed_and_offloaded_gradients_are_the_same(llama: Path, quantization: str) -> None:
    rows = [Row(length) for length in (1500, 20, 333, 700)]
    found = {}
    for way in ("kept", "recomputed", "offloaded"):
        engine = engine_of(llama, "bfloat16", quantization, dropout=0.1)
        if way != "kept":
            engine.checkpoint_gradients(offload=way == "offloaded")
        for _ in range(3):  # plain, captured, replayed
            torch.manual_seed(5)
            found[way] = step(engine, rows)
        torch.cuda.synchronize()
    for way in ("recomputed", "offloaded"):
        assert torch.allclose(found[way][0], found["kept"][0], rtol=1e-5)
        assert cosine(found[way][1], found["kept"][1]) > 0.99999
    assert torch.equal(found["recomputed"][1], found["offloaded"][1])


def test_offloaded_inputs_leave_the_gpu(llama: Path) -> None:
    peaks = {}
    rows = [Row(8192) for _ in range(4)]
    for offload in (False, True):
        engine = engine_of(llama, "bfloat16")
        engine.checkpoint_gradients(offload=offload)
        engine._graphs._enabled = False
        step(engine, rows)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step(engine, rows)
        peaks[offload] = torch.cuda.max_memory_allocated()
        del engine
    print(f"OFFLOAD peak {peaks[False] / 2**20:.0f} -> {peaks[True] / 2**20:.0f} MiB")
    assert peaks[True] < peaks[False] - 2 * 32768 * 512  # at least one of four inputs


def test_steps_as_graphs_are_the_steps_without(llama: Path) -> None:
    shapes = [[Row(n) for n in lengths] for lengths in ((50, 70, 8), (300,), (128, 128), (60, 60, 8))]
    plain, graphed = engine_of(llama, "bfloat16"), engine_of(llama, "bfloat16")
    plain._graphs._enabled = False
    for turn in range(3):
        for number, rows in enumerate(shapes):
            want, got = step(plain, rows), step(graphed, rows)
            assert torch.allclose(got[0], want[0], rtol=1e-6), (turn, number)  # summed by atomics
            assert cosine(got[1], want[1]) > 0.999999, (turn, number)


def test_a_run_says_what_it_took(llama: Path, tmp_path: Path) -> None:
    import tunesmith

    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"""
model: {{base: {llama}, quantization: int8}}
data: {{source: "embedded:quotes", prompt: "{{quote}} ->: ", completion: "{{tags}}", validation: 8}}
train: {{max_steps: 4, batch_size: 8, warmup_steps: 1, matmul: int8}}
judge: {{stop_rows: 0, samples: 0}}
""")
    result = tunesmith.train(recipe, run=tmp_path / "run")
    assert result["engine"] == "native"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("family", ["llama", "bloom"])
@pytest.mark.parametrize("name", ["native", "hf"])
def test_a_cut_draws_the_same_dropout_on_a_gpu_and_a_cpu(family: str, name: str,
                                                         request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    rows = [Row(length) for length in (90, 20, 1, 333, 70)]
    seeds = sample_seeds(3, 10, 5)
    found = []
    for device, parts in (("cpu", [[0, 1, 2, 3, 4]]), ("cuda", [[0, 1, 2, 3, 4]]),
                          ("cuda", [[4, 0], [3], [1, 2]])):
        engine = engine_of(folder, "float32", device=device, dropout=0.3, name=name)
        losses = torch.zeros(5)
        for part in parts:
            weight = torch.full((), 1e-2, device=engine.device)
            losses[part] = engine.accumulate([rows[i] for i in part], weight, [seeds[i] for i in part]).cpu()
        found.append((losses, torch.cat([p.grad.flatten().cpu() for p in engine.trainable().values()])))
    for losses, gradient in found[1:]:
        assert torch.allclose(losses, found[0][0], rtol=2e-3)
        assert cosine(gradient, found[0][1]) > 0.9999


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("lengths", [(600, 20, 1, 333), (1024, 1024)], ids=["ragged", "one length"])
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_the_second_gpu_computes_what_the_first_does(llama: Path, quantization: str,
                                                     lengths: tuple[int, ...]) -> None:
    """Kernels and graphs belong to the tensors' device, which is not the current one here."""
    rows = [Row(length) for length in lengths]
    for name in ("native", "hf"):
        engines = [engine_of(llama, "bfloat16", quantization, f"cuda:{i}", dropout=0.1, name=name)
                   for i in (0, 1)]
        for _ in range(3):  # by itself, captured, replayed
            first, second = (step(engine, rows) for engine in engines)
            assert torch.allclose(first[0], second[0], rtol=1e-3)
            assert cosine(first[1], second[1]) > 0.9999
        answers = [engine.generate([rows[0].ids[:9]], 8) for engine in engines]
        assert len(answers[0][0].ids) == len(answers[1][0].ids)
    assert torch.cuda.current_device() == 0
