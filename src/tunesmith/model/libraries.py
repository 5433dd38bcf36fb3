"""Large libraries, imported only where they are needed, without code from the Hub, without advice."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from types import ModuleType

_LOCK = threading.Lock()


def import_bitsandbytes() -> ModuleType:
    """bitsandbytes, imported without code from the Hub. It takes seconds: it brings torch's compiler.

    On CPUs with AVX512-BF16 its import downloads a kernel and loads it when the package `kernels` is
    installed, and warns on stderr when it is not. That kernel rounds to bf16, and code fetched at run time is
    never run here, so while bitsandbytes is imported `kernels` cannot be.
    """
    with _LOCK:  # another thread may be importing it: then it is in sys.modules, but not whole
        if "bitsandbytes" not in sys.modules:
            logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
            level, kernels = logger.level, sys.modules.get("kernels")
            logger.setLevel(logging.ERROR)
            # The documented way to make an import fail.
            sys.modules["kernels"] = None  # type: ignore[assignment]
            try:
                import bitsandbytes  # noqa: F401
            finally:
                logger.setLevel(level)
                del sys.modules["kernels"]
                if kernels is not None:
                    sys.modules["kernels"] = kernels
        return sys.modules["bitsandbytes"]


def import_peft() -> ModuleType:
    """peft. It imports bitsandbytes in its own way, so ours comes first."""
    import_bitsandbytes()
    import peft

    return peft


def quiet_libraries() -> None:
    """No advice, warnings or progress bars of other libraries on the user's terminal; errors still show."""
    from transformers.utils import logging as its_logging

    its_logging.set_verbosity_error()
    its_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"peft\.")
