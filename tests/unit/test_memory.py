"""Work that is done again in smaller parts where the GPU's memory runs out."""

from __future__ import annotations

import ast
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tunesmith
from tunesmith.errors import OutOfMemory
from tunesmith.model import memory
from tunesmith.model.memory import attempt, in_parts


class _Pass:
    """A computation that makes tensors and runs out of memory above `most` indices at once."""

    def __init__(self, most: int) -> None:
        self.most, self.left_behind, self.tried = most, [], []

    def __call__(self, part: Any) -> list[int]:
        assert not any(alive() is not None
                       for alive in self.left_behind), "the failed pass's tensors are still alive"
        self.tried.append(list(part))
        activations = torch.zeros(1000)
        self.left_behind.append(weakref.ref(activations))
        if len(part) > self.most:
            raise torch.OutOfMemoryError("planted")
        return [index * 10 for index in part]


def too_large(index: int) -> OutOfMemory:
    return OutOfMemory(f"index {index} alone does not fit")


@given(sizes=st.lists(st.integers(1, 20), max_size=5), most=st.integers(1, 25))
def test_every_index_is_computed_once_in_order(sizes: list[int], most: int) -> None:
    indices = iter(range(sum(sizes)))
    parts = [[next(indices) for _ in range(size)] for size in sizes]
    compute = _Pass(most)
    with pytest.MonkeyPatch.context() as patch:  # it takes long beside torch, and has its own test below
        patch.setattr(memory.gc, "collect", lambda: 0)
        found = [pair for part, values in in_parts(parts, compute, too_large)
                 for pair in zip(part, values, strict=True)]
    assert found == [(index, index * 10) for index in range(sum(sizes))]
    if parts and max(sizes) <= most:
        assert compute.tried == parts


def test_nothing_of_a_failed_pass_is_alive_when_the_next_begins() -> None:
    compute = _Pass(1)
    assert [part
            for part, _ in in_parts([range(8)], compute, too_large)] == [range(i, i + 1) for i in range(8)]
    assert len(compute.left_behind) > 8


def test_an_index_that_does_not_fit_alone_is_named() -> None:
    with pytest.raises(OutOfMemory, match="index 3 alone") as caught:
        list(in_parts([[3, 4], [5]], _Pass(0), too_large))
    assert caught.value.exit_code == 6


def test_other_errors_pass_and_an_empty_result_is_a_result() -> None:
    with pytest.raises(ZeroDivisionError):
        attempt(lambda: 1 // 0)
    assert list(in_parts([[1]], lambda part: [], too_large)) == [([1], [])]


def test_torch_s_error_is_caught_for_another_attempt_in_one_place_only() -> None:
    """Elsewhere it may only be turned into an error of ours, or be raised again."""
    for path in Path(tunesmith.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (isinstance(node, ast.ExceptHandler) and node.type
                    and "OutOfMemoryError" in ast.unparse(node.type)):
                raises = isinstance(node.body[-1], ast.Raise)
                assert path.name == "memory.py" or raises, f"{path}:{node.lineno}"
