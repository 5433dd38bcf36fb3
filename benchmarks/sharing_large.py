"""Time and memory of a merge and an export of a 7 B base: random weights of BLOOM-7b1's shape, one GPU.

    python benchmarks/sharing_large.py FOLDER [--repeats N] [--quantization KIND] [--out FILE]

FOLDER: where base, run and merged models are written; 45 GB of room. Each verb runs as its command; its
memory is what it has of its own (RssAnon of /proc, read every 20 ms), without the pages of files that it
maps, which the system takes back at will.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

RECIPE = """
model: {{base: {base}, quantization: {quantization}}}
data: {{source: "embedded:quotes", prompt: "{{quote}} ->: ", completion: "{{tags}}", loss_on: completion,
       validation: 24}}
train: {{max_steps: 40, batch_size: 16, learning_rate: 1.0e-3, warmup_steps: 4, save_steps: 100,
        eval_steps: 0}}
judge: {{stop_rows: 8, samples: 0}}
"""


def write_base(folder: Path) -> None:
    """Random weights with the tokenizer of the embedded base, which GGUF knows."""
    from tunesmith import embedded

    here = str(Path(__file__).resolve().parent)
    code = (f"import sys; sys.path.insert(0, {here!r}); import gpu; "
            "gpu.write_model('bloom-7b1', gpu.Path(sys.argv[1]))")
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    small = embedded.path_of(embedded.BASE_NAME)
    assert small is not None
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(small / name, folder / name)


def own_memory_bytes(pid: int) -> int:
    """What a process has in memory that is no file's."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def measured(*words: str) -> dict[str, Any]:
    """The JSON of a command, with its seconds and the most memory of its own."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tunesmith.cli.main", *words, "--json"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, own_memory_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    stdout, stderr = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(stderr[-2000:])
    return {**json.loads(stdout), "wall_s": time.perf_counter() - began, "own_bytes": most}


def spread(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and range of the seconds, the most memory."""
    seconds = [each["wall_s"] for each in found]
    return {"median_s": statistics.median(seconds), "range_s": [min(seconds), max(seconds)],
            "own_gb": max(each["own_bytes"] for each in found) / 1e9}


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--outtypes", nargs="+", default=["f16", "q8_0"], choices=["f16", "q8_0"])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    import torch

    base, run, merged, gguf = (chosen.folder / name for name in ("base", "run", "merged", "gguf"))
    if not base.exists():
        write_base(base)
    (chosen.folder / "r.yaml").write_text(RECIPE.format(base=base, quantization=chosen.quantization))
    measured("train", str(chosen.folder / "r.yaml"), "--run", str(run))
    exports = {"export adapter": (run, "--what", "adapter")}
    exports |= {f"export {outtype}": (merged, "--outtype", outtype) for outtype in chosen.outtypes}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("merge", *exports)}
    for _ in range(chosen.repeats):
        shutil.rmtree(merged, ignore_errors=True)
        found["merge"].append(measured("merge", str(run), str(merged)))
        print("merge", found["merge"][-1]["wall_s"], flush=True)
        for name, (target, *words) in exports.items():
            found[name].append(measured("export", str(target), str(gguf), *words))
            shutil.rmtree(gguf)
            print(name, found[name][-1]["wall_s"], flush=True)
        result = {"date": datetime.date.today().isoformat(), "machine": platform.machine(),
                  "torch": torch.__version__, "gpu": torch.cuda.get_device_name(0)
                  if torch.cuda.is_available() else None, "repeats": len(found["merge"]),
                  "quantization": chosen.quantization,
                  "base_gb": sum(path.stat().st_size for path in base.glob("*.safetensors")) / 1e9,
                  **{key: found["merge"][-1][key] for key in ("taken", "candidates", "bare")},
                  **{name: spread(each) for name, each in found.items()}}
        print(json.dumps(result), flush=True)
        if chosen.out:  # after each turn: what was measured is not lost when the machine is
            chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
