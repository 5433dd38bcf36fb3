"""How the tokens of large data sets are made."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.hub.client import Tell, quiet


@dataclass(frozen=True)
class Loader:
    """What makes a tokenizer, told in words: a function or class of a module, and what it is called with, as
    JSON has it.
    """

    module: str
    name: str
    arguments: Mapping[str, Any]

    def load(self) -> Any:
        """The tokenizer."""
        return getattr(importlib.import_module(self.module), self.name)(**self.arguments)


@dataclass(frozen=True)
class Making:
    """loader: makes the tokenizer, in another process. tokenizer: a hash of all that it is made of.

    tell: receives what was made or found. progress: receives how many rows are done of how many.
    """

    loader: Loader
    tokenizer: str
    tell: Tell = quiet
    progress: Callable[[int, int], None] = lambda done, whole: None
