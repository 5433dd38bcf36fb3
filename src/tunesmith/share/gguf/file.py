"""One GGUF file, written tensor by tensor and whole or not at all.

gguf's writer makes the head of the file: magic, metadata, the table of tensors. What follows it is written
here, because that writer reports a full disk without its error number and never calls fsync. After the head
each tensor begins at a multiple of 32 bytes (general.alignment's default,
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import IntegrityError, RecipeError
from tunesmith.rundir.files import TEMPORARY_PREFIX, disk_errors, sync_folder

if TYPE_CHECKING:
    import numpy as np
    import torch

Progress = Callable[[int, int], None]

_ALIGNMENT = 32
#: llama.cpp's Q8_0: 32 weights as 32 int8 and one f16 scale.
_BLOCK_WEIGHTS, _BLOCK_BYTES = 32, 34
#: How many elements are converted at a time.
_CHUNK = 8 << 20


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its name in GGUF, its shape in torch, f32 / f16 / q8_0, and how to read it.

    rows: the order of its rows, [rows] of int64, if not as they are. factor: what it is multiplied by.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[], torch.Tensor]
    rows: torch.Tensor | None = None
    factor: float = 1.0

    @property
    def size(self) -> int:
        """Bytes in the file, without the padding behind it."""
        if self.kind == "q8_0":
            return prod(self.shape) // _BLOCK_WEIGHTS * _BLOCK_BYTES
        return prod(self.shape) * {"f32": 4, "f16": 2}[self.kind]

    def chunks(self) -> Iterator[np.ndarray]:
        """Its rows as they go into the file, some at a time. Raises IntegrityError for infinities."""
        tensor = self.read()
        step = max(1, _CHUNK // max(1, prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            chunk = tensor[start:start + step] if self.rows is None else tensor[self.rows[start:start + step]]
            yield self._convert(chunk if self.factor == 1.0 else chunk.float() * self.factor)

    def _convert(self, chunk: torch.Tensor) -> np.ndarray:
        import gguf
        import torch

        wanted = torch.float16 if self.kind == "f16" else torch.float32
        values = chunk.to(wanted)
        if not torch.isfinite(values).all():
            if torch.isfinite(chunk).all():
                largest = chunk.abs().max().item()
                raise IntegrityError(
                    f"{self.name}: a weight of {largest:.3g} is beyond what f16 holds (65504)",
                    "Take q8_0, which has a scale for every 32 weights.")
            raise IntegrityError(f"{self.name}: NaN or infinite")
        array = values.contiguous().numpy()
        return gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0) if self.kind == "q8_0" else array


def kind_for(shape: tuple[int, ...], outtype: str) -> str:
    """How a tensor is kept: vectors in f32; rows that do not divide into q8_0's blocks of 32 in f16."""
    if len(shape) < 2:
        return "f32"
    return "f16" if outtype == "q8_0" and shape[-1] % _BLOCK_WEIGHTS else outtype


def check_outtype(outtype: str, known: tuple[str, ...]) -> None:
    """Raises RecipeError for another outtype than the known ones."""
    if outtype not in known:
        raise RecipeError(f"GGUF: no outtype {outtype!r}", f"Take one of {', '.join(known)}.")


def write_file(out: Path, architecture: str, fill: Callable[[Any], None], entries: list[Entry],
               progress: Progress | None = None) -> int:
    """Write a GGUF; its size in bytes.

    fill: puts the metadata into a gguf.GGUFWriter. progress: called with (bytes of tensors written, of all).
    Raises DiskError; then, as after any other error, an older file of that name is as it was.
    """
    temporary = out.with_name(TEMPORARY_PREFIX + out.name)
    with disk_errors(out):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            _write_head(temporary, architecture, fill, entries)
            _write_tensors(temporary, entries, progress)
            size = temporary.stat().st_size
            os.replace(temporary, out)
            sync_folder(out.parent)
            return size
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _write_head(path: Path, architecture: str, fill: Callable[[Any], None], entries: list[Entry]) -> None:
    import gguf
    import numpy as np

    kinds = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16,
             "q8_0": gguf.GGMLQuantizationType.Q8_0}
    writer = gguf.GGUFWriter(path, architecture)
    fill(writer)
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.size,
                               raw_dtype=kinds[entry.kind])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _write_tensors(path: Path, entries: list[Entry], progress: Progress | None) -> None:
    total, done = sum(entry.size for entry in entries), 0
    with open(path, "ab") as file:
        _pad(file)
        for entry in entries:
            start = done
            for chunk in entry.chunks():
                file.write(chunk.data.cast("B"))
                done += chunk.nbytes
                if progress is not None:
                    progress(done, total)
            if done - start != entry.size:
                raise IntegrityError(f"{entry.name}: {done - start} bytes instead of {entry.size}")
            _pad(file)
        file.flush()
        os.fsync(file.fileno())


def _pad(file: Any) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))
