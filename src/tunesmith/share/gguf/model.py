"""A whole checkpoint as GGUF: merged, or a base that was never trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tunesmith.errors import IntegrityError
from tunesmith.model.files import BaseFiles, locate_base
from tunesmith.share.gguf.file import Entry, Progress, check_outtype, kind_for, write_file
from tunesmith.share.gguf.layout import Layout, layout_of
from tunesmith.share.gguf.metadata import rope_factors, write_hyperparameters
from tunesmith.share.gguf.tokenizer import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    import torch

_HEAD = "lm_head.weight"


def check_model_gguf(base: BaseFiles) -> tuple[Layout, Vocabulary]:
    """What of a checkpoint, or of a base before anything is merged into it, GGUF must have a place for.

    Raises RecipeError naming what it has none for, IntegrityError for a tokenizer that contradicts itself.
    """
    import gguf

    layout = layout_of(base)
    rope_factors(layout)
    write_hyperparameters(gguf.GGUFWriter(None, layout.architecture), layout)  # which opens no file
    return layout, read_vocabulary(base, layout.parts.vocabulary)


def write_model_gguf(checkpoint: Path, out: Path, outtype: str = "f16", progress: Progress | None = None, *,
                     name: str | None = None) -> dict[str, Any]:
    """Write a transformers checkpoint folder (config.json, *.safetensors, tokenizer files) as `out`.

    outtype: f16, or q8_0 for 8.5 bits a weight; vectors stay in f32. progress: called with (bytes of tensors
    written, of all). name: of the model in its metadata, by default the folder's. Tensors are read one by
    one, so memory holds one at a time. Returns {path, name, architecture, outtype, tensors, bytes, tokenizer,
    notes}; notes say in words where llama.cpp will differ. Raises RecipeError naming what GGUF has no place
    for, IntegrityError for a checkpoint that is not whole, DiskError.
    """
    check_outtype(outtype, ("f16", "q8_0"))
    base = locate_base(str(checkpoint.resolve()), None)
    layout, vocabulary = check_model_gguf(base)
    notes: list[str] = []

    def fill(writer: Any) -> None:
        import gguf

        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(name or base.folder.name)
        writer.add_file_type({"f16": gguf.LlamaFileType.MOSTLY_F16,
                              "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[outtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        notes.extend(write_hyperparameters(writer, layout))
        vocabulary.write(writer)

    with _Tensors(base, layout) as tensors:
        entries = tensors.entries(outtype)
        size = write_file(out, layout.architecture, fill, entries, progress)
    wide = [entry for entry in entries if outtype == "q8_0" and entry.kind == "f16"]
    if wide:
        notes.append(
            f"{len(wide)} tensors are f16: their rows do not divide into the blocks of 32 that q8_0 has")
    return {"path": str(out), "name": name or base.folder.name, "architecture": layout.architecture,
            "outtype": outtype, "tensors": len(entries), "bytes": size,
            "tokenizer": vocabulary.pre or vocabulary.model, "notes": notes + vocabulary.notes}


class _Tensors:
    """The tensors of a checkpoint by their canonical names, from all its files; a context manager."""

    def __init__(self, base: BaseFiles, layout: Layout) -> None:
        self.base, self.layout = base, layout
        self._files: list[Any] = []
        self._source_of: dict[str, tuple[Any, str]] = {}

    def __enter__(self) -> _Tensors:
        from safetensors import SafetensorError, safe_open

        try:
            for path in self.base.weights:
                file = safe_open(path, framework="pt", device="cpu").__enter__()
                self._files.append(file)
                for name in file.keys():  # noqa: SIM118 - not a dict
                    canonical = self.layout.canonical(name)
                    if canonical is not None:
                        self._source_of[canonical] = (file, name)
        except (SafetensorError, OSError) as error:
            raise IntegrityError(f"{self.base.name}: cannot be read: {error}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for file in self._files:
            file.__exit__(kind, error, trace)

    def read(self, name: str) -> torch.Tensor:
        """One tensor. Raises IntegrityError."""
        from safetensors import SafetensorError

        file, own = self._source_of[name]
        try:
            tensor: torch.Tensor = file.get_tensor(own)
            return tensor
        except (SafetensorError, OSError, RuntimeError) as error:
            raise IntegrityError(f"{self.base.name}: cannot be read: {own}: {error}") from None

    def entries(self, outtype: str) -> list[Entry]:
        """Every tensor of the GGUF. Raises IntegrityError listing what is missing, surplus or misshapen."""
        expected = dict(self.layout.parameters)
        if self.layout.tied and _HEAD in self._source_of and not self._copy_of_embedding():
            expected[_HEAD] = expected[f"{self.layout.parts.embedding}.weight"]
        self._check(expected)
        entries = [Entry(self.layout.gguf_name(name), shape, kind_for(shape, outtype),
                         partial(self.read, name), self.layout.rows(name))
                   for name, shape in expected.items()]
        factors = rope_factors(self.layout)
        if factors is not None:
            entries.append(Entry("rope_freqs.weight", tuple(factors.shape), "f32", lambda: factors))
        return entries

    def _copy_of_embedding(self) -> bool:
        """Whether a tied head that lies in the file all the same says nothing new."""
        import torch

        head_VC = self.read(_HEAD)
        return torch.equal(head_VC, self.read(f"{self.layout.parts.embedding}.weight"))

    def _check(self, expected: dict[str, tuple[int, ...]]) -> None:
        from tunesmith.model.lora import listing

        problems = [f"{name}: missing" for name in expected if name not in self._source_of]
        problems += [f"{name}: its config.json does not call for it" for name in self._source_of
                     if name not in expected and name != _HEAD]
        for name in expected.keys() & self._source_of.keys():
            file, own = self._source_of[name]
            shape = tuple(file.get_slice(own).get_shape())
            if shape != expected[name]:
                problems.append(f"{name}: {list(shape)}, its config.json calls for {list(expected[name])}")
        if problems:
            raise IntegrityError(
                f"{self.base.name}: is not the checkpoint of its config.json:\n  {listing(sorted(problems))}",
                "Copy, download or merge it again.")
