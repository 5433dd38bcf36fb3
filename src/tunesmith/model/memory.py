"""Work in smaller parts where the GPU's memory runs out: the one place that catches torch's error."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from tunesmith.errors import OutOfMemory

Result = TypeVar("Result")


def attempt(compute: Callable[[], Result]) -> Result | None:
    """What `compute` returns, or None where the GPU's memory ran out; it must return something else itself.

    The next attempt is to be made after this has returned, never inside an `except`: while the error is
    handled its traceback keeps the frames of the failed pass, and with them every tensor that it had made.
    """
    try:
        return compute()
    except torch.OutOfMemoryError:
        pass
    gc.collect()  # frames of the failed pass that refer to each other
    torch.cuda.empty_cache()
    return None


def in_parts(parts: Iterable[Sequence[int]], compute: Callable[[Sequence[int]], Result],
             too_large: Callable[[int], OutOfMemory]) -> Iterator[tuple[Sequence[int], Result]]:
    """Each part of indices with what `compute` returns for it, in order; a part that does not fit is halved.

    Parts that follow are then no longer than the half. Raises too_large(index) where one index alone does not
    fit.
    """
    limit = None
    waiting = list(parts)[::-1]
    while waiting:
        part = waiting.pop()
        if limit is not None and len(part) > limit:
            waiting += [part[limit:], part[:limit]]
            continue
        result = attempt(lambda part=part: compute(part))  # type: ignore[misc]
        if result is not None:
            yield part, result
        elif len(part) == 1:
            raise too_large(part[0])
        else:
            limit = max(1, len(part) // 2)
            waiting.append(part)
