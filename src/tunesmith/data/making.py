"""How the tokens of large data sets are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunesmith.hub.client import Tell, quiet


@dataclass(frozen=True)
class Making:
    """load: makes the tokenizer, in another process. tokenizer: a hash of all that it is made of.

    tell: receives what was made or found. progress: receives how many rows are done of how many.
    """

    load: Callable[[], Any]
    tokenizer: str
    tell: Tell = quiet
    progress: Callable[[int, int], None] = lambda done, whole: None
