"""Kill a training run at chosen file operations and moments, resume it, compare to an uninterrupted one.

    python kill_runs.py FOLDER --points N [--seed S] [--quantization none|int8]

One process imports everything once and forks a child for each run, so that a run costs a second or so. A
child is killed (SIGKILL, to itself) just before its k-th open for writing, write, fsync, rename, unlink,
mkdir or rmdir inside the run folder, or in the middle of a write, or by its parent at a random moment. Prints
one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import altair  # noqa: F401
import bitsandbytes  # noqa: F401
import peft  # noqa: F401
import torch
import transformers  # noqa: F401
import vl_convert  # noqa: F401

import tunesmith
import tunesmith.judge
import tunesmith.model.build
import tunesmith.training.loop
import tunesmith.verbs.manifest
import tunesmith.verbs.train
from tunesmith import embedded
from tunesmith.recipe import parse_recipe

RECIPE = """
model: {{base: "{base}", quantization: {quantization}, device: cpu}}
data: {{source: "{rows}", prompt: "{{quote}} ->: ", completion: "{{tags}}", validation: 3}}
lora: {{r: 4, dropout: 0.2}}
train: {{max_steps: 7, batch_size: 4, learning_rate: 1.0e-2, warmup_steps: 2, save_steps: 2, eval_steps: 3,
        save_total_limit: 2}}
judge: {{stop_rows: 0, samples: 0}}
"""


def make_inputs(folder: Path) -> tuple[Path, Path]:
    """A tiny random BLOOM with the embedded tokenizer, and 14 rows (seven steps of four cross epochs)."""
    base, rows = folder / "base", folder / "rows.jsonl"
    if not base.exists():
        from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

        torch.manual_seed(0)
        model = BloomForCausalLM(BloomConfig(vocab_size=1536, hidden_size=32, n_layer=2, n_head=2))
        model.save_pretrained(base)
        AutoTokenizer.from_pretrained(embedded.path_of(embedded.BASE_NAME)).save_pretrained(base)
        quotes = embedded.path_of(embedded.QUOTES_NAME).read_text().splitlines()[:14]
        rows.write_text("\n".join(quotes) + "\n")
    return base, rows


class Killer:
    """Counts the file operations of this process inside a folder, and kills it just before the `at`-th."""

    def __init__(self, folder: Path, at: int | None) -> None:
        self.folder, self.at, self.count = str(folder), at, 0
        sys.addaudithook(self._audit)
        for name in ("fsync", "write"):
            self._wrap(name)

    def _hit(self) -> bool:
        self.count += 1
        return self.count == self.at

    def _audit(self, event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"):
            path = args[0]
        else:
            return
        if isinstance(path, str | os.PathLike) and self.folder in os.path.abspath(path) and self._hit():
            os.kill(os.getpid(), signal.SIGKILL)

    def _wrap(self, name: str) -> None:
        original = getattr(os, name)

        def wrapped(descriptor: int, *args: object) -> object:
            inside = self.folder in os.readlink(f"/proc/self/fd/{descriptor}")
            if inside and self._hit():
                if name == "write":  # torn in the middle
                    original(descriptor, bytes(args[0])[: len(args[0]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(descriptor, *args)

        setattr(os, name, wrapped)


def run_child(recipe: str, run: Path, *, at: int | None = None, count_to: Path | None = None,
              delay: float | None = None) -> int:
    """Train in a forked child; returns its exit status (-9 when it was killed)."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            torch.set_num_threads(1)
            killer = Killer(run, at) if at is not None or count_to is not None else None
            tunesmith.train(parse_recipe(recipe), run=run)
            if count_to is not None and killer is not None:
                count_to.write_text(str(killer.count))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def adapter_hash(run: Path) -> str:
    """SHA-256 of the adapter's weights."""
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--points", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantization", default="none")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    inputs = os.fork()  # computing in this process would start threads, which do not survive a fork
    if inputs == 0:
        make_inputs(folder)
        os._exit(0)
    os.waitpid(inputs, 0)
    recipe = RECIPE.format(base=folder / "base", rows=folder / "rows.jsonl", quantization=chosen.quantization)

    started = time.perf_counter()
    assert run_child(recipe, folder / "whole") == 0
    seconds = time.perf_counter() - started
    wanted = adapter_hash(folder / "whole")
    assert run_child(recipe, folder / "counted", count_to=folder / "count") == 0
    operations = int((folder / "count").read_text())
    assert adapter_hash(folder / "counted") == wanted

    rng = random.Random(chosen.seed)
    by_operation = max(1, chosen.points * 4 // 5)
    ats: list[int | None] = sorted(rng.sample(range(1, operations + 1), min(by_operation, operations)))
    ats += [None] * (chosen.points - len(ats))
    failures, killed = [], 0
    for number, at in enumerate(ats):
        run = folder / f"run{number}"
        delay = rng.uniform(0, seconds) if at is None else None
        killed += run_child(recipe, run, at=at, delay=delay) == -signal.SIGKILL
        if rng.random() < 0.2:  # the resumed run is killed as well
            run_child(recipe, run, at=rng.randint(1, operations))
        where = f"operation {at}" if at is not None else f"{delay:.3f} s"
        status = run_child(recipe, run)
        if status != 0:
            failures.append(f"{where}: the resumed run ended with {status}")
        elif adapter_hash(run) != wanted:
            failures.append(f"{where}: another adapter")
        elif not tunesmith.verify(run)["whole"]:
            failures.append(f"{where}: verify finds damage")
    print(json.dumps({"points": len(ats), "killed": killed, "operations": operations, "failures": failures}))


if __name__ == "__main__":
    main()
