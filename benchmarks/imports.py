"""The cost of importing peft, bitsandbytes, torch's compiler and transformers' models in a native run.

    python benchmarks/imports.py [--base BASE] [--repeats 5] [--out FILE]

The native engine trains without these. Three ways to have them all the same, each a process of its own, in
turn: `not at all` (as tunesmith does), `in a thread` (begun with the process, while rows and weights are
read) and `first`. Each run takes one optimiser step on the embedded quotes. Seconds are those of the process,
from its start to the end of the first step, and to its end; the thread is waited for before the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = ("not at all", "in a thread", "first")
CHILD = r"""
import importlib, json, sys, threading, time
began, way, base, folder = float(sys.argv[1]), *sys.argv[2:5]
NAMES = ["torch", "torch._dynamo", "torch.optim", "bitsandbytes", "peft",
         "transformers.models.auto.modeling_auto",
         "transformers.models.auto.tokenization_auto"]
def load():
    for name in NAMES:
        importlib.import_module(name)
    import torch
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)
thread = threading.Thread(target=load)
if way != "not at all":
    thread.start()
if way == "first":
    thread.join()
import tunesmith
class Show:
    def __getattr__(self, name): return lambda *more: None
    def step(self, record, total): self.first = time.time() - began
show = Show()
recipe = {"model": {"base": base, "quantization": "int8"},
          "data": {"source": "embedded:quotes", "prompt": "{quote} ->: ", "completion": "{tags}",
                    "validation": 0},
          "train": {"engine": "native", "max_steps": 1, "batch_size": 8, "warmup_steps": 0, "eval_steps": 0}}
from tunesmith.recipe import Recipe
tunesmith.train(Recipe.model_validate(recipe), run=folder + "/run", show=show)
if thread.ident:
    thread.join()
print("RESULT", json.dumps({"first_step_s": show.first, "whole_s": time.time() - began}))
"""


def measure(way: str, base: str) -> dict[str, float]:
    """One run."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", CHILD, str(time.time()), way, base, folder], check=False,
                              text=True, capture_output=True,
                              env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def main() -> None:
    """Print a table, and write FILE."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded:sprout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for turn in range(chosen.repeats + 1):
        for way in WAYS:
            one = measure(way, chosen.base)
            if turn:  # the first has the files read from the disk
                found[way].append(one)
    print("| imported | first step s, median (range) | whole s, median (range) |\n|---|---|---|")
    for way, runs in found.items():
        cells = []
        for name in ("first_step_s", "whole_s"):
            values = [run[name] for run in runs]
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})")
        print(f"| {way} | {' | '.join(cells)} |")
    if chosen.out:
        about: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": platform.machine(),
                                 "cores": os.cpu_count(), "base": chosen.base, "runs": found}
        chosen.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
