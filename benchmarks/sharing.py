"""How near a merged model and a GGUF are to the adapter that was trained, on the embedded base.

    python benchmarks/sharing.py [--llama-cpp PYTHON] [--out FILE]

For each quantisation: trains the demo's recipe, merges it, exports it as f16 and q8_0. PYTHON: an interpreter
that has llama-cpp-python; it answers 20 held-out prompts greedily, and the tokens are compared with those of
the live adapter.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

import tunesmith

RECIPE = """
model: {{base: "embedded:sprout", quantization: {quantization}, device: cpu}}
data: {{source: "embedded:quotes", prompt: "{{quote}} ->: ", completion: "{{tags}}", loss_on: completion,
       validation: 24}}
train: {{max_steps: 60, batch_size: 16, learning_rate: 5.0e-3, warmup_steps: 6, seed: {seed}}}
judge: {{stop_rows: 0, samples: 0}}
"""
#: Greedy answers by llama.cpp: reads [model, lora or null, prompts as tokens, stops, most tokens].
ANSWER = """
import json, sys
from llama_cpp import Llama
model, lora, prompts, stops, most = json.load(sys.stdin)
llama = Llama(model_path=model, lora_path=lora, n_ctx=512, n_threads=1, verbose=False, logits_all=False)
found = []
for prompt in prompts:
    llama.reset()
    ids = []
    for token in llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        if token in stops or len(ids) >= most:
            break
        ids.append(token)
    found.append(ids)
print("ANSWERS " + json.dumps(found))
"""
MOST = 24


def live_answers(run: Path) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """(20 held-out prompts, the live adapter's greedy answers, stop tokens), all as token ids."""
    from tunesmith.model.build import build_with_adapter
    from tunesmith.recipe import load_recipe
    from tunesmith.verbs.decide import decide
    from tunesmith.verbs.prepare import prepare
    from tunesmith.verbs.show import Silent

    recipe = load_recipe(str(run / "recipe.yaml"))
    decisions = decide(recipe, Silent(), adapter=run / "adapter")
    prepared = prepare(recipe, decisions, Silent(), training=False)
    engine = build_with_adapter(prepared.base, prepared.tokenizer, run / "adapter", decisions.placement)
    prompts = [row.prompt_ids for row in prepared.data.validation[:20]]
    return prompts, [answer.ids for answer in engine.generate(prompts, MOST)], engine.stop_ids


def agreement(python: str, model: Path, lora: Path | None, asked: tuple[Any, Any, Any]) -> str:
    """How many of llama.cpp's answers are the live adapter's, token for token."""
    prompts, answers, stops = asked
    job = [str(model), str(lora) if lora else None, prompts, stops, MOST]
    done = subprocess.run([python, "-c", ANSWER], input=json.dumps(job), capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")), None)
    if line is None:
        raise SystemExit(done.stderr[-2000:])
    found = json.loads(line.removeprefix("ANSWERS "))
    return f"{sum(a == b for a, b in zip(found, answers, strict=True))} of {len(answers)}"


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows = []
    for quantization in ("none", "int8", "nf4"):
        for seed in range(chosen.seeds):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "r.yaml").write_text(RECIPE.format(quantization=quantization, seed=seed))
                tunesmith.train(folder / "r.yaml", run=folder / "run")
                merged = tunesmith.merge(folder / "run", folder / "merged")
                row = {"quantization": quantization, "seed": seed, "taken": merged["taken"],
                       "bare": merged["bare"], "candidates": merged["candidates"]}
                if chosen.llama_cpp:
                    asked = live_answers(folder / "run")
                    for outtype in ("f16", "q8_0"):
                        tunesmith.export(folder / "merged", folder / outtype, outtype=outtype)
                        row[f"gguf {outtype}"] = agreement(chosen.llama_cpp, folder / outtype / "model.gguf",
                                                           None, asked)
                rows.append(row)
                print(json.dumps(row), flush=True)
    about = {"date": datetime.date.today().isoformat(), "machine": platform.machine(),
             "torch": torch.__version__}
    if chosen.out:
        chosen.out.write_text(json.dumps({**about, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
