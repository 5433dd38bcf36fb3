"""`tunesmith export`: an adapter for llama.cpp and Ollama."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import IntegrityError, UsageError
from tunesmith.paths import expanded
from tunesmith.rundir import put_in_place, require_free, staging_folder, write_atomically
from tunesmith.rundir.ordinary import read_json_object
from tunesmith.verbs.adapters import adapter_base, base_option, find_adapter, require_base, require_choices
from tunesmith.verbs.merge import merge
from tunesmith.verbs.show import Show, Silent

if TYPE_CHECKING:
    from tunesmith.model.files import BaseFiles

GENERATION_NAME = "generation_config.json"
_OUTTYPES = ("f16", "q8_0")


def export(adapter: str | os.PathLike[str], out: str | os.PathLike[str], *, format: str = "gguf",
           what: str = "model", outtype: str = "f16", recipe: str | os.PathLike[str] | None = None,
           base: str | None = None, device: str = "auto", show: Show | None = None) -> dict[str, Any]:
    """Write an adapter as GGUF files and an Ollama Modelfile, into a folder that does not exist yet.

    what: `model`, base and adapter merged (and measured, as `merge` does), ready to run; or `adapter`, the
    LoRA alone, for a GGUF of its base. adapter: a run, an adapter folder, a Hub id, or (model) a folder that
    `merge` wrote. outtype: f16 or q8_0, of the model's weights. recipe, base: as for `merge`. Returns out,
    format, what, files (name to bytes), notes (where llama.cpp will differ), and merge (its figures). Raises
    UsageError, RecipeError (what GGUF or llama.cpp lacks), IntegrityError, DiskError, NetworkError.
    """
    show, target = show or Silent(), expanded(out)
    for value, allowed, name in ((format, ("gguf",), "--format"), (what, ("model", "adapter"), "--what"),
                                 (outtype, _OUTTYPES, "--outtype")):
        if value not in allowed:
            raise UsageError(f"{name} is {value}: {' or '.join(allowed)}")
    if what == "adapter" and outtype != "f16":
        raise UsageError(f"--outtype is {outtype}: it is of a model's weights, and --what is adapter, "
                         "which is in f16")
    require_choices(device=device)
    target = target.resolve()
    require_free(target)
    with staging_folder(target) as staging:
        folder = staging / "0"
        folder.mkdir()
        if what == "adapter":
            result = _adapter(adapter, folder, base, show)
        else:
            result = _model(adapter, folder, outtype, recipe, base, device, target.name, show)
        put_in_place(folder, target)
    sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    for note in result["notes"]:
        show.note(note)
    return {"out": str(target), "format": format, "what": what, "files": sizes, **result}


def _adapter(adapter: str | os.PathLike[str], folder: Path, base: str | None, show: Show) -> dict[str, Any]:
    from tunesmith.model.files import locate_base
    from tunesmith.share.gguf import write_adapter_gguf

    adapter_files = find_adapter(os.fspath(adapter), show)
    base_spec = adapter_base(adapter_files, base=base, quantization=None)
    with base_option(adapter_files.folder, named=base is not None):
        files = locate_base(base_spec["base"], base_spec["revision"], show.note)
    require_base(adapter_files, files, show, named=base is not None)
    show.stage("writing the adapter")
    written = write_adapter_gguf(adapter_files.folder, files, folder / "adapter.gguf", outtype="f16")
    text, notes = _modelfile("base.gguf", files, adapter_files.folder, "adapter.gguf")
    comment = "# base.gguf: the base of this adapter as GGUF, which is not in this folder.\n"
    write_atomically(folder / "Modelfile", comment + text)
    return {"notes": [*written["notes"], *notes], "merge": None}


def _model(adapter: str | os.PathLike[str], folder: Path, outtype: str, recipe: str | os.PathLike[str] | None,
           base: str | None, device: str, name: str, show: Show) -> dict[str, Any]:
    """name: what the GGUF of an adapter's merge calls itself."""
    from tunesmith.model.files import locate_base
    from tunesmith.share.gguf import check_model_gguf, write_model_gguf

    path, measured = expanded(adapter), None
    whole = (path / "config.json").exists() and not (path / "adapter_config.json").exists()
    if whole:
        checkpoint, metadata_folder, source = path, path, locate_base(str(path.resolve()), None)
    else:
        adapter_files = find_adapter(os.fspath(adapter), show)
        base_spec = adapter_base(adapter_files, base=base, quantization=None)
        with base_option(adapter_files.folder, named=base is not None):
            source = locate_base(base_spec["base"], base_spec["revision"], show.note)
        checkpoint, metadata_folder = folder.parent / "1", adapter_files.folder  # beside what stays
    show.stage("looking at what GGUF can hold")  # before anything is merged, which takes long
    check_model_gguf(source)
    text, notes = _modelfile("model.gguf", source, metadata_folder, None)
    if not whole:
        measured = merge(adapter, checkpoint, recipe=recipe, base=base, device=device, show=show)
        # gone in the end
        measured = {key: value for key, value in measured.items() if key not in ("out", "files", "bytes")}
    show.stage(f"writing the model in {outtype}")
    written = write_model_gguf(checkpoint, folder / "model.gguf", outtype, name=path.name if whole else name,
                               progress=lambda done, whole: show.progress("writing", done, whole))
    write_atomically(folder / "Modelfile", text)
    return {"notes": [*written["notes"], *notes], "merge": measured}


def _modelfile(gguf_name: str, base: BaseFiles, metadata_folder: Path,
               adapter_name: str | None) -> tuple[str, list[str]]:
    """(the Modelfile, what to know of it): the prompt's template and the tokens that end an answer.

    base: whose tokenizer it is. Raises RecipeError or IntegrityError for files that cannot be used.
    """
    from tunesmith.model.tokenizer import load_tokenizer
    from tunesmith.share.gguf import modelfile
    from tunesmith.share.metadata import read_metadata

    metadata, tokenizer = read_metadata(metadata_folder), load_tokenizer(base)
    ends = _ends(tokenizer, metadata_folder, base.folder)
    stop = [text for text in map(tokenizer.convert_ids_to_tokens, ends) if text]
    template = getattr(tokenizer, "chat_template",
                       None) if metadata.get("messages") or not metadata.get("prompt") else None
    text = modelfile(gguf_name, template=template, prompt=metadata.get("prompt") or None, stop=stop,
                     adapter_name=adapter_name)
    if "prompt" not in metadata and template is None:
        text = (
            "# How prompts were written in training is not known: what is sent is sent as it stands.\n" + text
        )
    return text, [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]


def _ends(tokenizer: Any, *folders: Path) -> list[int]:
    """The ids of the tokens that end an answer: by the first generation_config.json, else the tokenizer's.

    Raises IntegrityError for what are no tokens of it.
    """
    path = next((folder / GENERATION_NAME for folder in folders if (folder / GENERATION_NAME).exists()), None)
    ends = read_json_object(path, infinite=True).get("eos_token_id") if path else tokenizer.eos_token_id
    ends = [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None]
    wrong = [end for end in ends if isinstance(end, bool) or not isinstance(end, int)
             or not 0 <= end < len(tokenizer)]
    if wrong:
        raise IntegrityError(f"{path or 'the tokenizer'}: eos_token_id: not tokens of this tokenizer, which "
                             f"has {len(tokenizer)}: {str(wrong)[:60]}", "Remove the file, or copy it again.")
    return ends
