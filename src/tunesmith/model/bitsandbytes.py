"""The one way in which bitsandbytes is imported here: without the code it would fetch, and without its advice."""

from __future__ import annotations

import logging
import sys
from types import ModuleType


def import_bitsandbytes() -> ModuleType:
    """bitsandbytes, imported so that no compiled code comes from the Hub.

    On CPUs with AVX512-BF16 its import downloads a kernel and loads it when the package `kernels` is installed, and
    warns on stderr when it is not. That kernel rounds to bf16, and code fetched at run time is never run here, so while
    bitsandbytes is imported `kernels` cannot be.
    """
    if "bitsandbytes" not in sys.modules:
        logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
        level, kernels = logger.level, sys.modules.get("kernels")
        logger.setLevel(logging.ERROR)
        sys.modules["kernels"] = None  # type: ignore[assignment]  # the documented way to make an import fail
        try:
            import bitsandbytes  # noqa: F401
        finally:
            logger.setLevel(level)
            del sys.modules["kernels"]
            if kernels is not None:
                sys.modules["kernels"] = kernels
    return sys.modules["bitsandbytes"]
