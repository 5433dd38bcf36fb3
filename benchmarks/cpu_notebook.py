"""The notebook's run on a small real base, on this CPU: Tunesmith and the notebook's stack side by side.

    python benchmarks/cpu_notebook.py ASSETS PEER [--repeats 3] [--out FILE]

ASSETS: a folder with stories260K/ (a Llama-architecture base of 260K parameters trained on TinyStories, from
karpathy/llama2.c, in the transformers layout) and english_quotes/train.jsonl and heldout.jsonl
(Abirate/english_quotes, 2,383 and 125 rows). PEER: a script that runs Trainer + peft + bitsandbytes on them
and prints one JSON line with eval_loss_before, eval_loss_after and train_seconds. Both run in turn, each
alone, in fresh processes. What is compared is the time of the training steps alone and the held-out loss in
nats a token over all tokens.
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
model: {{base: {assets}/stories260K, quantization: int8}}
data:
  source: {assets}/english_quotes/train.jsonl
  prompt: "{{quote}} ->: "
  completion: "{{tags}}"
  loss_on: all
  append_eos: false
  max_length: 512
  overlong: truncate
  validation: {assets}/english_quotes/heldout.jsonl
lora: {{r: 16, alpha: 32, dropout: 0.05}}
train: {{max_steps: 200, batch_size: 16, learning_rate: 2.0e-4, warmup_steps: 100, eval_steps: 0}}
judge: {{stop_rows: 0, samples: 0}}
"""


def last_json_line(command: list[str]) -> dict[str, object]:
    """Run a command and parse the last line of its stdout."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assets", type=Path)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    ours, theirs = [], []
    for repeat in range(chosen.repeats):
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder) / "recipe.yaml"
            recipe.write_text(RECIPE.format(assets=chosen.assets.resolve()))
            found = last_json_line([sys.executable, "-m", "tunesmith.cli.main", "train", str(recipe),
                                    "--json", "--quiet", "--run", f"{folder}/run"])
        ours.append({"seconds": found["seconds"], "before": found["eval_loss_before"],
                     "after": found["eval_loss_after"]})
        found = last_json_line([sys.executable, str(chosen.peer)])
        theirs.append({"seconds": found["train_seconds"], "before": found["eval_loss_before"],
                       "after": found["eval_loss_after"]})
        print(f"repeat {repeat + 1}: tunesmith {ours[-1]}, notebook's stack {theirs[-1]}", file=sys.stderr,
              flush=True)
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]
    result = {
        "date": datetime.date.today().isoformat(), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(), "repeats": chosen.repeats, "tunesmith": ours, "notebook": theirs,
        "speedup_median": statistics.median(ratios), "speedup_range": [min(ratios), max(ratios)],
    }
    print(json.dumps(result, indent=2))
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
