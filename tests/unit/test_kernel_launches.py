"""What the kernels' source must keep to, seen without a GPU."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tunesmith.model.native import kernels

_FILES = sorted(Path(kernels.__file__).parent.glob("*_triton.py"))


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_every_kernel_is_launched_on_its_tensors_device(path: Path) -> None:
    """Triton launches on the current device, which need not be the tensors': a run may be on cuda:1."""
    launches = []

    def visit(node: ast.AST, guarded: bool) -> None:
        if isinstance(node, ast.With):
            guarded = guarded or any("torch.cuda.device_of" in ast.unparse(item) for item in node.items)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Subscript)
            and "_kernel" in ast.unparse(node.func.value)
        ):
            launches.append(node.lineno)
            assert guarded, f"{path.name}:{node.lineno}: launched without torch.cuda.device_of"
        for child in ast.iter_child_nodes(node):
            visit(child, guarded)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    assert launches
