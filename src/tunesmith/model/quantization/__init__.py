"""The ways of keeping the frozen weights of a base, one file each. See `way.Way` for what a file says.

A new way is one file here and its row in `WAYS`: the recipe, both engines, planning, merging, cards, `doctor`
and the command line's words read it from there.
"""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.model.quantization.int8 import Int8
from tunesmith.model.quantization.nf4 import Nf4
from tunesmith.model.quantization.none import AsTheyAre
from tunesmith.model.quantization.way import Way

__all__ = ["AS_THEY_ARE", "WAYS", "Way", "choices", "smallest"]

#: By the name that a recipe has for it.
WAYS: dict[str, Way] = {way.name: way for way in (AsTheyAre(), Int8(), Nf4())}
#: The name of the way that changes nothing; that of a base of which nobody said how it is kept.
AS_THEY_ARE = AsTheyAre.name


def smallest() -> str:
    """The name of the way that takes up the least memory: what is advised where memory runs out."""
    return min(WAYS.values(), key=lambda way: way.size_share).name


def choices(names: Iterable[str] | None = None) -> str:
    """Names of ways as a sentence has them, all by default: `none, int8 or nf4`."""
    *rest, last = WAYS if names is None else names
    return f"{', '.join(rest)} or {last}" if rest else last
