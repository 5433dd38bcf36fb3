"""Run the demo in a fresh folder and draw what it printed, for the README.

    python docs/make_pictures.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

OUT = Path(__file__).resolve().parent / "images" / "demo.svg"


def main() -> None:
    """Write docs/images/demo.svg."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-m", "tunesmith.cli.main", "demo"], cwd=folder, text=True,
                              check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    console = Console(record=True, width=118, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(Text("$ make demo", style="bold"))
    for line in done.stdout.strip("\n").splitlines():
        style = "bold green" if "It helps" in line else "dim" if line.strip().startswith("step ") else ""
        console.print(Text(line, style=style))
    picture = console.export_svg(title="make demo")
    # nothing is fetched to show it
    OUT.write_text(re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL))
    print(OUT)


if __name__ == "__main__":
    main()
