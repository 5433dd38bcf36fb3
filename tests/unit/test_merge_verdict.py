"""What a merge is measured by, which candidate is taken, what is refused; nothing else stays on the disk."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_bases import FAMILIES, Bases, Sample, build, randomise, samples, tokenizer, write_base
from placed import at

from tunesmith.errors import (
    DataError,
    DiskError,
    EnvironmentFault,
    IntegrityError,
    Interrupted,
    TunesmithError,
    UsageError,
)
from tunesmith.model.build import build_for_training, build_with_adapter
from tunesmith.model.files import BaseFiles, locate_base
from tunesmith.model.lora import LoraSettings
from tunesmith.rundir import check_seal, verify_path
from tunesmith.share import agreement as agreeing
from tunesmith.share import merge as merging
from tunesmith.share.agreement import Agreement, better, compare, lost, reference
from tunesmith.share.merge import MERGE_NAME, merge_adapter


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))


def _save(engine: Any, folder: Path) -> None:
    folder.mkdir()
    for name, content in engine.adapter_files().items():
        (folder / name).write_bytes(content)


def _case(base: BaseFiles, folder: Path, quantization: str = "none", scale: float = 1.0,
          **more: Any) -> dict[str, Any]:
    """The arguments of merge_adapter for a random adapter on a base."""
    engine = build(base, "native", quantization=quantization, targets="all-linear")
    randomise(engine)
    for name, parameter in engine.trainable().items():
        parameter.data *= scale if ".lora_B." in name else 1.0
    _save(engine, folder / "adapter")

    def live() -> Any:
        return build_with_adapter(base, tokenizer(), folder / "adapter",
                                  at("native", quantization, "float32"))

    return {"base": base, "adapter": folder / "adapter", "out": folder / "out", "quantization": quantization,
            "load_live": live, "load_merged": _plain, "rows": samples([12, 5, 30, 9]),
            "prompts": [[5, 6, 7], [9, 10]], "max_new_tokens": 6} | more


def _clear_case(base: BaseFiles, folder: Path, quantization: str) -> dict[str, Any]:
    """The same, drawn again until no answer's token is nearly a tie, which rounding to 16 bits may turn."""
    for _ in range(50):
        case = _case(base, folder, quantization)
        engine, gaps = case["load_live"](), []
        for prompt in case["prompts"]:
            ids = list(prompt)
            for _ in range(case["max_new_tokens"]):
                best = engine.logits([ids])[0][-1].float().topk(2)
                gaps.append(float(best.values[0] - best.values[1]))
                ids.append(int(best.indices[0]))
        if min(gaps) > 0.05:
            return case
        shutil.rmtree(case["adapter"])
    pytest.fail("no adapter without near ties in 50")


def _plain(folder: Path) -> Any:
    return build_for_training(locate_base(str(folder), None), tokenizer(), at("native", "none", "float32"),
                              seed=0, lora=LoraSettings(1, 1, 0.0, "all-linear"))


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("family", ["bloom-no-prefix-fp16", "llama-tied-shards"])
def test_the_nearer_merge_is_taken_and_sealed(bases: Bases, tmp_path: Path, family: str,
                                              quantization: str) -> None:
    stages: list[str] = []
    result = merge_adapter(**_clear_case(bases(family), tmp_path, quantization), on_stage=stages.append)
    bits = 16 if "fp16" in family else 32
    names = [f"{bits}-bit base"] + ([f"dequantised {quantization} base"] if quantization != "none" else [])
    assert list(result["candidates"]) == names
    # The run saw the quantised weights, so these are the ones that give its logits back.
    assert result["taken"] == names[-1]
    figures = result["candidates"][result["taken"]]
    assert figures["kl"] < 1e-4 < result["bare"]["kl"]
    assert figures["greedy"] == 1.0
    assert figures["loss"] == pytest.approx(figures["loss_live"], abs=1e-2)
    assert len(stages) == 2 + 2 * len(names)
    out = tmp_path / "out"
    assert check_seal(out) == []
    assert not verify_path(out).unsealed
    assert sorted(p.name for p in out.iterdir()) == sorted(result["files"])
    assert result["bytes"] == sum(p.stat().st_size for p in out.iterdir())
    assert json.loads((out / MERGE_NAME).read_text())["candidates"] == result["candidates"]
    assert result["taken"] in (out / "README.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "out"]


def test_a_delta_that_rounding_swallows_is_refused_with_figures(tmp_path: Path) -> None:
    """bf16 weights near 1 lie 2^-7 apart; steps of 0.003 of one sign add up to much and round to nothing."""
    base = write_base(tmp_path / "base", FAMILIES["llama"](), dtype=torch.bfloat16)
    tensors = safetensors.torch.load_file(base.folder / "model.safetensors")
    for name, t in tensors.items():
        if "_proj" in name:
            tensors[name] = torch.where(torch.rand(t.shape) < 0.5, -1.0, 1.0).mul(1.3).bfloat16()
    safetensors.torch.save_file(tensors, base.folder / "model.safetensors", metadata={"format": "pt"})
    case = _case(base, tmp_path)
    state = safetensors.torch.load_file(case["adapter"] / "adapter_model.safetensors")
    state = {name: torch.full_like(t, 0.02) * (torch.rand(t.shape) < 0.9) for name, t in state.items()}
    # 7.5 / 3 * 3 * 0.0004 = 0.003
    safetensors.torch.save_file(state, case["adapter"] / "adapter_model.safetensors")
    with pytest.raises(IntegrityError,
                       match="has lost the adapter: it did not come half of the way") as refused:
        merge_adapter(**case)
    for word in ("live adapter: loss", "bare base: KL", "merged onto the 16-bit base: KL", "top-1", "greedy",
                 "fp32"):
        assert word in str(refused.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


def test_an_adapter_that_does_nothing_is_refused(bases: Bases, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="changes nothing that can be measured"):
        merge_adapter(**_case(bases("llama"), tmp_path, scale=0.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]


def test_a_merge_that_says_something_else_is_refused(bases: Bases, tmp_path: Path) -> None:
    """Whatever the reason: here the loader gives the bare base back."""
    case = _case(bases("llama"), tmp_path)
    with pytest.raises(IntegrityError, match="did not come half"):
        merge_adapter(**case | {"load_merged": lambda folder: _plain(bases("llama").folder)})
    assert not case["out"].exists()


def test_something_at_out_is_left_alone(bases: Bases, tmp_path: Path) -> None:
    case = _case(bases("llama"), tmp_path)
    case["out"].mkdir()
    (case["out"] / "mine").write_text("x")
    with pytest.raises(UsageError, match="something there already"):
        merge_adapter(**case | {"load_live": None})
    assert (case["out"] / "mine").read_text() == "x"
    with pytest.raises(UsageError):
        merge_adapter(**case | {"out": case["out"] / "mine", "load_live": None})
    (case["out"] / "mine").unlink()
    assert merge_adapter(**case)["taken"] == "32-bit base"  # an empty folder is room

    def late(folder: Path) -> Any:
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "mine").write_text("y")
        return _plain(folder)

    with pytest.raises(UsageError, match="was put there meanwhile"):
        merge_adapter(**case | {"out": tmp_path / "late", "load_merged": late})
    assert [p.name for p in (tmp_path / "late").iterdir()] == ["mine"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "late", "out"]


def test_a_disk_too_small_is_found_first(bases: Bases, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(bases("llama"), tmp_path, "int8")
    Usage = namedtuple("Usage", "total used free")
    weights = case["base"].weight_bytes()
    room = merging._SPARE_BYTES + int(1.5 * weights)  # one candidate's, not two's
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, room))
    with pytest.raises(DiskError, match=r"needs 3\d MB of disk, 3\d MB are free"):
        merge_adapter(**case | {"load_live": None})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, 0))
    (tmp_path / "here").mkdir()
    with pytest.raises(DiskError, match=r"needs 3\d MB of disk, 0 MB are free"):
        merging.merge_weights(case["base"], case["adapter"], tmp_path / "here", dequantised=None,
                              progress=lambda done, whole: None)
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "open", "mkdir"])
def test_a_disk_that_fails_half_way_leaves_nothing(bases: Bases, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    case = _case(bases("llama-tied-shards"), tmp_path, out=tmp_path / "new" / "deep" / "out")
    asked = merging.reference(case["load_live"](), case["rows"], case["prompts"], 4)
    monkeypatch.setattr(merging, "reference", lambda *every: asked)
    original, failures, fail_at = getattr(os, call), 0, 1
    for _ in range(12):
        calls = 0

        def failing(*words: Any, fail_at: int = fail_at, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*words, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                merge_adapter(**case | {"load_live": lambda: None})
            except DiskError:
                failures += 1
                assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]
            else:  # so few calls were made: it is whole
                assert check_seal(case["out"]) == []
                break
        fail_at += random.randint(1, 5)
    assert failures


@pytest.mark.parametrize("error",
                         [KeyboardInterrupt, MemoryError, TunesmithError("x"), signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("place", ["load_live", "load_merged", "progress"])
def test_whatever_stops_it_leaves_nothing(bases: Bases, tmp_path: Path, error: Any, place: str) -> None:
    def stop(*words: Any) -> Any:
        if isinstance(error, signal.Signals):
            os.kill(os.getpid(), error)
        else:
            raise error

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted if isinstance(error, signal.Signals) else error if isinstance(error, type)
                       else TunesmithError):
        merge_adapter(**_case(bases("llama"), tmp_path) | {place: stop})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]
    assert signal.getsignal(signal.SIGTERM) == before


_SCRIPT = """
    import os, sys
    sys.path.insert(0, {here!r})
    from pathlib import Path
    import test_merge_verdict as t
    base = t.locate_base({base!r}, None)
    folder = Path({folder!r})
    case = t._case(base, folder, "int8")
    def progress(done, whole):
        if done > whole / 2 and (folder / ".tmp-out" / {candidate!r}).exists():
            os.kill(os.getpid(), 9)
    t.merge_adapter(**case, progress=progress)
"""


@pytest.mark.parametrize("candidate", ["0", "1"])
def test_a_kill_leaves_no_out_and_the_next_merge_cleans_up(bases: Bases, tmp_path: Path,
                                                           candidate: str) -> None:
    base = bases("llama-tied-shards")
    script = textwrap.dedent(_SCRIPT).format(here=str(Path(__file__).parent), base=str(base.folder),
                                             folder=str(tmp_path), candidate=candidate)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".tmp-out" / candidate).is_dir()
    shutil.rmtree(tmp_path / "adapter")
    merge_adapter(**_case(base, tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "out"]
    assert check_seal(tmp_path / "out") == []


def test_two_merges_into_one_place(bases: Bases, tmp_path: Path) -> None:
    case = _case(bases("llama"), tmp_path)

    def again(folder: Path) -> Any:
        with pytest.raises(EnvironmentFault, match="another process is writing"):
            merge_adapter(**case | {"load_merged": None})
        return _plain(folder)

    merge_adapter(**case | {"load_merged": again})
    assert check_seal(case["out"]) == []


_MEMORY = """
    import torch
    from pathlib import Path
    def peak():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    from tunesmith.model.files import locate_base
    from tunesmith.share.merge import merge_weights
    base = locate_base({base!r}, None)
    dequantised, out = {dequantised!r}, Path({out!r})
    import transformers, peft, bitsandbytes
    from tunesmith.share.folding import read_changes, read_skeleton
    read_changes(Path({adapter!r}), read_skeleton(base, dequantised))
    torch.randn(256, 256) @ torch.randn(256, 256)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = peak()
    merge_weights(base, Path({adapter!r}), out, dequantised=dequantised, progress=lambda done, whole: None)
    print((peak() - before) * 1024)
"""


@pytest.mark.parametrize("dequantised", [None, pytest.param("int8", marks=pytest.mark.slow),
                                         pytest.param("nf4", marks=pytest.mark.slow)])
def test_memory_holds_less_than_two_shards(tmp_path: Path, dequantised: str | None) -> None:
    """A base of eight equal shards of four layers; what the process grows by is set against one of them."""
    import transformers

    width, inner, layers = 512, 2048, 32
    config = transformers.LlamaConfig(vocab_size=512, hidden_size=width, intermediate_size=inner,
                                      num_hidden_layers=layers, dtype="float16", num_attention_heads=8,
                                      num_key_value_heads=8, tie_word_embeddings=True)
    folder = tmp_path / "base"
    config.save_pretrained(folder)
    shapes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width, width),
              "self_attn.v_proj": (width, width), "self_attn.o_proj": (width, width),
              "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    index: dict[str, str] = {}
    for shard in range(8):
        part = {"model.embed_tokens.weight": torch.randn(512, width).half(),
                "model.norm.weight": torch.ones(width).half()} if shard == 0 else {}
        for layer in range(4 * shard, 4 * shard + 4):
            part |= {f"model.layers.{layer}.{name}.weight": torch.randn(shape).mul_(0.02).half()
                     for name, shape in shapes.items()}
            part |= {f"model.layers.{layer}.{name}.weight": torch.ones(width).half()
                     for name in ("input_layernorm", "post_attention_layernorm")}
        name = f"model-{shard + 1:05d}-of-00008.safetensors"
        safetensors.torch.save_file(part, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    state = {f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight": torch.randn(4, shape[1])
             if side == "A" else torch.randn(shape[0], 4) * 0.01
             for layer in range(layers) for short, shape in shapes.items() for side in "AB"
             for name in [f"model.layers.{layer}.{short}.weight"]}
    (tmp_path / "adapter").mkdir()
    safetensors.torch.save_file(state, tmp_path / "adapter" / "adapter_model.safetensors")
    words = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
             "target_modules": sorted(n.rpartition(".")[2] for n in shapes)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(words))
    (tmp_path / "out").mkdir()
    script = textwrap.dedent(_MEMORY).format(base=str(folder), out=str(tmp_path / "out"),
                                             adapter=str(tmp_path / "adapter"), dequantised=dequantised)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    sizes = [path.stat().st_size for path in sorted(folder.glob("*.safetensors"))]
    peak = int(done.stdout.split()[-1])
    print(f"merged onto {dequantised or 'the files'}: {peak / 1e6:.0f} MB more than before; shard "
          f"{max(sizes) / 1e6:.0f} MB, base {sum(sizes) / 1e6:.0f} MB")
    assert peak < 2 * max(sizes) < sum(sizes) / 3
    assert sum(p.stat().st_size
               for p in (tmp_path / "out").glob("*.safetensors")) == pytest.approx(sum(sizes), abs=4096)


@pytest.mark.parametrize("way", ["int8", "nf4"])
def test_the_embedded_base_trained(tmp_path: Path, recipe: Path, way: str,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    """A run of the small recipe: both candidates keep the adapter; that on the run's weights is nearer."""
    import tunesmith
    from tunesmith.recipe import load_recipe
    from tunesmith.verbs.decide import decide
    from tunesmith.verbs.prepare import prepare
    from tunesmith.verbs.show import Silent

    words = (f"model.quantization={way}", "train.max_steps=20", "train.eval_steps=100",
             "train.save_steps=100")
    tunesmith.train(recipe, run=tmp_path / "run", overrides=words)
    chosen = load_recipe(str(recipe), words)
    ready = prepare(chosen, decide(chosen, Silent()), Silent())

    def live() -> Any:
        return build_with_adapter(ready.base, ready.tokenizer, tmp_path / "run" / "adapter",
                                  at("native", way))

    rows = ready.data.validation
    result = merge_adapter(ready.base, tmp_path / "run" / "adapter", tmp_path / "out", quantization=way,
                           load_live=live, load_merged=_plain, rows=rows,
                           prompts=[row.prompt_ids for row in rows])
    with capsys.disabled():
        for name, each in {"bare base": result["bare"], **result["candidates"]}.items():
            print(f"\n{way}: {name}: KL {each['kl']:.3g}, top-1 {each['top1']:.3f}, greedy "
                  f"{each['greedy']:.2f}, loss {each['loss']:.4f}", end="")
    assert result["taken"] == f"dequantised {way} base"
    assert all(each["kl"] < result["bare"]["kl"] / 100 for each in result["candidates"].values())
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == (
        tmp_path / "run" / "adapter" / "generation_config.json"
    ).read_bytes()


def test_agreement_is_what_torch_says(bases: Bases, monkeypatch: pytest.MonkeyPatch) -> None:
    live, other = build(bases("bloom"), "native"), build(bases("bloom"), "hf")
    randomise(live)
    rows, prompts = samples([7, 3, 21, 14]), [[4, 5], [6, 7, 8]]
    asked = reference(live, rows, prompts, 5)
    found = compare(other, asked)
    kl, top, count = 0.0, 0, 0
    for row in rows:
        p, q = (engine.logits([row.ids])[0].double().log_softmax(-1) for engine in (live, other))
        for t in range(len(row.ids) - 1):
            if row.loss_mask[t + 1]:
                kl += torch.nn.functional.kl_div(q[t], p[t], reduction="sum", log_target=True).item()
                top, count = top + int(p[t].argmax() == q[t].argmax()), count + 1
    assert found.positions == count
    assert found.kl == pytest.approx(kl / count, rel=1e-4)
    assert found.top1 == top / count
    assert found.loss == pytest.approx(sum(other.losses(rows)).item() / sum(row.loss_tokens for row in rows),
                                       rel=1e-4)
    assert found.loss_live == pytest.approx(
        sum(live.losses(rows)).item() / sum(row.loss_tokens for row in rows), rel=1e-4
    )
    same = [a == b for a, b in zip(live.generate(prompts, 5), other.generate(prompts, 5), strict=True)]
    assert found.greedy == sum(same) / 2
    assert compare(live, asked).kl < 1e-9
    # the other engine's adapter is fresh: it is the bare base
    assert asked.bare.kl == pytest.approx(found.kl, rel=1e-2)
    with pytest.raises(DataError):
        reference(live, [Sample([5, 6], [True, False])], [], 5)
    monkeypatch.setattr(agreeing, "_KEPT_BYTES", 4 * 1536 * 6)
    few = reference(live, rows, [], 5)
    assert few.log_probabilities_PV.shape == (6, 1536)
    assert few.bare.greedy is None
    assert compare(live, few).top1 == 1.0


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), wanted=st.integers(1, 40))
def test_places_are_even_and_bear_loss(lengths: list[int], wanted: int) -> None:
    rows = [Sample(list(range(n)), [random.random() < 0.5 for _ in range(n)]) for n in lengths]
    every = [(i, t) for i, row in enumerate(rows) for t in range(len(row.ids) - 1) if row.loss_mask[t + 1]]
    chosen = [(i, t) for i, positions in agreeing._choose_positions(rows, wanted) for t in positions]
    assert len(chosen) == len(set(chosen)) == min(wanted, len(every))
    ranks = [every.index(place) for place in chosen]
    assert ranks == sorted(ranks)
    gaps = [b - a for a, b in itertools.pairwise(ranks)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(st.integers(2, 50), st.floats(0, 30), st.booleans())
def test_divergence(size: int, spread: float, infinite: bool) -> None:
    p, q = (torch.randn(size) * spread for _ in range(2))
    if infinite:
        p[0] = -math.inf  # a token that is never said
    p, q = p.log_softmax(0), q.log_softmax(0)
    want = torch.nn.functional.kl_div(q.double(), p.double(), reduction="none",
                                      log_target=True).nan_to_num(0.0).sum().item()
    assert agreeing._divergence(p, q) == pytest.approx(want, rel=1e-4, abs=1e-5)
    assert agreeing._divergence(p, p) == 0.0
    assert agreeing._divergence(q, p) == math.inf if infinite else agreeing._divergence(q, p) >= 0


def _found(kl: float) -> Agreement:
    return Agreement(kl, 1.0, None, 1.0, 1.0, 9, 0)


def test_when_a_merge_has_lost() -> None:
    assert lost(_found(0.49), _found(1.0)) is None
    assert "half" in str(lost(_found(0.5), _found(1.0)))
    assert "half" in str(lost(_found(math.nan), _found(1.0)))
    assert "half" in str(lost(_found(math.inf), _found(math.inf)))
    assert lost(_found(0.5), _found(math.inf)) is None
    assert "nothing" in str(lost(_found(0.0), _found(0.0)))
    assert "NaN" in str(lost(_found(0.0), _found(math.nan)))
    assert better([("a", _found(math.nan)), ("b", _found(3.0)), ("c", _found(2.0)),
                   ("d", _found(2.0))]) == "c"
    assert _found(math.nan).figures()["kl"] is None
