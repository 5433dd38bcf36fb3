"""How long the first minute takes: `tunesmith demo` and `tunesmith --help`, each in fresh processes.

    python benchmarks/first_minute.py [--repeats 5] [--out FILE]
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
import time
from pathlib import Path


def seconds(words: list[str], folder: str) -> float:
    """Wall time of one call of the installed command."""
    command = Path(sys.executable).with_name("tunesmith")
    started = time.perf_counter()
    subprocess.run([command, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    result: dict[str, object] = {"date": datetime.date.today().isoformat(), "repeats": chosen.repeats,
                                 "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                                 "python": platform.python_version()}
    for name, words in (("help", ["--help"]), ("demo", ["demo"])):
        times = []
        for _ in range(chosen.repeats):
            with tempfile.TemporaryDirectory() as folder:
                times.append(round(seconds(words, folder), 3))
        result[name] = {"seconds": times, "median": statistics.median(times),
                        "range": [min(times), max(times)]}
    print(json.dumps(result, indent=2))
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
