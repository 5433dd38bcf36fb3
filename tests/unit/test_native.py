"""The native engine against the hf engine, on tiny random bases of every family, in fp32 on a CPU."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from native_bases import (
    FAMILIES,
    SEED,
    VOCABULARY,
    WINDOW,
    Bases,
    Sample,
    build,
    error,
    gradients,
    pair,
    randomise,
    rewrite_config,
    rewrite_tensors,
    samples,
    tokenizer,
    write_base,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from placed import at
from typer.testing import CliRunner

from tunesmith.cli.main import app
from tunesmith.errors import EnvironmentFault, IntegrityError, RecipeError, TunesmithError
from tunesmith.model.base_config import config_object
from tunesmith.model.build import build_with_adapter
from tunesmith.model.dropout import sample_seeds
from tunesmith.model.engines import choose_engine
from tunesmith.model.families import FAMILIES as KNOWN
from tunesmith.model.families import describe, why_not_native
from tunesmith.model.files import BaseFiles, locate_base
from tunesmith.model.lora import LoraSettings
from tunesmith.model.native import adapter as native_adapter
from tunesmith.model.native.engine import NativeEngine, load_decoder
from tunesmith.model.native.int8_products import CALIBRATION_PASSES
from tunesmith.model.placement import place_base
from tunesmith.training.optim import build_optimizer, build_scaler
from tunesmith.training.resume import Progress, checkpoint_files, restore, seed_everything
from tunesmith.training.step import MicroBatchPlan, optimiser_step

WAYS = ["none", "int8", "nf4"]
#: Those that differ most in what their layers do.
SOME = ["bloom-6-heads", "llama-biases", "mistral-window", "qwen3"]
each_way = pytest.mark.parametrize("quantization", WAYS)
some = pytest.mark.parametrize("family", SOME)


@pytest.fixture(autouse=True)
def fresh_seed(request: pytest.FixtureRequest) -> None:
    """Each run draws inputs of its own; a failing test shows the seed that brings them back."""
    print(f"TUNESMITH_TEST_SEED={SEED}")
    torch.manual_seed(SEED + sum(map(ord, request.node.name)))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))


def row_lengths() -> list[int]:
    """One token, two, just around the window, and longer; in random order."""
    lengths = torch.tensor([1, 2, WINDOW, WINDOW + 1, int(torch.randint(20, 70, ()))])
    return lengths[torch.randperm(5)].tolist()


def assert_same_gradients(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor],
                          bound: float = 1e-3) -> None:
    """Relative error of each. In fp32 most are within 1e-5; where a draw's softmax cancels, those of q and k
    reach 2e-4. What is wrong (another mask, a bias left out) is off by more than a hundredth.
    """
    assert list(got) == list(want)
    assert all(grad.any() for grad in want.values())
    far = {name: error(got[name], want[name]) for name in want if not error(got[name], want[name]) < bound}
    assert not far


def in_lines(wrong: dict[Any, str]) -> str:
    return "\n" + "\n".join(f"{key}: {what}" for key, what in wrong.items())


# --- the same numbers as the hf engine ---


@each_way
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_logits_and_every_gradient_are_the_hf_engines(bases: Bases, family: str,
                                                             quantization: str) -> None:
    hf, native = pair(bases(family), quantization=quantization)
    rows = samples(row_lengths())
    want_losses, want = gradients(hf, rows)
    losses, got = gradients(native, rows)
    assert error(losses, want_losses) < 1e-5
    assert torch.equal(native.losses(rows), losses)
    assert_same_gradients(got, want)
    # In training mode bitsandbytes, too, turns int8 weights back on a CPU.
    for ours, theirs in zip(native.logits([row.ids for row in rows]), hf.logits([row.ids for row in rows]),
                            strict=True):
        assert ours.dtype == torch.float32
        assert error(ours, theirs) < 1e-5


@each_way
def test_the_embedded_base_is_read_alike(quantization: str) -> None:
    hf, native = pair(locate_base("embedded:sprout", None), quantization=quantization)
    rows = samples(row_lengths())
    (want_losses, want), (losses, got) = gradients(hf, rows), gradients(native, rows)
    assert error(losses, want_losses) < 1e-5
    assert_same_gradients(got, want)
    assert native.parameter_counts() == hf.parameter_counts()
    assert (native.stop_ids, native.pad_id, native.positions) == (hf.stop_ids, hf.pad_id, hf.positions)


@some
def test_judging_in_int8_is_no_further_from_exact_than_bitsandbytes(bases: Bases, family: str) -> None:
    hf, native = pair(bases(family), quantization="int8")
    ids = [row.ids for row in samples(row_lengths())]
    exact = torch.cat(hf.logits(ids))
    for engine in (hf, native):
        engine.training(False)
    theirs = error(torch.cat(hf.logits(ids)), exact)
    assert theirs > 1e-4  # or this would measure nothing
    assert error(torch.cat(native.logits(ids)), exact) <= min(theirs, 1e-5)


@pytest.mark.parametrize("family", ["bloom", "llama", "mistral-window"])
def test_a_long_row_among_short_ones(bases: Bases, family: str) -> None:
    """1,500 tokens: with 8 heads beyond what the attention of short samples takes, with 4 within."""
    hf, native = pair(bases(family), targets="auto")
    rows = samples([3, 1500, 1, 40])
    want_losses, want = 0, {}
    for row in rows:  # one by one: nothing stands beside them
        if len(row.ids) > 1:
            loss, grads = gradients(hf, [row])
            want_losses, want = want_losses + loss, {name: grads[name] + want.get(name, 0) for name in grads}
    losses, got = gradients(native, rows)
    assert error(losses.sum(), want_losses[0]) < 1e-5
    assert_same_gradients(got, want)


def _best_draw(near: Callable[[], float], enough: float) -> float:
    """How near rounded gradients come to exact ones, over as many as three random adapters.

    Where attention looks at one token almost alone, the gradients of q and k are small differences of large
    numbers, which any rounding changes much: about one draw in fifty falls below the bound that a fault stays
    below at each draw.
    """
    best = -1.0
    for _ in range(3):
        best = max(best, near())
        if best > enough:
            break
    return best


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["bloom", "qwen3", "mistral-window"])
def test_sixteen_bits_on_a_cpu(bases: Bases, family: str, dtype: str) -> None:
    exact, native = build(bases(family), "hf"), build(bases(family), "native", dtype=dtype)

    def near() -> float:
        randomise(exact, native)
        rows = samples([30, 1, 12])
        (want_losses, want), (losses, got) = gradients(exact, rows), gradients(native, rows)
        assert error(losses, want_losses) < 0.05
        flat, want_flat = (torch.cat([grad.flatten() for grad in grads.values()]) for grads in (got, want))
        return torch.cosine_similarity(flat, want_flat, dim=0).item()

    assert _best_draw(near, enough=0.97) > 0.97
    native.generate([[5], [6, 7]], 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_as_peft_counts_them(bases: Bases, family: str) -> None:
    """Also the norms of q and k (Qwen3)."""
    assert build(bases(family), "native").parameter_counts() == build(bases(family), "hf").parameter_counts()


def _older(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 4 and the checkpoints on the Hub write it."""
    config = dict(config)
    rope = config.pop("rope_parameters", None)
    if rope:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = (
            None if rope["rope_type"] == "default" else {"type": rope.pop("rope_type"), **rope}
        )
    if config["model_type"] == "bloom":
        config |= {"n_embed": config.pop("hidden_size"), "num_attention_heads": config.pop("n_head")}
    elif (
        config.get("head_dim") == config["hidden_size"] // config["num_attention_heads"]
        and config["model_type"] != "qwen3"
    ):
        del config["head_dim"]
    config.pop("layer_types", None)
    return config | {"torch_dtype": config.pop("dtype", "float32")}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "qwen3-biases"])
def test_configs_of_older_transformers_mean_the_same(bases: Bases, family: str, tmp_path: Path) -> None:
    """Layers below max_window_layers see everything."""
    base = rewrite_config(bases.copy(family, tmp_path / "older").folder, _older)
    hf, native = pair(base)
    ids = [row.ids for row in samples(row_lengths())]
    assert choose_engine("native", base.config)[0] == "native"
    assert error(torch.cat(native.logits(ids)), torch.cat(hf.logits(ids))) < 1e-5


def test_layers_of_older_configs_that_differ_in_how_far_they_see_are_not_taken(
    bases: Bases, tmp_path: Path
) -> None:
    """Also where layer_types is left out and max_window_layers alone says so."""
    base = rewrite_config(bases.copy("qwen2-window", tmp_path / "base").folder,
                          lambda config: _older(config) | {"max_window_layers": 1})
    engine = build(base, choose_engine("auto", base.config)[0])
    ids = samples([40])[0].ids
    assert error(engine.logits([ids])[0], build(base, "hf").logits([ids])[0]) < 1e-5


@pytest.mark.parametrize("family", ["bloom-untied", "llama", "yarn-rope", "mistral-window", "qwen3"])
def test_whatever_a_config_leaves_out_is_taken_as_transformers_takes_it(
    bases: Bases, family: str, tmp_path: Path
) -> None:
    """Each key left out in turn: the hf engine's numbers, or an error of our own; never a wrong result."""
    whole = bases.copy(family, tmp_path / "base")
    ids = [row.ids for row in samples([WINDOW + 5, 3])]
    wrong = {}
    for key in sorted(set(whole.config) - {"model_type", "architectures", "transformers_version"}):
        base = dataclasses.replace(whole, config={name: value for name, value in whole.config.items()
                                                  if name != key})
        (base.folder / "config.json").write_text(json.dumps(base.config))
        try:
            native = build(base, choose_engine("native", base.config)[0])
        except TunesmithError:
            continue
        except Exception as found:
            wrong[key] = repr(found)
            continue
        try:
            hf = build(base, "hf")
        except TunesmithError as refused:
            wrong[key] = f"hf: {refused.message}"
            continue
        randomise(hf, native)
        far = error(torch.cat(native.logits(ids)), torch.cat(hf.logits(ids)))
        if not far < 1e-5:
            wrong[key] = f"logits off by {far:.2g}"
    assert not wrong, in_lines(wrong)


@pytest.mark.parametrize(("config", "expected"), [
    ({"model_type": "mistral", "sliding_window": 7}, 7),
    ({"model_type": "mistral", "sliding_window": None}, None),
    ({"model_type": "mistral"}, 4096),  # transformers' default
    ({"model_type": "llama", "sliding_window": 7}, None),
    ({"model_type": "qwen2", "sliding_window": 7}, None),
    ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": False}, None),
    ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": True,
      "layer_types": ["full_attention"]}, None),
    ({"model_type": "qwen3", "sliding_window": 7, "use_sliding_window": True,
      "layer_types": ["sliding_attention"]}, 7),
])
def test_windows(config: dict[str, Any], expected: int | None) -> None:
    found = describe({**LLAMA, "num_hidden_layers": 1, "num_key_value_heads": 4, **config})
    assert found is not None
    assert found.windows == (expected,)


@pytest.mark.parametrize("family", ["llama-all-heads-fp16", "bloom"])
@pytest.mark.parametrize("head", ["copy", "other"])
def test_a_head_in_the_file_beside_an_embedding_that_the_config_ties(bases: Bases, family: str, head: str,
                                                                     tmp_path: Path) -> None:
    """A copy is nothing new. Another head is taken as it is, says transformers."""
    base = rewrite_config(bases.copy(family, tmp_path / "base").folder, lambda config: config
                          | {"tie_word_embeddings": True})
    key = "transformer.word_embeddings.weight" if family == "bloom" else "model.embed_tokens.weight"
    rewrite_tensors(base.folder, lambda tensors: tensors | {
        "lm_head.weight": tensors[key].clone() if head == "copy" else torch.randn_like(tensors[key])})
    hf, native = pair(base)
    ids = samples([9])[0].ids
    assert error(native.logits([ids])[0], hf.logits([ids])[0]) < 1e-5
    assert native.parameter_counts() == hf.parameter_counts()


@pytest.mark.parametrize(("family", "extra", "width"), [
    ("llama", "model.layers.0.self_attn.q_proj.bias", 48), ("llama", "model.layers.1.mlp.down_proj.bias", 48),
    ("qwen2", "model.layers.0.self_attn.o_proj.bias", 48), ("mistral", "model.norm.bias", 48),
    ("qwen2", "model.layers.0.self_attn.q_norm.weight", 12),
])
def test_tensors_that_the_config_does_not_call_for_change_nothing(bases: Bases, family: str, extra: str,
                                                                  width: int, tmp_path: Path) -> None:
    """As in transformers. What a layer has, the config says."""
    base = bases.copy(family, tmp_path / "base")
    rewrite_tensors(base.folder, lambda tensors: tensors | {extra: torch.full((width,), 3.0)})
    hf, native = pair(base)
    ids = samples([9])[0].ids
    assert error(native.logits([ids])[0], hf.logits([ids])[0]) < 1e-5


# --- the adapter ---


@pytest.mark.parametrize("alpha", [7.5, 16.0])
@pytest.mark.parametrize(("family", "targets"), [
    ("bloom-6-heads", "auto"), ("bloom-6-heads", ["dense_4h_to_h", "self_attention.dense"]),
    ("llama", "auto"), ("llama", ["q_proj", "down_proj"]), ("llama", "v_proj"),
    ("llama", ["mlp.up_proj", "o_proj", "o_proj"]),
    ("llama", ["model.layers.1.self_attn.k_proj", "gate_proj"]), ("qwen3", ["k_proj", "v_proj"]),
    ("mistral", ["v_proj", "q_proj"]),
])
def test_adapters_begin_learn_and_are_written_alike(bases: Bases, family: str, targets: Any,
                                                    alpha: float) -> None:
    base = bases(family)
    seed = int(torch.randint(2**31, ()))
    hf, native = (build(base, engine, targets=targets, alpha=alpha, dropout=0.05, seed=seed)
                  for engine in ("hf", "native"))
    assert list(native.trainable()) == list(hf.trainable())
    for name, parameter in hf.trainable().items():
        ours = native.trainable()[name]
        assert ours.requires_grad
        assert torch.equal(ours, parameter), name
        assert parameter.any() == (".lora_A." in name)
    assert native.adapter_files() == hf.adapter_files()
    randomise(hf, native)
    files = native.adapter_files()
    assert files == hf.adapter_files()
    assert json.loads(files["adapter_config.json"])["lora_alpha"] == alpha
    hf, native = pair(base, targets=targets, alpha=alpha)
    rows = samples([12, 5])
    (want_losses, want), (losses, got) = gradients(hf, rows), gradients(native, rows)
    assert error(losses, want_losses) < 1e-5
    assert_same_gradients(got, want)


@pytest.mark.parametrize("family", ["bloom", "llama", "embedded:sprout"])
def test_all_linear_is_written_alike(bases: Bases, family: str) -> None:
    """PEFT writes down full names up to 20 modules, and the shortest endings that tell them apart beyond."""
    base = bases(family) if family in FAMILIES else locate_base(family, None)
    hf, native = (build(base, engine, targets="all-linear") for engine in ("hf", "native"))
    assert list(native.trainable()) == list(hf.trainable())
    ours, theirs = native.adapter_files(), hf.adapter_files()
    assert ours["adapter_model.safetensors"] == theirs["adapter_model.safetensors"]
    assert ours["adapter_config.json"].decode() == theirs["adapter_config.json"].decode()


def test_targets_that_are_not_there_are_refused_by_name(bases: Bases) -> None:
    for targets in (["q_proj", "proj"], ["lm_head"], ["qkv_proj"], "gate"):
        for engine in ("hf", "native"):
            with pytest.raises(RecipeError,
                               match=f"called '{targets if isinstance(targets, str) else targets[-1]}'"):
                build(bases("llama"), engine, targets=targets)


def test_auto_targets_are_pefts() -> None:
    for name, family in KNOWN.items():
        assert list(family.PEFT_TARGETS
                    or ()) == TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(name, [])


def _described(config: dict[str, Any]) -> Any:
    found = describe(config)
    assert found is not None
    return found


@pytest.mark.parametrize("family", sorted(KNOWN))
def test_a_config_may_leave_out_what_transformers_adds(family: str) -> None:
    """The shortest config's described parts are those of the config with all of transformers' defaults."""
    short: dict[str, Any] = {"model_type": family, "vocab_size": 96, "hidden_size": 256,
                             "num_attention_heads": 32, "num_hidden_layers": 4, "intermediate_size": 40}
    if family == "bloom":
        short = {"model_type": family, "vocab_size": 96}
    whole = transformers.AutoConfig.for_model(**short).to_dict()
    assert _described(short) == _described(whole)
    assert not why_not_native(short)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_describes_the_model_that_transformers_builds(bases: Bases, name: str) -> None:
    """Every parameter by name and shape, and no other."""
    found = _described(bases(name).config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config_object(bases(name).config))
    want = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    got = {f"{found.embedding}.weight": (found.vocabulary, found.hidden)}
    for projection in found.projections():
        for module, outputs in projection.outputs.items():
            got[f"{module}.weight"] = (outputs, projection.inputs)
            if projection.bias:
                got[f"{module}.bias"] = (outputs,)
    norms = [norm for layer in found.layers for norm in layer.norms()]
    for norm in [*norms, found.final_norm, *([found.embedding_norm] if found.embedding_norm else [])]:
        got[f"{norm.name}.weight"] = (norm.width,)
        if norm.shift:
            got[f"{norm.name}.bias"] = (norm.width,)
    if not found.tied:
        got["lm_head.weight"] = (found.vocabulary, found.hidden)
    assert got == want
    assert sum(math.prod(shape) for shape in want.values()) == found.other_parameters + sum(
        projection.parameters for projection in found.projections())


@each_way
@some
def test_stock_peft_loads_the_file_and_loses_the_same(bases: Bases, family: str, quantization: str,
                                                      tmp_path: Path) -> None:
    from tunesmith.model.quantization import WAYS as HOW

    base = bases(family)
    native = build(base, "native", quantization=quantization)
    randomise(native)
    for name, content in native.adapter_files().items():
        (tmp_path / name).write_bytes(content)
    stock = transformers.AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=torch.float32, device_map="cpu",
        quantization_config=HOW[quantization].transformers_config(torch.float32))
    HOW[quantization].prepare(stock)
    # in training int8 weights are turned back
    stock = peft.PeftModel.from_pretrained(stock, tmp_path).train()
    row = Sample(torch.randint(4, VOCABULARY, (40,)).tolist(), [True] * 40)
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        theirs = stock(input_ids=ids, labels=ids).loss.item()
    assert native.losses([row]).item() / 39 == pytest.approx(theirs, rel=1e-5)
    back = build_with_adapter(base, tokenizer(), tmp_path, at("native", quantization, "auto"))
    assert back.name == "native"
    assert torch.equal(back.logits([row.ids])[0], native.logits([row.ids])[0])
    assert back.adapter_files() == native.adapter_files()
    with native.adapter_disabled():
        assert error(back.logits([row.ids])[0], native.logits([row.ids])[0]) > 1e-2


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "nan", "other base"])
def test_adapters_that_do_not_fit_are_refused_by_name(bases: Bases, damage: str, tmp_path: Path) -> None:
    native = build(bases("llama"), "native", targets="auto")
    randomise(native)
    files = native.adapter_files()
    state = safetensors.torch.load(files["adapter_model.safetensors"])
    name = sorted(state)[1]
    if damage == "missing":
        del state[name]
    elif damage == "extra":
        name = "base_model.model.else.lora_A.weight"
        state[name] = torch.zeros(1)
    elif damage == "shape":
        state[name] = state[name].T.contiguous()
    elif damage == "nan":
        state[name][0, -1] = math.nan
    base = bases("qwen3" if damage == "other base" else "llama")
    content = safetensors.torch.save(state)
    (tmp_path / "adapter_config.json").write_bytes(files["adapter_config.json"])
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        build_with_adapter(base, tokenizer(), tmp_path, at("native", "none", "auto"))
    assert name in str(caught.value)
    if damage != "other base":
        before = native.adapter_files()
        with pytest.raises(IntegrityError) as caught:
            native.load_adapter_weights(state)
        assert name in str(caught.value)
        assert native.adapter_files() == before


# --- one sample knows nothing of the others ---


@each_way
@some
def test_a_perturbed_sample_leaves_every_other_bit_identical(bases: Bases, family: str,
                                                             quantization: str) -> None:
    native = build(bases(family), "native", quantization=quantization)
    randomise(native)
    ids = [row.ids for row in samples([1, *row_lengths(), 1, 130])]
    before = native.logits(ids)
    for guilty in range(len(ids)):
        changed = [list(row) for row in ids]
        changed[guilty] = [(token + int(torch.randint(1, 1000, ()))) % VOCABULARY
                           for token in changed[guilty]]
        for number, (was, now) in enumerate(zip(before, native.logits(changed), strict=True)):
            assert torch.equal(was, now) == (number != guilty), (number, guilty)


def test_not_even_a_nan_passes_from_one_sample_to_another(bases: Bases) -> None:
    for family in ("llama", "mistral-window", "bloom-untied"):
        native = build(bases(family), "native")
        randomise(native)
        ids = [[5, 6, 7], [8], [9] * 20, [10, 11]]
        before = native.logits(ids)
        native.model.embedding.data[[8, 9]] = math.nan
        after = native.logits(ids)
        assert [bool(row.isnan().any()) for row in after] == [False, True, True, False]
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[3], after[3])


@pytest.mark.parametrize("family", ["bloom", "llama", "mistral-window"])
def test_a_rows_loss_is_the_same_whatever_stands_beside_it(bases: Bases, family: str) -> None:
    native = build(bases(family), "native")
    randomise(native)
    rows = samples([1, 3, 1500, 2, 77, 1])
    together = native.losses(rows)
    assert together.shape == (6,)
    alone = torch.cat([native.losses([row]) for row in rows])
    order = torch.randperm(6)
    shuffled = torch.empty(6).index_copy_(0, order, native.losses([rows[i] for i in order]))
    short = native.losses([rows[0], rows[1], rows[3]])
    # atol: a row of two or three tokens that are nearly sure loses little more than fp32 rounds of its logits
    assert together[0] == together[5] == 0  # nothing comes before the one token
    assert torch.allclose(alone, together, rtol=1e-6, atol=2e-5)
    assert torch.allclose(shuffled, together, rtol=1e-6, atol=2e-5)
    assert torch.allclose(short, together[[0, 1, 3]], rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("family", ["bloom-6-heads", "qwen3"])
def test_rows_that_bear_no_loss(bases: Bases, family: str) -> None:
    native = build(bases(family), "native", dropout=0.1)
    randomise(native)
    for rows in ([Sample([5], [True])], [Sample([5], [True]), Sample([6], [False])],
                 [Sample([7, 8, 9], [True, False, False])]):
        losses, grads = gradients(native, rows)
        assert torch.equal(losses, torch.zeros(len(rows)))
        assert not any(grad.any() for grad in grads.values())
        assert torch.equal(native.losses(rows), losses)
    assert [tuple(logits.shape) for logits in native.logits([[5], [6]])] == [(1, VOCABULARY)] * 2


# --- training ---


@some
def test_gradients_add_up_and_scale_with_the_weight(bases: Bases, family: str) -> None:
    native = build(bases(family), "native")
    randomise(native)
    rows = samples(row_lengths())
    losses, once = gradients(native, rows, weight=0.1)
    again = native.accumulate(rows, torch.tensor(0.3))
    assert torch.equal(again, losses)
    assert not losses.requires_grad
    for name, parameter in native.trainable().items():
        assert error(parameter.grad, 4 * once[name]) < 1e-5


@settings(max_examples=12)
@given(data=st.data())
def test_any_cut_gives_the_same_step(bases: Bases, data: st.DataObject) -> None:
    """With dropout too: its masks belong to the samples."""
    family, share = data.draw(st.sampled_from(SOME)), data.draw(st.sampled_from([0.0, 0.4]))
    engine = _CACHED.setdefault((family, share), None) or build(bases(family), "native", dropout=share)
    _CACHED[family, share] = engine
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    randomise(engine)
    rows = samples(data.draw(st.lists(st.integers(1, 60), min_size=2,
                                      max_size=9).filter(lambda found: max(found) > 1)))
    scaler = build_scaler(torch.float32, engine.device)
    seeds = sample_seeds(data.draw(st.integers(0, 2**63 - 1)), data.draw(st.integers(0, 10**6)), len(rows))

    def step(plan: MicroBatchPlan) -> tuple[float, torch.Tensor]:
        optimizer = build_optimizer(engine.trainable().values(), learning_rate=0.0, weight_decay=0.0)
        result = optimiser_step(engine, optimizer, scaler, rows, step=1, plan=plan, max_grad_norm=0,
                                dropout_seeds=seeds)
        return result.loss, torch.cat([p.grad.flatten().clone() for p in engine.trainable().values()])

    loss, whole = step(MicroBatchPlan(rows=None, max_tokens=10**9, overhead_tokens=10**6))
    most, count = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 5))
    for plan in (MicroBatchPlan(count, 0, 0), MicroBatchPlan(None, most, data.draw(st.integers(0, 100))),
                 MicroBatchPlan(1, 0, 0)):
        other_loss, other = step(plan)
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert error(other, whole) < 1e-5


_CACHED: dict[tuple[str, float], Any] = {}


@each_way
@some
def test_recomputed_activations_give_the_same_gradients(bases: Bases, family: str, quantization: str) -> None:
    native = build(bases(family), "native", quantization=quantization, dropout=0.3)
    randomise(native)
    rows = samples(row_lengths())
    losses, kept = gradients(native, rows)
    for share in (0.5, 1.0):
        native.checkpoint_gradients(share)
        again, recomputed = gradients(native, rows)
        assert torch.allclose(again, losses, rtol=1e-6)
        assert_same_gradients(recomputed, kept, bound=1e-5)


@some
def test_dropout_is_a_matter_of_training_and_of_the_samples_seeds(bases: Bases, family: str) -> None:
    native, plain = (build(bases(family), "native", dropout=share) for share in (0.3, 0.0))
    randomise(native, plain)
    rows, state = samples([20, 3, 9]), torch.get_rng_state()
    seeds, others = sample_seeds(1, 0, 3), sample_seeds(1, 3, 3)
    _, without = gradients(plain, rows)
    losses, first = gradients(native, rows, seeds=seeds)
    other_losses, second = gradients(native, rows, seeds=others)
    again_losses, again = gradients(native, rows, seeds=seeds)
    assert torch.equal(losses, again_losses)
    assert (losses != other_losses).all()
    for name, grad in first.items():
        assert torch.equal(grad, again[name]), name
        assert error(second[name], grad) > 1e-2, name
        assert error(without[name], grad) > 1e-2, name
    # Judging drops nothing, even in the midst of training; and nothing here draws from torch's generator.
    assert torch.equal(native.losses(rows), plain.losses(rows))
    assert torch.equal(native.logits([rows[0].ids])[0], plain.logits([rows[0].ids])[0])
    with pytest.raises(ValueError, match="dropout_seeds"):
        native.accumulate(rows, torch.tensor(0.1))
    native.training(False)
    _, off = gradients(native, rows)
    assert all(torch.equal(off[name], without[name]) for name in off)
    assert torch.equal(torch.get_rng_state(), state)


@each_way
@some
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_with_dropout_are_the_hf_engines(bases: Bases, family: str, quantization: str,
                                                   checkpointing: bool) -> None:
    """Both engines draw the same masks, however each lays the samples out."""
    hf, native = pair(bases(family), quantization=quantization, dropout=0.4)
    if checkpointing:
        native.checkpoint_gradients()
        hf.checkpoint_gradients()
    rows = samples([25, 3, 12])
    want_losses, want = gradients(hf, rows, seeds=sample_seeds(5, 90, 3))
    losses, got = gradients(native, rows, seeds=sample_seeds(5, 90, 3))
    assert error(losses, want_losses) < 1e-5
    assert_same_gradients(got, want)


@pytest.mark.parametrize(("family", "p"), [("bloom-6-heads", 0.5), ("llama", 0.1)])
def test_over_many_seeds_dropout_changes_nothing(bases: Bases, family: str, p: float) -> None:
    """While B is zero the loss does not depend on the masks, so each gradient of B is on average what it is
    without them; with B the average is only near.
    """
    native, plain = (build(bases(family), "native", dropout=share) for share in (p, 0.0))
    rows = samples([25, 4, 11])
    _, without = gradients(plain, rows)
    names, count = [name for name in without if ".lora_B." in name], 40
    drawn = [gradients(native, rows, seeds=sample_seeds(SEED, 3 * i, 3))[1] for i in range(count)]
    for name in names:
        grads = torch.stack([draw[name] for draw in drawn])
        # The squared error of a mean of `count` draws is their variance / count on average; the sum over a
        # matrix, whose entries come from few ranks and many channels, stays within a few times that.
        expected = (grads.var(dim=0).sum() / count).item()
        assert expected > 0
        assert (grads.mean(dim=0) - without[name]).square().sum().item() < 5 * expected, name
    randomise(native, plain)
    for engine in (native, plain):  # a small adapter: what dropout does to the loss is then nearly linear
        for name in names:
            engine.trainable()[name].data *= 0.1
    _, without = gradients(plain, rows)
    drawn = [gradients(native, rows, seeds=sample_seeds(SEED, 3 * i, 3))[1] for i in range(count)]
    mean = torch.cat([torch.stack([draw[name] for draw in drawn]).mean(dim=0).flatten() for name in without])
    assert torch.cosine_similarity(mean, torch.cat([grad.flatten() for grad in without.values()]),
                                   dim=0) > 0.8


def test_no_two_adapters_share_their_dropout(bases: Bases) -> None:
    native = build(bases("llama"), "native", dropout=0.5)
    salts = [adapter.salt for adapter in native_adapter.adapters(native.model)]
    assert len(set(salts)) == len(salts) == 14


def test_a_restored_checkpoint_goes_on_bit_identically(bases: Bases) -> None:
    whole = MicroBatchPlan(rows=2, max_tokens=0, overhead_tokens=0)
    rows = samples([12, 30, 1, 7, 9, 22])
    scaler = build_scaler(torch.float32, torch.device("cpu"))

    def begin(seed: int) -> tuple[Any, Any]:
        engine = build(bases("llama-biases"), "native", dropout=0.2, seed=seed)
        return engine, build_optimizer(engine.trainable().values(), learning_rate=1e-2, weight_decay=0.01)

    def go_on(engine: Any, optimizer: Any) -> tuple[dict[str, bytes], list[float]]:
        losses = [optimiser_step(engine, optimizer, scaler, rows, step=i, plan=whole, max_grad_norm=1,
                                 dropout_seeds=sample_seeds(3, 6 * i, 6)).loss for i in range(3)]
        return engine.adapter_files(), losses

    engine, optimizer = begin(0)
    seed_everything(3)
    go_on(engine, optimizer)
    files = checkpoint_files(engine, optimizer, scaler,
                             Progress(step=3, samples=12, tokens=99, loss_tokens=50, seconds=1.5))
    first = go_on(engine, optimizer)
    engine, optimizer = begin(9)
    assert go_on(engine, optimizer) != first
    restore(files, engine, optimizer, scaler)
    assert go_on(engine, optimizer) == first


@each_way
def test_the_base_never_learns(bases: Bases, quantization: str) -> None:
    native = build(bases("qwen2"), "native", quantization=quantization)
    learns = {id(parameter) for parameter in native.trainable().values()}
    frozen = [p for p in native.model.parameters() if id(p) not in learns]
    assert not any(p.requires_grad for p in frozen)
    before = [p.clone() for p in frozen]
    optimizer = build_optimizer(native.trainable().values(), learning_rate=0.1, weight_decay=0.1)
    scaler = build_scaler(torch.float32, native.device)
    results = [optimiser_step(native, optimizer, scaler, rows, step=1,
                              plan=MicroBatchPlan(None, 10**9, 10**6), max_grad_norm=1)
               for rows in [samples([9, 20])] * 4]
    assert results[-1].loss < results[0].loss
    assert all(torch.equal(was, now) for was, now in zip(before, frozen, strict=True))


# --- answers ---


@pytest.mark.parametrize("family",
                         ["bloom", "bloom-6-heads", "llama", "yarn-rope", "mistral-window", "qwen2", "qwen3"])
def test_answers_are_the_hf_engines(bases: Bases, family: str) -> None:
    hf, native = pair(bases(family))
    for engine in (hf, native):
        engine.training(False)
        engine.stop_ids = []
    hf.model.get_base_model().generation_config.eos_token_id = None  # transformers would go on to stop at it
    prompts = [row.ids for row in samples([1, 2, 30, WINDOW, 5])]
    want = hf.generate(prompts, 12)
    assert native.generate(prompts, 12) == want
    assert all(len(answer.ids) == 12 and not answer.stopped for answer in want)
    assert native.generate(prompts, 1) == hf.generate(prompts, 1) == [
        dataclasses.replace(answer, ids=answer.ids[:1]) for answer in want]
    # The fourth token of one answer, and the first of another, now end them.
    stops = [want[2].ids[3], want[0].ids[0]]
    hf.stop_ids, native.stop_ids = stops, stops
    stopped = native.generate(prompts, 12)
    assert stopped == hf.generate(prompts, 12)
    for answer, long in zip(stopped, want, strict=True):
        end = next((i for i, token in enumerate(long.ids) if token in stops), None)
        assert (answer.ids, answer.stopped) == (long.ids[:end], end is not None)
    assert stopped[0].ids == []
    assert [answer.stopped
            for answer in native.generate(prompts, 1)] == [answer.ids == [] for answer in stopped]


def test_many_prompts_are_answered_in_their_order(bases: Bases) -> None:
    native = build(bases("bloom-6-heads"), "native")
    randomise(native)
    prompts = [row.ids for row in samples(torch.randint(1, 9, (150,)).tolist())]
    answers = native.generate(prompts, 4)
    for i in (0, 1, 63, 64, 65, 149):
        assert native.generate([prompts[i]], 4) == [answers[i]]
    assert native.generate([], 4) == []


@pytest.mark.parametrize(("in_config", "in_generation"),
                         [(7, None), ([7, 9], None), (7, 11), (None, [11, 2]), (None, None)])
def test_both_engines_stop_at_the_same_tokens(bases: Bases, in_config: Any, in_generation: Any,
                                              tmp_path: Path) -> None:
    base = bases.copy("qwen2", tmp_path / "base")
    (base.folder / "generation_config.json").unlink(missing_ok=True)
    if in_generation is not None:
        (base.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": in_generation}))
    base = rewrite_config(base.folder, lambda config: config | {"eos_token_id": in_config})
    hf, native = (build(base, engine) for engine in ("hf", "native"))
    assert (native.stop_ids, native.pad_id) == (hf.stop_ids, hf.pad_id)
    assert tokenizer().eos_token_id in native.stop_ids


@each_way
@some
def test_bare_is_the_bare_base_and_switches_back(bases: Bases, family: str, quantization: str) -> None:
    hf, native = pair(bases(family), quantization=quantization)
    rows = samples([12, 1, 5])
    ids = [row.ids for row in rows]
    before = torch.cat(native.logits(ids))
    zero = build(bases(family), "native", quantization=quantization)  # B is zero at the start
    with native.adapter_disabled(), hf.adapter_disabled():
        bare = torch.cat(native.logits(ids))
        assert error(bare, torch.cat(hf.logits(ids))) < 1e-5
        assert error(native.losses(rows), hf.losses(rows)) < 1e-5
        assert native.generate([ids[0]], 6) == zero.generate([ids[0]], 6)
    assert error(bare, torch.cat(zero.logits(ids))) < 1e-5
    assert error(bare, before) > 1e-2
    assert torch.equal(torch.cat(native.logits(ids)), before)
    with pytest.raises(KeyError), native.adapter_disabled():
        raise KeyError
    assert torch.equal(torch.cat(native.logits(ids)), before)


# --- which engine takes what ---

BLOOM = {"model_type": "bloom", "hidden_size": 64, "n_head": 8, "n_layer": 2, "vocab_size": 100}
LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
         "vocab_size": 100, "intermediate_size": 128}
UNKNOWN = [  # a config, and what the reason must name
    ({"model_type": "gpt2"}, "gpt2"), ({"model_type": "gemma3"}, "gemma3"),
    ({**LLAMA, "model_type": "mixtral"}, "mixtral"),
    ({**LLAMA, "quantization_config": {"quant_method": "gptq"}}, "quantised already"),
    ({**BLOOM, "hidden_dropout": 0.1}, "hidden_dropout"),
    ({**BLOOM, "attention_dropout": 0.1}, "attention_dropout"),
    ({**LLAMA, "attention_dropout": 0.2}, "attention_dropout"),
    ({**BLOOM, "apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ({**LLAMA, "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    ({**LLAMA, "rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
    ({**LLAMA, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ({**LLAMA, "partial_rotary_factor": 0.5}, "part of each head"),
    ({**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
     "part of each head"),
    ({**LLAMA, "model_type": "phi3", "resid_pdrop": 0.1}, "resid_pdrop"),
    ({**LLAMA, "model_type": "phi3", "partial_rotary_factor": 0.2}, "3 channels"),
    ({**LLAMA, "model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ({**LLAMA, "model_type": "smollm3", "no_rope_layers": [1]}, "config.json"),
    ({**LLAMA, "head_dim": 15}, "15"), ({**LLAMA, "head_dim": 258}, "258"),
    ({**BLOOM, "hidden_size": 56}, "7"),
]


@pytest.mark.parametrize(("config", "word"), UNKNOWN, ids=[word for _, word in UNKNOWN])
def test_what_native_does_not_know_falls_back_and_says_why(config: dict[str, Any], word: str) -> None:
    engine, reason = choose_engine("auto", config)
    assert engine == "hf"
    assert word in reason
    assert "\n" not in reason
    with pytest.raises(RecipeError) as caught:
        choose_engine("native", config)
    assert word in caught.value.message
    assert caught.value.message.startswith("train.engine")
    assert choose_engine("hf", config)[0] == "hf"
    with pytest.raises(RecipeError, match=r"train\.matmul"):
        choose_engine("auto", config, "fp8")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_native_knows_it_takes(bases: Bases, family: str) -> None:
    config = bases(family).config
    assert choose_engine("auto", config)[0] == choose_engine("native", config)[0] == "native"
    assert config["model_type"] in choose_engine("auto", config)[1]
    assert choose_engine("hf", config) == ("hf", "asked for")
    assert choose_engine("auto", config, "fp8")[0] == "native"
    with pytest.raises(RecipeError, match="hf is asked for"):
        choose_engine("hf", config, "fp8")


@pytest.mark.parametrize("whole", [BLOOM, LLAMA], ids=["bloom", "llama"])
def test_no_config_is_a_traceback(whole: dict[str, Any]) -> None:
    """What native makes nothing of is hf's to judge."""
    wrong = {}
    for key in sorted({*whole, "head_dim", "rope_scaling", "rope_parameters", "hidden_act",
                       "layer_types"} - {"model_type"}):
        for value in ("absent", None, 0, -3, "many", [], {}, {"rope_type": 3}):
            config = {**whole, key: value}
            if value == "absent":
                del config[key]
            try:
                engine, reason = choose_engine("auto", config)
                assert engine in ("hf", "native")
                assert reason
            except TunesmithError:
                continue
            except Exception as found:
                wrong[key, str(value)] = repr(found)
    assert not wrong, in_lines(wrong)


@pytest.mark.parametrize("matmul", ["fp8", "int8"])
def test_eight_bits_on_a_cpu_are_refused_not_ignored(bases: Bases, matmul: str) -> None:
    with pytest.raises(EnvironmentFault, match=matmul):
        place_base(bases("bloom"), engine="native", quantization="none", device="cpu", matmul=matmul)


#: Adapters that PEFT knows and the native engine need not. The last ones fail each its own way: see the test.
FOREIGN: dict[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "use_rslora": {"use_rslora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 2}},
    "layers_to_transform": {"layers_to_transform": [0]},
    "exclude_modules": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "pattern": {"target_modules": r".*1\.self_attn\.[qv]_proj"},
    "bias": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "trainable_token_indices": {"trainable_token_indices": [3, 4]},
    "lm_head": {"target_modules": ["q_proj", "lm_head"]},
    "embed_tokens": {"target_modules": ["q_proj", "embed_tokens"]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "alora_invocation_tokens": {"alora_invocation_tokens": [5, 6]},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_adapters_of_other_kinds_go_to_the_hf_engine(bases: Bases, kind: str, tmp_path: Path) -> None:
    """Never a wrong result, never an error over an adapter that stock PEFT takes."""
    base = bases("llama-biases")
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
                **FOREIGN[kind]}

    def stock() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)

    model = peft.get_peft_model(stock(), peft.LoraConfig(**settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.2
    model.save_pretrained(tmp_path)
    ids = samples([14])[0].ids
    reference = peft.PeftModel.from_pretrained(stock(), tmp_path).eval()
    with torch.no_grad():
        want = reference(input_ids=torch.tensor([ids])).logits[0]
    by_hf, found = (build_with_adapter(base, tokenizer(), tmp_path, place_base(
        base, engine=engine, quantization="none", device="cpu", adapter=tmp_path))
                    for engine in ("hf", "native"))
    assert error(by_hf.logits([ids])[0], want) < 1e-5
    assert error(found.logits([ids])[0], want) < 1e-5
    assert found.name == "hf"


#: Settings of a LoraConfig that say nothing of what the adapter computes once it is trained and saved.
_HARMLESS = {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
             "inference_mode", "runtime_config", "r", "lora_alpha", "lora_dropout", "target_modules",
             "megatron_core", "qalora_group_size", "layers_pattern", "init_lora_weights", "eva_config",
             "corda_config", "loftq_config", "lora_ga_config",
             # init_lora_weights, whose values they go with, is tried above
             "megatron_config", "ensure_weight_tying"}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(peft.LoraConfig)
                                  if field.name not in _HARMLESS])
def test_no_setting_of_peft_is_passed_over(name: str) -> None:
    """Each setting of the installed PEFT, newer ones too, that is not known as harmless is refused."""
    config = peft.LoraConfig(target_modules=["q_proj"])
    assert native_adapter.why_not(config, LLAMA) is None
    setattr(config, name, "all" if name == "bias" else {"something": 1})
    reason = native_adapter.why_not(config, LLAMA)
    assert reason is not None
    assert name in reason or name in ("bias", "lora_bias")


# --- damaged bases ---


@pytest.mark.parametrize("family", ["bloom", "bloom-no-prefix-fp16", "bloom-untied", "llama", "llama-biases",
                                    "qwen2", "qwen3"])
def test_a_base_that_lacks_any_one_tensor_is_refused_by_its_name(bases: Bases, family: str,
                                                                 tmp_path: Path) -> None:
    """Biases and norms included."""
    base = bases.copy(family, tmp_path / "base")
    tensors = safetensors.torch.load_file(base.weights[0])
    wrong = {}
    for name in tensors:
        if ".1." in name:  # the second layer is as the first
            continue
        safetensors.torch.save_file({key: tensor for key, tensor in tensors.items() if key != name},
                                    base.weights[0])
        try:
            build(base, "native")
            wrong[name] = "taken"
        except IntegrityError as found:
            if name not in str(found):
                wrong[name] = str(found)
        except Exception as found:
            wrong[name] = repr(found)
    assert not wrong, in_lines(wrong)


@pytest.mark.parametrize("family", ["bloom", "llama-biases", "qwen3"])
def test_a_base_with_any_one_tensor_of_another_shape_is_refused_by_its_name(
    bases: Bases, family: str, tmp_path: Path
) -> None:
    base = bases.copy(family, tmp_path / "base")
    tensors = safetensors.torch.load_file(base.weights[0])
    wrong = {}
    for name, tensor in tensors.items():
        if ".1." in name:
            continue
        for other in (tensor[:-1], tensor[..., None], tensor[..., :-1]):
            safetensors.torch.save_file({**tensors, name: other.contiguous()}, base.weights[0])
            try:
                build(base, "native")
                wrong[name] = "taken"
            except IntegrityError as found:
                if name not in str(found) or str(list(tensor.shape)) not in str(found):
                    wrong[name] = str(found)
            except Exception as found:
                wrong[name] = repr(found)
    assert not wrong, in_lines(wrong)


@pytest.mark.parametrize(("family", "change", "named"), [
    ("bloom", {"n_layer": 3}, r"transformer\.h\.2\."),
    ("llama", {"num_hidden_layers": 3}, r"model\.layers\.2\."),
    ("llama", {"vocab_size": 1600}, r"embed_tokens"), ("llama", {"intermediate_size": 96}, r"gate_proj"),
    ("llama", {"num_key_value_heads": 4}, r"k_proj"), ("llama", {"head_dim": 16}, r"q_proj"),
    ("bloom", {"hidden_size": 128}, r"word_embeddings"),
    ("bloom", {"n_head": 10}, None),  # 64 channels are not 10 heads.
    ("llama", {"num_key_value_heads": 3, "head_dim": 8}, None),  # 4 heads of queries do not share 3 of keys.
    ("llama", {"num_hidden_layers": "two"}, None),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, None),
])
def test_a_config_that_is_not_the_weights_is_an_error_of_ours(
        bases: Bases, family: str, change: dict[str, Any], named: str | None, tmp_path: Path) -> None:
    base = rewrite_config(bases.copy(family, tmp_path / "base").folder, lambda config: config | change)
    with pytest.raises(TunesmithError, match=named) as caught:
        build(base, choose_engine("native", base.config)[0])
    if named:
        assert isinstance(caught.value, IntegrityError)


def test_a_truncated_file_and_a_missing_shard(bases: Bases, tmp_path: Path) -> None:
    base = bases.copy("llama-tied-shards", tmp_path / "base")
    gone = base.weights[1]
    names = set(safetensors.torch.load_file(gone))
    gone.unlink()
    with pytest.raises(IntegrityError) as caught:
        build(locate_base(str(base.folder), None), "native")
    assert any(name in str(caught.value) for name in names)
    base = bases.copy("llama", tmp_path / "other")
    content = base.weights[0].read_bytes()
    base.weights[0].write_bytes(content[:len(content) // 2])
    with pytest.raises(IntegrityError, match=r"model\.safetensors|cannot be loaded"):
        build(base, "native")


# --- 8-bit products ---


def _in_eight_bits(base: BaseFiles, quantization: str, matmul: str) -> tuple[Any, Any]:
    """(exact, 8-bit) with the same random adapter; past the door that asks for a GPU."""
    exact = build(base, "native", quantization=quantization)
    decoder = load_decoder(base, quantization=quantization, dtype=torch.float32, device=torch.device("cpu"))
    chosen = native_adapter.attach(decoder, LoraSettings(3, 7.5, 0.0, "all-linear"), base.architecture, 0)
    rounded = NativeEngine(decoder, chosen, tokenizer(), base, quantization=quantization, matmul=matmul)
    randomise(exact, rounded)
    return exact, rounded


@each_way
@pytest.mark.parametrize("matmul", ["fp8", "int8"])
@pytest.mark.parametrize("family", ["bloom", "llama-biases", "qwen3"])
def test_eight_bit_products_are_near_and_judging_is_exact(bases: Bases, family: str, matmul: str,
                                                          quantization: str) -> None:
    exact, rounded = _in_eight_bits(bases(family), quantization, matmul)
    rows = samples([40, 1, 25, 60])
    for _ in range(CALIBRATION_PASSES if matmul == "int8" else 0):  # exact until then
        gradients(rounded, rows)

    def near() -> float:
        (want_losses, want), (losses, got) = gradients(exact, rows), gradients(rounded, rows)
        assert losses.sum().item() == pytest.approx(want_losses.sum().item(), rel=0.02)
        assert max(error(got[name], want[name]) for name in want) > 1e-3  # it is in 8 bits
        cosines = [torch.cosine_similarity(got[name].flatten(), want[name].flatten(), dim=0).item()
                   for name in want]
        randomise(exact, rounded)
        return min(cosines)

    assert _best_draw(near, enough=0.9) > 0.9
    assert torch.equal(rounded.losses(rows), exact.losses(rows))
    ids = [row.ids for row in rows]
    assert torch.equal(torch.cat(rounded.logits(ids)), torch.cat(exact.logits(ids)))
    assert rounded.generate(ids[:2], 5) == exact.generate(ids[:2], 5)


@pytest.mark.parametrize("matmul", ["fp8", "int8"])
def test_layers_too_odd_for_eight_bits_stay_exact(matmul: str, tmp_path: Path) -> None:
    base = write_base(tmp_path, transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=36, n_layer=1,
                                                         n_head=3), seed=SEED)
    exact, rounded = _in_eight_bits(base, "none", matmul)
    rows = samples([9, 14])
    want_losses, want = gradients(exact, rows)
    for _ in range(CALIBRATION_PASSES + 1):
        losses, got = gradients(rounded, rows)
        assert torch.equal(losses, want_losses)
        assert all(torch.equal(got[name], want[name]) for name in want)


# --- the command line ---


def _tunesmith(*words: str) -> Any:
    """The command line, in this process: torch is here already."""
    done = CliRunner().invoke(app, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def _run(recipe: Path, engine: str) -> tuple[list[float], dict[str, Any]]:
    folder = recipe.parent / engine
    done = _tunesmith("train", str(recipe), "--run", str(folder), "--json", "--set", f"train.engine={engine}")
    assert done.exit_code == 0, done.stderr
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    assert result | {"run": str(folder), "adapter": str(folder / "adapter")} == json.loads(done.stdout)
    return losses, result


def test_both_engines_train_the_same_from_the_command_line(recipe: Path) -> None:
    (want, by_hf), (got, by_native) = _run(recipe, "hf"), _run(recipe, "native")
    assert len(want) == 6
    assert got == pytest.approx(want, rel=1e-4)
    assert (by_hf["engine"], by_native["engine"]) == ("hf", "native")
    assert by_native["eval_loss_after"] == pytest.approx(by_hf["eval_loss_after"], rel=1e-4)
    for name in ("trainable_parameters", "all_parameters", "steps"):
        assert by_native[name] == by_hf[name]
    names = ("hf", "native")
    configs = [(recipe.parent / name / "adapter" / "adapter_config.json").read_bytes() for name in names]
    assert configs[0] == configs[1]
    manifests = [json.loads((recipe.parent / name / "manifest.json").read_text()) for name in names]
    assert [manifest["engine"] for manifest in manifests] == list(names)
    assert manifests[0]["data"] == manifests[1]["data"]


def test_auto_says_which_engine_and_why_and_native_refuses(bases: Bases, recipe: Path) -> None:
    base = rewrite_config(bases.copy("llama", recipe.parent / "base").folder,
                          lambda config: config | {"attention_dropout": 0.1})
    words = ("train", str(recipe), "--set", f"model.base={base.folder}", "--set", "train.max_steps=1",
             "--set", "data.validation=0")
    done = _tunesmith(*words, "--run", str(recipe.parent / "one"))
    assert done.exit_code == 0, done.stderr
    assert "attention_dropout" in " ".join((done.stdout + done.stderr).split())
    assert json.loads((recipe.parent / "one" / "result.json").read_text())["engine"] == "hf"
    done = _tunesmith(*words, "--run", str(recipe.parent / "two"), "--set", "train.engine=native")
    assert done.exit_code == RecipeError.exit_code
    assert "attention_dropout" in " ".join(done.stderr.split())
    rewrite_config(base.folder, lambda config: config | {"attention_dropout": 0.0})
    done = _tunesmith(*words, "--run", str(recipe.parent / "three"))
    assert done.exit_code == 0, done.stderr
    assert json.loads((recipe.parent / "three" / "result.json").read_text())["engine"] == "native"
