"""Tunesmith fine-tunes language models with LoRA on frozen, quantised bases, and tests whether it helped.

The public API is the command line's verbs, as functions of the same name and meaning. Nothing heavy is
imported until one of them is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TunesmithError

if TYPE_CHECKING:
    from tunesmith.verbs.demo import demo
    from tunesmith.verbs.doctor import doctor
    from tunesmith.verbs.evaluate import evaluate
    from tunesmith.verbs.export import export
    from tunesmith.verbs.generate import generate
    from tunesmith.verbs.init import init
    from tunesmith.verbs.inspect import inspect
    from tunesmith.verbs.merge import merge
    from tunesmith.verbs.plan import plan
    from tunesmith.verbs.pull import pull
    from tunesmith.verbs.push import push
    from tunesmith.verbs.train import train
    from tunesmith.verbs.verify import verify

__version__ = "0.1.0"
__all__ = [
    "TunesmithError",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "generate",
    "init",
    "inspect",
    "merge",
    "plan",
    "pull",
    "push",
    "train",
    "verify",
]

_VERBS = frozenset(__all__) - {"TunesmithError"}


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        importlib.import_module("tunesmith.hub.client").no_telemetry()
        return getattr(importlib.import_module(f"tunesmith.verbs.{name}"), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
