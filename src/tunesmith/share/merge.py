"""Merge an adapter into its base: a plain checkpoint of the base's own layout, taken only when it still says the same.

Shapes: O outputs, I inputs, R rows of a weight that are worked on at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tunesmith.data import TokenRow
from tunesmith.errors import DiskError, EnvironmentFault, IntegrityError, Interrupted, UsageError
from tunesmith.model.engine import Engine
from tunesmith.model.files import BaseFiles, fingerprint
from tunesmith.model.lora import CONFIG_NAME, WEIGHTS_NAME
from tunesmith.rundir import seal, sync_folder
from tunesmith.rundir.files import TEMPORARY_PREFIX, disk_errors, write_synced
from tunesmith.rundir.seal import SEAL_NAME, sha256_file
from tunesmith.share.agreement import Agreement, Reference, better, compare, lost, reference
from tunesmith.share.folding import Change, Changes, Skeleton, read_changes, read_skeleton
from tunesmith.share.shards import FLOATS, INDEX_NAME, Stored, read_header, shards_of, write_shard

#: What was measured, beside the merged weights.
MERGE_NAME = "merge.json"
#: Files of a base that a merged checkpoint needs beside its weights, or that its licence asks to be passed on.
_CARRIED = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken",
            "chat_template*", "LICENSE*", "NOTICE*", "USE_POLICY*")
#: Values of a weight that are worked on at once in fp32: 32 MiB.
_VALUES_AT_ONCE = 1 << 23
#: Room for the small files, and for what a file system keeps for itself.
_SPARE_BYTES = 32 << 20


@dataclass(frozen=True)
class MergedWeights:
    """What was written. files: their names. changed: how many tensors are not the base's. untied: whether the head
    became a tensor of its own."""

    files: list[str]
    bytes: int
    changed: int
    untied: bool


def merge_weights(base: BaseFiles, adapter: Path, out: Path, *, dequantised: str | None,
                  progress: Callable[[int, int], None]) -> MergedWeights:
    """Write W + scale * B A, computed in fp32 and rounded once to each tensor's own dtype, into the folder `out`.

    dequantised: int8 or nf4 to start from the weights as a run in it saw them; None to start from the files' own.
    progress: called with (bytes written, bytes in all).
    Raises IntegrityError for an adapter or a base that cannot be merged and where a merged weight overflows its dtype,
    RecipeError for an architecture that transformers does not know, DiskError. What was written until then stays.
    """
    plan = _Plan.make(base, adapter, dequantised)
    _require_space(out, plan.bytes)
    done = 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        progress(done, plan.bytes)

    sizes = {}
    with disk_errors(out):
        for path, (tensors, metadata) in plan.shards.items():
            sizes[path.name] = write_shard(out / path.name, tensors, metadata, content=plan.content, wrote=wrote)
        for name, content in _small_files(base, adapter, plan).items():
            write_synced(out / name, content)
            sizes[name] = len(content)
        sync_folder(out)
    return MergedWeights(sorted(sizes), sum(sizes.values()), len(plan.changes) + len(plan.kept - set(plan.changes)),
                         bool(plan.added))


@dataclass(frozen=True)
class _Plan:
    """What is written, by the names of the files' tensors, which may lack the body's prefix.

    shards: each file's tensors in their order, and its metadata. kept: tensors to be quantised and turned back;
    columns: those of them that lie as [I, O]. added: the shard of each tensor that the base does not have.
    """

    shards: dict[Path, tuple[dict[str, Stored], dict[str, str]]]
    changes: dict[str, Change]
    kept: frozenset[str]
    columns: frozenset[str]
    added: dict[str, Path]
    dequantised: str | None

    @classmethod
    def make(cls, base: BaseFiles, adapter: Path, dequantised: str | None) -> _Plan:
        """Everything is checked here, before a byte is written. Raises IntegrityError or RecipeError."""
        skeleton = read_skeleton(base, dequantised)
        wanted = read_changes(adapter, skeleton)
        shards = {path: read_header(path) for path in shards_of(base.folder, base.weights)}
        stored = {name: each for tensors, _ in shards.values() for name, each in tensors.items()}
        names = _Names(base, skeleton, stored)
        added = _untie(wanted, skeleton, names, shards)
        _check_own_base(adapter, wanted, names)
        changes = {names.at(parameter): change for parameter, change in wanted.changes.items()}
        kept = {names.at(f"{module}.weight"): skeleton.kinds[module] for module in sorted(skeleton.quantised)}
        kept = {name: kind for name, kind in kept.items() if name not in changes or changes[name].replacement is None}
        for name in {*changes, *kept}:
            names.check(name)
        return cls(shards, changes, frozenset(kept), frozenset(name for name, kind in kept.items() if kind == "conv1d"),
                   added, dequantised)

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(each.stop - each.start for tensors, _ in self.shards.values() for each in tensors.values())

    def content(self, name: str) -> Iterator[bytes]:
        """The new bytes of a tensor."""
        stored = next(tensors[name] for tensors, _ in self.shards.values() if name in tensors)
        if name not in self.changes and name not in self.kept:
            return stored.chunks()
        return self._merged(name, stored)

    def _merged(self, name: str, stored: Stored) -> Iterator[bytes]:
        change, dtype = self.changes.get(name, Change()), FLOATS[stored.dtype]
        start = stored.read() if change.replacement is None else change.replacement
        if name in self.kept:
            start = _turned_back(start, str(self.dequantised), columns=name in self.columns)
        wide = torch.promote_types(dtype, torch.float32)
        step = max(1, _VALUES_AT_ONCE // max(1, start[0].numel())) if start.ndim else 1
        for rows in start.split(step) if start.ndim else [start]:
            part = rows.to(wide, copy=True)
            if change.left is not None:
                first = rows.storage_offset() // max(1, start.stride(0)) if start.ndim else 0
                left = change.left[first:first + len(rows)].to(wide)
                part.addmm_(left, change.right.to(wide), alpha=change.scale)  # type: ignore[union-attr]
            merged = part.to(dtype)
            if not torch.isfinite(merged).all():
                kind = "overflows" if torch.isfinite(rows).all() else "is NaN or infinite in the base, so it cannot be in"
                raise IntegrityError(f"{name}: the merged weight {kind} {stored.dtype} (largest {torch.finfo(dtype).max:.5g})",
                                     "Merge into a copy of the base in bf16 or fp32, or use the adapter unmerged.")
            yield merged.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
