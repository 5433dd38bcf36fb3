"""Training on one GPU: the native engine and its peers, interleaved, on random weights of public shapes.

    python benchmarks/gpu.py FOLDER LENGTHS PEER [--peer-path DIR] [--cells a,b] [--repeats 5] [--limit-s N]
[--out FILE]

FOLDER: where the models are, or are written to (random weights: shapes and lengths decide the speed).
LENGTHS: a JSON list of the token counts of real samples. PEER: a script, called as `PEER STACK MODEL
--lengths FILE|--seq N --bs B --accum A --steps N --warm N`, that trains with another stack and prints `RESULT
{json}` with tokens_s_median, tokens_s (each step's) and peak_gib. --peer-path: a folder that only the peers
see in front of their packages.

Every measurement is a process of its own; cells joined by + are measured by ours in one process, one after
the other, to save its start. Ours takes optimiser steps by the same function as `tunesmith train`, over a
fixed list of steps: twice or more to warm up, then `--repeats` times. Tokens are real ones: padding is never
counted.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

#: Least steps before the timed ones: int8 products calibrate, and each size of a step becomes a graph.
WARM_STEPS = 10
ALL_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: Floating-point operations a token of products with frozen weights: forward, and backward to the input.
GFLOP_PER_TOKEN = {"bloom-7b1": 28.3, "llama-8b": 32.1}


@dataclass(frozen=True)
class Cell:
    """A measurement. seq: tokens a row, or 0 for the real lengths; samples: a step; steps: in the list."""

    model: str
    quantization: str
    targets: list[str]
    dropout: float
    samples: int = 16
    seq: int = 0
    steps: int = 12
    matmul: str = "exact"
    micro_tokens: int = 1 << 30
    checkpointing: bool = False
    offload: bool = False
    peers: tuple[str, ...] = ()
    peer_rows: tuple[int, int] = (4, 4)


BLOOM = {"model": "bloom-7b1", "targets": ["query_key_value"], "dropout": 0.05}
LLAMA = {"model": "llama-8b", "targets": ALL_SEVEN, "dropout": 0.0}
LONG = {"samples": 4, "seq": 2048, "steps": 2, "peer_rows": (4, 1)}
CELLS = {
    "bloom-int8": Cell(**BLOOM, quantization="int8", peers=("notebook-int8",)),
    "bloom-bf16": Cell(**BLOOM, quantization="none", peers=("hf-bf16-nockpt",)),
    "bloom-nf4": Cell(**BLOOM, quantization="nf4"),
    "bloom-int8-fp8": Cell(**BLOOM, quantization="int8", matmul="fp8"),
    "bloom-int8-int8": Cell(**BLOOM, quantization="int8", matmul="int8"),
    "llama-quotes": Cell(**LLAMA, quantization="none", peers=("unsloth-bf16-pack-nockpt",)),
    "llama-long": Cell(**LLAMA, **LONG, quantization="none", peers=("unsloth-bf16-nockpt",)),
    "llama-long-fp8": Cell(**LLAMA, **LONG, quantization="none", matmul="fp8"),
    "llama-long-int8": Cell(**LLAMA, **LONG, quantization="none", matmul="int8"),
    "llama-long-nf4": Cell(**LLAMA, **LONG, quantization="nf4", micro_tokens=4096, checkpointing=True,
                           peers=("unsloth-nf4",)),
    "llama-long-nf4-offload": Cell(**LLAMA, **LONG, quantization="nf4", checkpointing=True, offload=True),
}
#: How cost grows, by base, a process each: (samples a step, tokens of each, or 0 for the real lengths).
GROWTH = {
    "bloom-560m": Cell("bloom-560m", "int8", BLOOM["targets"], 0.05),
    "bloom-7b1": Cell(**BLOOM, quantization="int8"),
    "llama-8b": Cell(**LLAMA, quantization="int8"),
}
SIZES = [(1, 0), (4, 0), (16, 0), (64, 0), (1, 128), (1, 512), (1, 2048), (1, 8192), (1, 32768)]


def write_model(kind: str, folder: Path) -> None:
    """Random weights in transformers' layout, a shard a layer, made on the GPU, with a stand-in tokenizer."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, PreTrainedTokenizerFast

    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = {"bloom-7b1": BloomConfig(vocab_size=250880, hidden_size=4096, n_layer=30, n_head=32, **special),
              "bloom-560m": BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16,
                                        **special),
              "llama-8b": LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336,
                                      num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                                      max_position_embeddings=131072, rms_norm_eps=1e-5, **special)}[kind]
    dtype = torch.bfloat16 if kind == "llama-8b" else torch.float16
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {name: tensor.shape
                  for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()
                  if not (name == "lm_head.weight" and config.tie_word_embeddings)}
    config.architectures, config.dtype = [{"bloom": "BloomForCausalLM",
                                           "llama": "LlamaForCausalLM"}[config.model_type]], dtype
    config.save_pretrained(folder)
    shards: dict[str, dict[str, Any]] = {}
    layer = {name: re.search(r"\.(\d+)\.", name) for name in shapes}
    where = {name: f"model-{found[1] if found else 'rest'}.safetensors" for name, found in layer.items()}
    for name, shape in shapes.items():
        norm = len(shape) == 1
        value = torch.ones(shape) if norm and name.endswith("weight") else torch.zeros(shape) if norm else (
            torch.randn(shape, device="cuda" if torch.cuda.is_available() else "cpu").mul_(0.02))
        shards.setdefault(where[name], {})[name] = value.to(dtype).cpu()
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, **{f"w{i}": i for i in range(4, 1000)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                            pad_token="<pad>").save_pretrained(folder)


@dataclass
class Row:
    """A random sample that learns every token but its first."""

    ids: list[int]
    loss_mask: list[bool] = field(init=False)
    place: str = "random"

    def __post_init__(self) -> None:
        self.loss_mask = [False] + [True] * (len(self.ids) - 1)

    @property
    def loss_tokens(self) -> int:
        """How many tokens bear loss."""
        return len(self.ids) - 1


def load_ours(cell: Cell, folder: Path) -> tuple[Any, Callable[[list[Row]], Any], float]:
    """(the engine, a function that takes one optimiser step on rows, seconds to load) of a cell."""
    import torch

    from tunesmith.model.build import build_for_training
    from tunesmith.model.dropout import sample_seeds
    from tunesmith.model.files import locate_base
    from tunesmith.model.lora import LoraSettings
    from tunesmith.model.placement import place_base
    from tunesmith.model.tokenizer import load_tokenizer
    from tunesmith.training.optim import build_optimizer, build_scaler
    from tunesmith.training.step import MicroBatchPlan, optimiser_step

    began = time.perf_counter()
    base = locate_base(str(folder / cell.model), None)
    placement = place_base(base, engine="native", quantization=cell.quantization, matmul=cell.matmul)
    engine = build_for_training(base, load_tokenizer(base), placement, seed=0,
                                lora=LoraSettings(16, 32, cell.dropout, cell.targets))
    torch.cuda.synchronize()
    load_s = time.perf_counter() - began
    if cell.checkpointing:
        engine.checkpoint_gradients(offload=cell.offload)
    engine.training(True)
    optimizer = build_optimizer(engine.trainable().values(), learning_rate=2e-4, weight_decay=0.0)
    scaler, plan = build_scaler(engine.dtype, engine.device), MicroBatchPlan(None, cell.micro_tokens, 512)

    def take_step(rows: list[Row]) -> Any:
        return optimiser_step(engine, optimizer, scaler, rows, step=1, plan=plan, max_grad_norm=1.0,
                              dropout_seeds=sample_seeds(0, 0, len(rows)))

    return engine, take_step, load_s


def draw_steps(cell: Cell, vocabulary: int, lengths: list[int]) -> list[list[Row]]:
    """The cell's list of steps."""
    draw = random.Random(1)
    counts = [cell.seq or lengths[i % len(lengths)] for i in range(cell.steps * cell.samples)]
    drawn = [Row([draw.randrange(10, vocabulary - 10) for _ in range(count)]) for count in counts]
    return [drawn[i:i + cell.samples] for i in range(0, len(drawn), cell.samples)]


def measure_ours(cell: Cell, folder: Path, lengths: list[int], repeats: int) -> dict[str, Any]:
    """Train the cell and time it; runs in a process of its own."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # of a cell before this one
    engine, take_step, load_s = load_ours(cell, folder)
    steps = draw_steps(cell, engine.base.config["vocab_size"], lengths)
    torch.cuda.reset_peak_memory_stats()
    passes, losses = [], []
    warm = max(2, -(-WARM_STEPS // len(steps)))
    for turn in range(warm + repeats):
        seconds = []
        for rows in steps:
            started = time.perf_counter()
            result = take_step(rows)
            seconds.append(time.perf_counter() - started)
            losses.append(result.loss)
            if result.grad_norm is None or not result.grad_norm > 0:
                raise SystemExit(f"the gradient's norm is {result.grad_norm}")
        if turn >= warm:
            passes.append(sum(len(row.ids) for rows in steps for row in rows) / sum(seconds))
    return {"load_s": load_s, "tokens_s": passes, "tokens_s_median": statistics.median(passes),
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30, "loss": [losses[0], losses[-1]],
            "tokens_a_step": sum(len(row.ids) for rows in steps for row in rows) / len(steps)}


def measure_growth(cell: Cell, folder: Path, lengths: list[int], repeats: int) -> dict[str, Any]:
    """One base over all `SIZES`, until one does not fit; runs in a process of its own."""
    import torch

    engine, take_step, _ = load_ours(cell, folder)
    weights_gib = torch.cuda.memory_allocated() / 2**30
    found: list[dict[str, Any]] = []
    for samples, seq in SIZES:
        steps = draw_steps(replace(cell, samples=samples, seq=seq, steps=1 if seq > 2048 else 4), 1000,
                           lengths)
        engine._graphs.forget()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        try:
            for turn in range(2 + (repeats if seq <= 2048 else 2)):
                for rows in steps:
                    started = time.perf_counter()
                    take_step(rows)
                    if turn >= 2:
                        seconds.append(time.perf_counter() - started)
        except torch.OutOfMemoryError:
            found.append({"samples": samples, "seq": seq, "error": "out of memory"})
            continue
        tokens = sum(len(row.ids) for rows in steps for row in rows) / len(steps)
        step_s = sum(seconds) / len(seconds)
        found.append({"samples": samples, "seq": seq, "tokens_a_step": tokens, "step_ms": 1000 * step_s,
                      "step_ms_range": [1000 * min(seconds), 1000 * max(seconds)],
                      "us_a_token": 1e6 * step_s / tokens,
                      "peak_gib": torch.cuda.max_memory_allocated() / 2**30})
    return {"weights_gib": weights_gib, "sizes": found}


def growth_table(found: dict[str, Any]) -> str:
    """How cost grows, in Markdown."""
    lines = ["| base | samples | tokens a step | ms a step | us a token | peak GiB "
             "| KiB a token beyond the weights |",
             "|---|---|---|---|---|---|---|"]
    for model, value in found.items():
        for each in value.get("sizes", []):
            what = f"| {model} | {each['samples']} x {each['seq'] or 'quotes'} |"
            if "error" in each:
                lines.append(f"{what} {each['error']} | | | | |")
                continue
            kept = (each["peak_gib"] - value["weights_gib"]) * 2**20 / each["tokens_a_step"]
            lines.append(f"{what} {each['tokens_a_step']:,.0f} | {each['step_ms']:,.1f} | "
                         f"{each['us_a_token']:,.1f} | {each['peak_gib']:.1f} | {kept:,.0f} |")
    return "\n".join(lines)


def last_results(command: list[str], path: str | None, count: int) -> list[dict[str, Any]]:
    """Run a measurement: its `count` JSON objects, its last output as an error for those missing."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if path:
        env["PYTHONPATH"] = path
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    found = [json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines()
             if line.startswith("RESULT ")]
    error = {"error": ((done.stderr or done.stdout).strip().splitlines() or ["no output"])[-1][:300]}
    return (found + [error] * count)[:count]


RECIPE = """
model: {{base: {base}, quantization: int8}}
data: {{source: {rows}, completion: "{{text}}", append_eos: false, validation: 0}}
lora: {{r: 16, alpha: 32, dropout: 0.05}}
train: {{max_steps: 200, batch_size: 16, learning_rate: 2.0e-4, warmup_steps: 100, eval_steps: 0,
        save_steps: 200}}
"""


def measure_cold(chosen: argparse.Namespace) -> dict[str, Any]:
    """200 steps on BLOOM-7b1 in int8 by command line, process start to saved adapter; files in memory.

    Twice: with nothing compiled before, then with what the first left in Triton's cache.
    """
    base, draw = chosen.folder / "bloom-7b1", random.Random(0)
    prepare_worker("cold", "bloom-7b1", chosen)
    with tempfile.TemporaryDirectory() as folder:
        texts = [" ".join(f"w{draw.randrange(4, 1000)}" for _ in range(n))
                 for n in json.loads(chosen.lengths.read_text())]
        rows = Path(folder, "rows.jsonl")
        rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        Path(folder, "recipe.yaml").write_text(RECIPE.format(base=base, rows=rows))
        for path in base.glob("*.safetensors"):
            path.read_bytes()
        found: dict[str, Any] = {}
        for turn in ("nothing compiled", "compiled before"):
            started, began = time.perf_counter(), time.time()
            done = subprocess.run(
                [sys.executable, "-m", "tunesmith.cli.main", "train", f"{folder}/recipe.yaml", "--run",
                 f"{folder}/{turn[:3]}", "--json"], capture_output=True, text=True,
                env={**os.environ, "TRITON_CACHE_DIR": f"{folder}/triton"})
            if done.returncode:
                return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
            result = json.loads(done.stdout)
            saved = Path(result["adapter"], "adapter_model.safetensors").stat().st_mtime
            found[turn] = {"adapter_saved_s": saved - began, "wall_s": time.perf_counter() - started,
                           "training_s": result["seconds"], "peak_gib": result["peak_memory_bytes"] / 2**30,
                           "train_loss": result["train_loss"]}
    return found


def prepare_worker(name: str, model: str, chosen: argparse.Namespace) -> list[str]:
    """The command that measures `name` on a base, which is written first if it is not there."""
    if not (chosen.folder / model / "config.json").exists():
        write_model(model, chosen.folder / model)
    return [sys.executable, __file__, str(chosen.folder), str(chosen.lengths), str(chosen.peer), "--worker",
            name, "--repeats", str(chosen.repeats)]


def measure(names: list[str], chosen: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Cells of one base: ours, then each one's peers."""
    worker = prepare_worker("+".join(names), CELLS[names[0]].model, chosen)
    ours = last_results(worker, None, len(names))
    found: dict[str, dict[str, Any]] = {}
    for name, own in zip(names, ours, strict=True):
        cell = CELLS[name]
        found[name] = {"cell": asdict(cell), "ours": own, "peers": {}}
        for stack in cell.peers if chosen.peers else ():
            rows = ["--seq", str(cell.seq)] if cell.seq else ["--lengths", str(chosen.lengths)]
            batch, accumulated = map(str, cell.peer_rows)
            command = [sys.executable, str(chosen.peer), stack, str(chosen.folder / cell.model), *rows,
                       "--bs", batch, "--accum", accumulated, "--steps", str(chosen.peer_steps), "--warm",
                       "4"]
            found[name]["peers"][stack] = last_results(command, chosen.peer_path, 1)[0]
        print("\n".join(table({name: found[name]}, chosen.tflops).splitlines()[2:]), flush=True)
    if chosen.again:  # a machine that changed meanwhile would show
        for name, own in zip(names, last_results(worker, None, len(names)), strict=True):
            found[name]["ours_again"] = own
    return found


def table(results: dict[str, Any], tflops: float) -> str:
    """The results in Markdown."""
    lines = ["| cell | stack | tokens/s, median (range) | share of the roofline | peak GiB |",
             "|---|---|---|---|---|"]
    for name, found in results.items():
        gflop = GFLOP_PER_TOKEN.get(found["cell"]["model"])
        again = {"tunesmith, again": found["ours_again"]} if "ours_again" in found else {}
        for stack, value in {"tunesmith": found["ours"], **found["peers"], **again}.items():
            if "error" in value:
                lines.append(f"| {name} | {stack} | failed: {value['error'][:90]} | | |")
                continue
            middle = value["tokens_s_median"]
            each = value["tokens_s"]
            spread = f" ({min(each):,.0f} - {max(each):,.0f})" if isinstance(each, list) else ""
            share = f"{100 * middle * gflop / tflops / 1000:.0f}%" if gflop else ""
            lines.append(f"| {name} | {stack} | {middle:,.0f}{spread} | {share} | {value['peak_gib']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("lengths", type=Path)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--peer-path")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--again", action="store_true", help="measure ours before and after each peer")
    parser.add_argument("--peer-steps", type=int, default=14)
    parser.add_argument("--cells", default=",".join(["cold", *CELLS, "growth"]))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit-s", type=float, default=float("inf"))
    parser.add_argument("--tflops", type=float, default=790, help="the GPU's bf16 matrix rate")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        lengths = json.loads(chosen.lengths.read_text())
        for name in chosen.worker.split("+"):
            work, cell = (measure_growth, GROWTH[name]) if name in GROWTH else (measure_ours, CELLS[name])
            print("RESULT " + json.dumps(work(cell, chosen.folder, lengths, chosen.repeats)), flush=True)
        return
    import torch

    began, results, colds, growth = time.monotonic(), {}, {}, {}

    def save() -> None:
        about = {"date": datetime.date.today().isoformat(), "torch": torch.__version__,
                 "repeats": chosen.repeats,
                 "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"}
        if chosen.out:
            chosen.out.write_text(json.dumps({**about, "cold": colds, "cells": results, "growth": growth},
                                             indent=1) + "\n")

    for name in chosen.cells.split(","):
        if time.monotonic() - began > chosen.limit_s:
            print(f"{name}: not measured, the time was spent", flush=True)
            continue
        if name == "cold":
            colds = measure_cold(chosen)
            print("cold", json.dumps(colds), flush=True)
            save()
            continue
        if name == "growth":
            for model in GROWTH:
                growth[model] = last_results(prepare_worker(model, model, chosen), None, 1)[0]
                print(growth_table({model: growth[model]}), growth[model].get("error", ""), flush=True)
            save()
            continue
        results |= measure(name.split("+"), chosen)
        save()
    print(table(results, chosen.tflops))


if __name__ == "__main__":
    main()
