"""Rewrite a base's safetensors files with one tensor in memory at a time, never a whole shard."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import IntegrityError
from tunesmith.rundir.ordinary import read_json_object

INDEX_NAME = "model.safetensors.index.json"
#: What a merge can add to, by safetensors' names.
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its shard, safetensors' name of its dtype, its shape, its bytes in the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> torch.Tensor:
        """The tensor, in memory of its own. Raises IntegrityError when the file has become shorter."""
        content = bytearray(self.stop - self.start)
        with open(self.path, "rb") as file:
            file.seek(self.start)
            if file.readinto(content) != len(content):
                raise IntegrityError(f"{self.path}: not a whole safetensors file",
                                     "Download or copy the base again.")
        if not content:
            return torch.empty(self.shape, dtype=FLOATS[self.dtype])
        return torch.frombuffer(content, dtype=FLOATS[self.dtype]).reshape(self.shape)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Its bytes as they are, some at a time. Raises IntegrityError."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            left = self.stop - self.start
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise IntegrityError(f"{self.path}: not a whole safetensors file",
                                         "Download or copy the base again.")
                left -= len(chunk)
                yield chunk


def shards_of(folder: Path, every: list[Path]) -> list[Path]:
    """The weight files that transformers would load: one file, else an index's, else every file."""
    index = folder / INDEX_NAME
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if not index.exists():
        return every
    try:
        names = sorted(set(read_json_object(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"{index}: damaged", "Download or copy the base again.") from None
    shards = [folder / name for name in names]
    # also keeps a name from leading out of the folder
    if missing := [path for path in shards if path not in every]:
        raise IntegrityError(f"{missing[0]}: missing, though {INDEX_NAME} names it",
                             "Download or copy the base again.")
    return shards


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """(a shard's tensors in the order of their bytes, its metadata). Raises IntegrityError if damaged."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None) or {}
        tensors = {name: Stored(path, entry["dtype"], tuple(entry["shape"]),
                                *(8 + length + end for end in entry["data_offsets"]))
                   for name, entry in header.items()}
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}: not readable: {error}", "Download or copy the base again.") from None
    return dict(sorted(tensors.items(), key=lambda pair: (pair[1].start, pair[1].stop))), metadata


def write_shard(path: Path, tensors: dict[str, Stored], metadata: dict[str, str], *,
                content: Callable[[str], Iterator[bytes | memoryview]], wrote: Callable[[int], None]) -> int:
    """Write a shard of the same dtypes and shapes, tensors in this order, and fsync it; returns its bytes.

    content: the new bytes of each tensor, a part at a time. wrote: told how many bytes went out.
    Raises OSError, and what `content` raises.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, stored in tensors.items():
        start, end = end, end + stored.stop - stored.start
        header[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [start, end]}
    header_bytes = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    header_bytes += b" " * (-len(header_bytes) % 8)  # the tensors begin at a multiple of eight bytes
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _write(descriptor, struct.pack("<Q", len(header_bytes)) + header_bytes)
        for name, stored in tensors.items():
            size = 0
            for part in content(name):
                _write(descriptor, part)
                wrote(len(part))
                size += len(part)
            assert size == stored.stop - stored.start, name
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return 8 + len(header_bytes) + end


def _write(descriptor: int, content: bytes | memoryview) -> None:
    view = memoryview(content).cast("B")
    while view:
        view = view[os.write(descriptor, view):]
