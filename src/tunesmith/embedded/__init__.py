"""The base model and the quotes that let `tunesmith demo` run with no network.

Both are made by this project: `grammar.py` writes the text, `build.py` trains the tokenizer and pretrains the
model.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent

#: What a recipe writes as `model.base` or `data.source` to mean the files of this folder.
BASE_NAME = "embedded:sprout"
QUOTES_NAME = "embedded:quotes"


def path_of(name: str) -> Path | None:
    """The local path behind an `embedded:` name; None for any other name.

    >>> path_of("bigscience/bloom-7b1") is None
    True
    """
    return {BASE_NAME: _HERE / "sprout", QUOTES_NAME: _HERE / "quotes.jsonl"}.get(name)
