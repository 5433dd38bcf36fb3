"""Steps on a CPU that other processes use too: threads that spin while they wait, threads that do so
briefly or sleep at once, and one thread.

    python benchmarks/busy_cpu.py [--repeats 3] [--out FILE]

Each measurement is a run of `tunesmith train` of its own on the embedded base (20 steps of 16 samples,
nothing judged), in turn: idle, then beside as many busy loops as there are cores. What is compared is the
median step of each run [s].
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
from pathlib import Path

RECIPE = """
model: {base: "embedded:sprout", quantization: int8}
data: {source: "embedded:quotes", prompt: "{quote} ->: ", completion: "{tags}", validation: 0}
train: {max_steps: 20, batch_size: 16, learning_rate: 1.0e-3, warmup_steps: 5, eval_steps: 0}
"""
#: Name: (environment of OpenMP, threads; None for one a core). Without one the library itself spins long.
WAYS: dict[str, tuple[dict[str, str], int | None]] = {
    "spinning": ({}, None),
    "spinning briefly": ({"GOMP_SPINCOUNT": "1000"}, None),
    "sleeping": ({"OMP_WAIT_POLICY": "PASSIVE"}, None),
    "one thread": ({}, 1),
}


def median_step_s(waits: dict[str, str], threads: int | None) -> float:
    """Of one run."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, "recipe.yaml")
        recipe.write_text(RECIPE)
        words = ["--threads", str(threads)] if threads else []
        env = {name: value for name, value in os.environ.items()
               if not name.startswith(("OMP_", "GOMP_"))} | waits
        subprocess.run([sys.executable, "-m", "tunesmith", "train", str(recipe), "--run", f"{folder}/run",
                        "--quiet", *words],
                       check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        steps = [json.loads(line)["seconds"]
                 for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    return statistics.median(steps[3:])


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    result: dict[str, object] = {"date": datetime.date.today().isoformat(), "repeats": chosen.repeats,
                                 "machine": f"{platform.machine()}, {cores} cores",
                                 "python": platform.python_version()}
    for load in ("idle", "busy"):
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
                 for _ in range(cores if load == "busy" else 0)]
        try:
            found: dict[str, list[float]] = {name: [] for name in WAYS}
            for _ in range(chosen.repeats):
                for name, (waits, threads) in WAYS.items():
                    found[name].append(median_step_s(waits, threads))
        finally:
            for loop in loops:
                loop.kill()
        result[load] = {name: {"median_step_s": statistics.median(times), "each": times}
                        for name, times in found.items()}
        print(load, json.dumps(result[load]), flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
