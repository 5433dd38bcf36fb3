"""Do both engines learn the same? 200 steps on really trained bases, five seeds each, losses side by side.

    python benchmarks/trajectories.py ASSETS [--seeds 5] [--jobs 2] [--device cpu] [--out FILE]

ASSETS: a folder with stories260K/ (karpathy/llama2.c, in the transformers layout) and
english_quotes/train.jsonl and heldout.jsonl; the other base is embedded:sprout on the embedded quotes. Every
run is `tunesmith train` in a process of its own, int8 base, dropout 0.05, whose masks are the same in both
engines (docs/engines.md): with one seed their losses differ by rounding alone, which grows over the steps.
For each base it prints both engines' mean loss over windows of 20 steps with its standard deviation over
seeds, the largest gap of the two means in units of that deviation, and the held-out losses.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

STORIES = """
model: {{base: {assets}/stories260K, quantization: int8, device: {device}}}
data:
  source: {assets}/english_quotes/train.jsonl
  prompt: "{{quote}} ->: "
  completion: "{{tags}}"
  append_eos: false
  max_length: 512
  overlong: truncate
  validation: {assets}/english_quotes/heldout.jsonl
train: {{learning_rate: 2.0e-4, warmup_steps: 100, eval_steps: 0, save_steps: 200, engine: {engine},
        seed: {seed}}}
judge: {{stop_rows: 0, samples: 0}}
"""
SPROUT = """
model: {{base: "embedded:sprout", quantization: int8, device: {device}}}
data: {{source: "embedded:quotes", prompt: "{{quote}} ->: ", completion: "{{tags}}", loss_on: completion,
       validation: 24}}
train: {{learning_rate: 5.0e-3, warmup_steps: 10, eval_steps: 0, save_steps: 200, engine: {engine},
        seed: {seed}}}
judge: {{stop_rows: 0, samples: 0}}
"""
RECIPES = {"stories260K": STORIES, "sprout": SPROUT}
WINDOW = 20


def run(folder: Path, base: str, engine: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """One run: each step's loss and the held-out losses."""
    name = f"{base}-{engine}-{seed}"
    recipe = folder / f"{name}.yaml"
    recipe.write_text(RECIPES[base].format(assets=chosen.assets.resolve(), device=chosen.device,
                                           engine=engine, seed=seed))
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith.cli.main", "train", str(recipe), "--run", str(folder / name),
         "--json", "--quiet"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip()[-500:]}")
    result = json.loads(done.stdout)
    losses = [json.loads(line)["loss"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    print(f"{name}: {losses[0]:.4f} -> {losses[-1]:.4f}, held out {result['eval_loss_after']:.4f}",
          file=sys.stderr, flush=True)
    return {"base": base, "engine": engine, "seed": seed, "losses": losses,
            "before": result["eval_loss_before"], "after": result["eval_loss_after"]}


def windows(losses: list[float]) -> list[float]:
    """The mean loss of each 20 steps."""
    return [statistics.fmean(losses[i:i + WINDOW]) for i in range(0, len(losses), WINDOW)]


def compared(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Both engines' runs of one base."""
    found: dict[str, Any] = {}
    for engine in ("hf", "native"):
        own = [each for each in runs if each["engine"] == engine]
        columns = list(zip(*(windows(each["losses"]) for each in own), strict=True))
        found[engine] = {"loss": [statistics.fmean(column) for column in columns],
                         "sd": [statistics.stdev(column) for column in columns],
                         "held_out": [each["after"] for each in own]}
    rows = zip(found["hf"]["loss"], found["native"]["loss"], found["hf"]["sd"], strict=True)
    found["largest_gap_in_sd"] = max(abs(a - b) / sd for a, b, sd in rows)
    # The same seed draws the same rows in both: a closer comparison than the spread over seeds.
    pairs = [(a, b) for a in runs for b in runs if a["engine"] == "hf" and b["engine"] == "native"
             and a["seed"] == b["seed"]]
    found["largest_relative_gap_same_seed"] = max(abs(x - y) / x for a, b in pairs for x, y in zip(
        windows(a["losses"]), windows(b["losses"]), strict=True))
    found["step_1_relative_gap"] = max(abs(a["losses"][0] - b["losses"][0]) / a["losses"][0]
                                       for a, b in pairs)
    return found


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    tasks = [(base, engine, seed) for base in RECIPES for seed in range(chosen.seeds)
             for engine in ("hf", "native")]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(chosen.jobs) as pool:
        runs = list(pool.map(lambda task: run(Path(folder), *task, chosen), tasks))
    result = {"date": datetime.date.today().isoformat(), "machine": platform.machine(),
              "device": chosen.device,
              "seeds": chosen.seeds} | {base: compared([each for each in runs if each["base"] == base])
                                        for base in RECIPES}
    print(json.dumps(result, indent=1))
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
