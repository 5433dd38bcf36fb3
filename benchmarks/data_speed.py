"""How fast and in how much memory large data becomes tokens: beside `datasets.map`, and a million rows.

    python benchmarks/data_speed.py GPT2_TOKENIZER_FOLDER [--rows 40000] [--repeats 3] [--million 1000000]

The rows are parts of the embedded quotes, put together at random. In each repeat every way runs once, in a
process of its own, one after another. Memory is the sum of what is resident in all processes of a way.
Writes results-data-speed.json beside itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tunesmith import embedded

OUT = Path(__file__).with_name("results-data-speed.json")
#: The same work in `datasets`: the tokens of the whole text, or of prompt and whole with the prompt masked.
MAP = """
import sys, time
import datasets
from transformers import PreTrainedTokenizerFast
source, tokenizer_file, form = sys.argv[1:]
tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file, eos_token="</s>")
datasets.disable_progress_bars()
def text(batch):
    return tokenizer([each + tokenizer.eos_token for each in batch["text"]])
def pair(batch):
    prompts = [each + " ->: " for each in batch["text"]]
    whole = [a + b + tokenizer.eos_token for a, b in zip(prompts, batch["label"])]
    ids = tokenizer(whole)["input_ids"]
    masks = [[0] * len(p) + [1] * (len(w) - len(p)) for p, w in zip(tokenizer(prompts)["input_ids"], ids)]
    return {"input_ids": ids, "completion_mask": masks}
started = time.perf_counter()
rows = datasets.load_dataset("json", data_files=source, split="train")
read = time.perf_counter()
made = rows.map(text if form == "text" else pair, batched=True, num_proc=2, remove_columns=rows.column_names)
print(time.perf_counter() - started, time.perf_counter() - read, sum(map(len, made[:1000]["input_ids"])))
"""
OURS = """
import sys, time
from tunesmith.data import read_text, tokens_of
from tunesmith.data.making import Loader, Making
from tunesmith.data.tokenize import rules_of
from tunesmith.recipe import parse_recipe
source, tokenizer_file, form = sys.argv[1:]
loader = Loader("transformers", "PreTrainedTokenizerFast",
                {"tokenizer_file": tokenizer_file, "eos_token": "</s>"})
columns = ('prompt: "", completion: "{text}"' if form == "text"
           else 'prompt: "{text} ->: ", completion: "{label}"')
data = parse_recipe(f'model: {{base: "embedded:sprout"}}\\ndata: {{source: "{source}", {columns}}}').data
started = time.perf_counter()
tokenizer = loader.load()
made = tokens_of(read_text(data), tokenizer, rules_of(data, (tokenizer.eos_token_id,)), Making(loader, ""))
seconds = time.perf_counter() - started
print(seconds, seconds, int(made.train.lengths[:1000].sum()))
"""


def write_rows(path: Path, count: int, words: int) -> None:
    """Rows of about so many words."""
    quotes = [json.loads(line)["quote"].split()
              for line in embedded.path_of(embedded.QUOTES_NAME).read_text(encoding="utf-8").splitlines()]
    chance = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            said: list[str] = []
            while len(said) < words:
                quote = chance.choice(quotes)
                start = chance.randrange(len(quote))
                said += quote[start:] + quote[:start]
            row = {"text": " ".join(said[:words]), "label": f"{chance.choice(quotes)[0]} {number}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def watched(command: list[str], folder: Path, **more: Any) -> tuple[str, float, int]:
    """(what it printed, seconds, the most memory of all its processes together [bytes])."""
    env = {**os.environ, "TUNESMITH_CACHE": str(folder / "cache"), "HF_DATASETS_CACHE": str(folder / "hf"),
           "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    started, peak = time.perf_counter(), 0
    with open(folder / "out", "w+") as out, open(folder / "err", "w+") as err:
        process = psutil.Popen(command, stdout=out, stderr=err, env=env, **more)
        while process.poll() is None:
            try:
                peak = max(peak, sum(each.memory_info().rss
                                     for each in [process, *process.children(recursive=True)]))
            except psutil.Error:
                continue
            time.sleep(0.1)
        seconds = time.perf_counter() - started
        err.seek(0)
        out.seek(0)
        if process.returncode:
            sys.exit(err.read())
        return out.read(), seconds, peak


def compare(tokenizer_file: Path, source: Path, count: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Rows a second of each way, for both forms."""
    found: dict[str, Any] = {}
    for _ in range(repeats):
        for form in ("text", "pair"):
            for way, program in (("datasets.map", MAP), ("tunesmith", OURS)):
                for each in ("cache", "hf"):
                    subprocess.run(["rm", "-rf", str(folder / each)], check=True)
                printed, _, peak = watched([sys.executable, "-c", program, str(source), str(tokenizer_file),
                                            form], folder)
                whole, alone, tokens = map(float, printed.split())
                entry = found.setdefault(f"{way}, {form}", {"rows_per_second": [], "without_reading": [],
                                                            "peak_bytes": [], "tokens_of_1000": tokens})
                entry["rows_per_second"].append(count / whole)
                entry["without_reading"].append(count / alone)
                entry["peak_bytes"].append(peak)
                print(way, form, f"{count / whole:,.0f} rows/s, {peak / 2**20:,.0f} MiB", flush=True)
    for entry in found.values():
        for name in ("rows_per_second", "without_reading"):
            entry[f"{name}_median"] = statistics.median(entry[name])
    return found


FIRST_STEP = """
import sys, time, resource
started = time.perf_counter()
import tunesmith
from tunesmith.verbs.show import Silent
class Show(Silent):
    def step(self, record, total_steps):
        if record["step"] == 1:
            print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                  flush=True)
    def note(self, text):
        print(text, file=sys.stderr)
tunesmith.train("r.yaml", run="run", overrides=sys.argv[1:], show=Show())
"""


def million(count: int, folder: Path) -> dict[str, Any]:
    """A run on so many rows: the first time, from the cache, and a small one to compare its memory with."""
    write_rows(folder / "large.jsonl", count, 80)
    write_rows(folder / "small.jsonl", 1000, 80)
    (folder / "r.yaml").write_text(
        'model: {base: "embedded:sprout", quantization: none}\n'
        f'data: {{source: "{folder}/large.jsonl", prompt: "{{text}} ->:", completion: " {{label}}", '
        "validation: 16}\n"
        "train: {max_steps: 20, batch_size: 8, warmup_steps: 1, eval_steps: 0}\n"
        "judge: {samples: 0, stop_rows: 0}\n")
    found: dict[str, Any] = {"rows": count}
    small = f"data.source={folder}/small.jsonl"
    for name, more in (("small", [small]), ("made", []), ("cached", []), ("cached again", [])):
        subprocess.run(["rm", "-rf", str(folder / "run")], check=True)
        printed, seconds, peak = watched([sys.executable, "-c", FIRST_STEP, *more], folder, cwd=folder)
        manifest = json.loads((folder / "run" / "manifest.json").read_text())
        found[name] = {"first_step_s": float(printed.split()[0]), "whole_s": seconds, "peak_bytes": peak,
                       "tokens": manifest["data"]["counts"]["tokens"]}
        print(name, found[name], flush=True)
    size = sum(each.stat().st_size for each in (folder / "cache").rglob("*") if each.is_file())
    return {**found, "cache_bytes": size}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gpt2", type=Path, help="a folder with GPT-2's tokenizer.json")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--million", type=int, default=1_000_000, help="0: not measured")
    parser.add_argument("--folder", type=Path, help="where files are made (gigabytes); default: temporary")
    asked = parser.parse_args()
    results: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    results |= {"date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        folder = Path(place)
        if asked.rows:
            write_rows(folder / "rows.jsonl", asked.rows, 110)
            sprout = Path(embedded.path_of(embedded.BASE_NAME)) / "tokenizer.json"
            results["rows"] = asked.rows
            for name, file in (("gpt2", asked.gpt2 / "tokenizer.json"), ("embedded", sprout)):
                results[name] = compare(file, folder / "rows.jsonl", asked.rows, asked.repeats, folder)
                OUT.write_text(json.dumps(results, indent=1) + "\n")
        if asked.million:
            results["million"] = million(asked.million, folder)
    OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
