"""The registry of ways to keep frozen weights: one file each, and nobody else knows the list."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tunesmith
from conftest import RECIPE
from tunesmith.model.libraries import import_bitsandbytes
from tunesmith.model.native.weights import DenseWeight, QuantisedWeight, build_weight, side_by_side
from tunesmith.model.quantization import AS_THEY_ARE, WAYS, choices, smallest
from tunesmith.recipe.schema import ModelSection

SRC = Path(tunesmith.__file__).parent
QUANTISED = [name for name, way in WAYS.items() if way.quantised]

#: A way of keeping weights that no library has: in fp16, whatever is computed in.
NEW_WAY = '''
import torch
from tunesmith.model.quantization import WAYS
from tunesmith.model.quantization.way import Way

class Half(Way):
    name, about, also_called = "half", "made up", ("load_in_half",)
    size_share, loading_code, loading_import = 0.9, "half=Half()", "Half"

    def value_bytes(self, computed_bytes):
        return 2.0

    def _layers(self, model):
        return {name: layer for name, layer in model.named_modules()
                if isinstance(layer, torch.nn.Linear) and not name.endswith("lm_head")}

    def reaches(self, model):
        return frozenset(self._layers(model))

    def prepare(self, model):
        for layer in self._layers(model).values():
            layer.weight.data = layer.weight.data.half().to(layer.weight.dtype)
            layer.weight.kept_in_half = True

    def count(self, parameter):
        return parameter.numel() if getattr(parameter, "kept_in_half", False) else None

    def layer(self, inputs, outputs):
        return torch.nn.Linear(inputs, outputs, bias=False)

    def quantise(self, weight_OI):
        return {"half": weight_OI.half()}

    def fill(self, parts, out_OI):
        out_OI.copy_(parts["half"])

WAYS["half"] = Half()
'''
USED = """
import json, sys
from pathlib import Path
import tunesmith
from tunesmith.errors import TunesmithError
from tunesmith.recipe.load import parse_recipe
from tunesmith.planning import activation_budget_bytes

told = {"plan": tunesmith.plan("r.yaml"),
        "doctor": [check["name"] for check in tunesmith.doctor()["checks"] if check["works"]]}
for engine in ("hf", "native"):
    told[engine] = tunesmith.train("r.yaml", run=engine, overrides=[f"train.engine={engine}"])
    told[engine]["manifest"] = json.loads(Path(engine, "manifest.json").read_text())
    told[engine]["kept"] = json.loads(Path(engine, "adapter/tunesmith.json").read_text())["trained"]["kept"]
told["answer"] = tunesmith.generate("native", prompt="x", max_new_tokens=2)
told["judged"] = tunesmith.evaluate("native")
told["merged"] = tunesmith.merge("native", "merged")
told["card"] = Path("native/adapter/README.md").read_text()
told["errors"] = []
for attempt in (lambda: tunesmith.generate("native", prompt="x", quantization="nothing"),
                lambda: parse_recipe("model: {base: x, load_in_half: true}\\n"
                                      "data: {source: x, completion: c}"),
                lambda: parse_recipe("model: {base: x, quantization: haff}\\n"
                                      "data: {source: x, completion: c}")):
    try:
        attempt()
    except TunesmithError as error:
        told["errors"].append(str(error))
told["budget"] = activation_budget_bytes(free_bytes=10000, host_bytes=0, quantization="half", value_bytes=4,
                                        linear=1000, others=0,
                                         trainable=0)
from tunesmith.cli.merge import merge
import typing
told["help"] = typing.get_type_hints(merge, include_extras=True)["quantization"].__metadata__[0].help
json.dump(told, open("told.json", "w"), default=str)
"""


def test_a_file_and_a_row_are_all_that_a_new_way_needs(tmp_path: Path) -> None:
    """Recipe, plan, doctor, engines, judging, answers, merging, card, errors, help: none is told of it."""
    (tmp_path / "r.yaml").write_text(RECIPE.replace("quantization: none",
                                                    "quantization: "
                                                    "half").replace("max_steps: 6", "max_steps: 2"))
    done = subprocess.run([sys.executable, "-c", NEW_WAY + USED], cwd=tmp_path, capture_output=True,
                          text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads((tmp_path / "told.json").read_text())
    assert told["plan"]["quantization"] == "half"
    assert told["plan"]["quantised_percent"] > 50
    assert "half on CPU (bitsandbytes)" in told["doctor"]
    hf, native = (told[engine]["manifest"] for engine in ("hf", "native"))
    assert hf["engine"] == "hf"
    assert native["engine"] == "native"
    assert hf["quantization"] == native["quantization"] == told["answer"]["quantization"] == "half"
    assert told["hf"]["kept"] == told["native"]["kept"]
    assert told["hf"]["kept"]["half"] > 100_000
    assert told["hf"]["judgement"]["loss_tuned"] == pytest.approx(told["native"]["judgement"]["loss_tuned"],
                                                                  rel=1e-4)
    assert told["judged"]["loss_tuned"] == pytest.approx(told["native"]["judgement"]["loss_tuned"], rel=1e-6)
    assert set(told["merged"]["candidates"]) >= {"dequantised half base"}
    assert "half=Half()" in told["card"]
    assert "GenerationConfig" not in told["card"] or "Half, GenerationConfig" in told["card"]
    unknown, meant, near = told["errors"]
    assert "none, int8, nf4 or half" in unknown
    assert "Did you mean model.quantization: half?" in meant
    assert "'none', 'int8', 'nf4' or 'half'" in near
    assert "half (made up)" in near
    assert told["budget"] == pytest.approx(0.8 * (10000 - 2000))
    assert "none | int8 | nf4 | half" in told["help"]


def test_the_names_are_those_of_the_interface() -> None:
    assert list(WAYS) == ["none", "int8", "nf4"]
    assert all(way.name == name for name, way in WAYS.items())
    assert get_args(ModelSection.model_fields["quantization"].annotation) == tuple(WAYS)
    assert (choices(), choices(QUANTISED), choices(["int8"])) == ("none, int8 or nf4", "int8 or nf4", "int8")
    assert (AS_THEY_ARE, smallest()) == ("none", "nf4")


def test_reading_the_registry_imports_no_torch() -> None:
    script = ("import sys, tunesmith.model.quantization, tunesmith.recipe, tunesmith.planning, "
              "tunesmith.cli.merge, "
              "tunesmith.cli.generate, tunesmith.cli.texts\n"
              "print([name for name in ('torch', 'transformers', 'bitsandbytes', "
              "'peft') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


#: Where a name of a way may stand, with what it is there.
_ALLOWED = {
    "recipe/schema.py": "the default, and matmul's own int8", "model/native/engine.py": "matmul's own int8",
    "model/peft_config.py": "bias: none", "model/lora.py": "bias: none",
    "model/hf/engine.py": "reduction: none", "share/gguf/tokenizer.py": "a step of a tokenizer that is none"}


def _names(path: Path) -> set[str]:
    """Names of ways in a file's code: as a constant or in a message; docstrings say what they like."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
            and isinstance(node.body[0], ast.Expr)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
             and isinstance(node.value, str) and id(node) not in docs]
    return {name for name in WAYS if name in texts} | {name for name in ("int8", "nf4") for text in texts
                                                       if re.search(rf"\b{name}\b", text)}


def test_no_other_file_knows_the_list() -> None:
    found = {path.relative_to(SRC).as_posix(): _names(path) for path in SRC.rglob("*.py")}
    own = {name for name in found if name.startswith("model/quantization/")}
    kernels = {name for name in found if name.startswith("model/native/kernels/")}
    assert {name for each in own for name in found[each]} == set(WAYS)
    strangers = {name: words for name, words in found.items() if words and name not in own | kernels
                 and name not in _ALLOWED}
    assert strangers == {}
    assert not any({"nf4"} & found[name] for name in _ALLOWED if name in found)


@settings(max_examples=30)
@given(outputs=st.integers(1, 40), inputs=st.integers(1, 200), seed=st.integers(0, 2**31),
       dtype=st.sampled_from(
    [torch.float32, torch.bfloat16, torch.float16]))
def test_each_way_is_bitsandbytes_to_the_bit(outputs: int, inputs: int, seed: int,
                                             dtype: torch.dtype) -> None:
    weight_OI = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    functional = import_bitsandbytes().functional
    q_OI, absmax_O, _ = functional.int8_vectorwise_quant(weight_OI.half())
    weight = build_weight(weight_OI, "int8", dtype)
    assert torch.equal(weight.dense(), (q_OI * (absmax_O / 127)[:, None]).to(dtype))
    packed, state = functional.quantize_4bit(weight_OI, blocksize=64, compress_statistics=True,
                                             quant_type="nf4")
    # as one long row: its routine is wrong where blocks span rows
    state.shape = torch.Size([weight_OI.numel()])
    want_OI = functional.dequantize_4bit(packed, state).reshape(outputs, inputs)
    assert torch.equal(build_weight(weight_OI, "nf4", torch.float32).dense(), want_OI)
    assert torch.equal(build_weight(weight_OI, "none", dtype).dense(), weight_OI.to(dtype))


@pytest.mark.parametrize("name", sorted(WAYS))
def test_weights_side_by_side_are_each_of_them(name: str) -> None:
    weights_OI = [torch.randn(outputs, 48) for outputs in (24, 8, 8)]
    kept = [build_weight(weight_OI, name, torch.float32) for weight_OI in weights_OI]
    together = side_by_side(list(kept))
    assert (together.outputs, together.inputs) == (40, 48)
    assert torch.equal(together.dense(), torch.cat([weight.dense() for weight in kept]))
    assert side_by_side([kept[0]]) is kept[0]
    other = "int8" if name != "int8" else "nf4"
    mixed = side_by_side([kept[0], build_weight(weights_OI[1], other, torch.float32)])
    assert torch.equal(mixed.dense()[:24], kept[0].dense())


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_weight_keeps_what_its_way_makes_and_counts(name: str) -> None:
    way, weight_OI = WAYS[name], torch.randn(256, 512)
    kept = build_weight(weight_OI, name, torch.float32)
    assert isinstance(kept, QuantisedWeight)
    assert not any(parameter.requires_grad for parameter in kept.parameters())
    held = sum(tensor.numel() * tensor.itemsize for tensor in kept.parts.values())
    assert held / weight_OI.numel() == pytest.approx(way.value_bytes(4), rel=0.1)
    assert (kept.dense() - weight_OI).norm() / weight_OI.norm() < 0.15
    assert isinstance(build_weight(weight_OI, AS_THEY_ARE, torch.float32), DenseWeight)


def test_weights_as_they_are_have_nothing_to_quantise() -> None:
    way = WAYS[AS_THEY_ARE]
    assert (way.value_bytes(2), way.size_share, way.transformers_config(torch.float32)) == (2, 1.0, None)
    for attempt in (
        lambda: way.quantise(torch.ones(2, 2)),
        lambda: way.fill({}, torch.ones(2, 2)),
        lambda: way.layer(2, 2),
    ):
        with pytest.raises(NotImplementedError, match="none"):
            attempt()
