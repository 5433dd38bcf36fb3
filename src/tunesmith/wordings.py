"""Failures of other libraries that nothing but their words tells apart: the one place where words are read.

What raises them has no class and no number of its own for them. Errors of ours are never told apart so: they
have a kind.
"""

from __future__ import annotations

import re


def errno_in(error: Exception) -> int | None:
    """The system's error number in what hf_xet's Rust says in a RuntimeError: `(os error 28)`."""
    match = re.search(r"\(os error (\d{1,4})\)", str(error))
    return int(match[1]) if match else None


def says_disk_full(error: BaseException) -> bool:
    """`datasets`, which compares sizes before it writes, in an OSError without a number."""
    return isinstance(error, OSError) and str(error).startswith("Not enough disk space")
