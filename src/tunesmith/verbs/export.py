"""`tunesmith export`: an adapter for llama.cpp and Ollama."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.paths import expanded
from tunesmith.rundir import put_in_place, require_free, workshop, write_atomically
from tunesmith.verbs.adapters import adapter_base, base_option, find_adapter, require_base, require_choices
from tunesmith.verbs.merge import merge
from tunesmith.verbs.show import Show, Silent

_OUTTYPES = ("f16", "q8_0")


def export(adapter: str | os.PathLike[str], out: str | os.PathLike[str], *, format: str = "gguf", what: str = "model",
           outtype: str = "f16", recipe: str | os.PathLike[str] | None = None, base: str | None = None,
           device: str = "auto", show: Show | None = None) -> dict[str, Any]:
    """Write an adapter as GGUF files and an Ollama Modelfile, into a folder that does not exist yet.

    what: `model`, base and adapter merged (and measured, as `merge` does), ready to run; or `adapter`, the LoRA alone, for
    a GGUF of its base. adapter: a run, an adapter folder, a Hub id, or (model) a folder that `merge` wrote.
    outtype: f16 or q8_0, of the model's weights. recipe, base: as for `merge`.
    Returns out, format, what, files (name to bytes), notes (where llama.cpp will differ), and merge (its figures).
    Raises UsageError, RecipeError (what GGUF or llama.cpp lacks), IntegrityError, DiskError, NetworkError.
    """
    show, target = show or Silent(), expanded(out)
    for value, known, name in ((format, ("gguf",), "--format"), (what, ("model", "adapter"), "--what"),
                               (outtype, _OUTTYPES, "--outtype")):
        if value not in known:
            raise UsageError(f"{name} is {value}: {' or '.join(known)}")
    if what == "adapter" and outtype != "f16":
        raise UsageError(f"--outtype is {outtype}: it is of a model's weights, and --what is adapter, which is in f16")
    require_choices(device=device)
    target = target.resolve()
    require_free(target)
    with workshop(target) as shop:
        folder = shop / "0"
        folder.mkdir()
        if what == "adapter":
            result = _adapter(adapter, folder, base, show)
        else:
            result = _model(adapter, folder, outtype, recipe, base, device, show)
        put_in_place(folder, target)
    sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    for note in result["notes"]:
        show.note(note)
    return {"out": str(target), "format": format, "what": what, "files": sizes, **result}


def _adapter(adapter: str | os.PathLike[str], folder: Path, base: str | None, show: Show) -> dict[str, Any]:
    from tunesmith.model.files import locate_base
    from tunesmith.share.gguf import write_adapter_gguf

    found = find_adapter(os.fspath(adapter), show)
    chosen = adapter_base(found, base=base, quantization=None)
    with base_option(found.folder, named=base is not None):
        files = locate_base(chosen["base"], chosen["revision"], show.note)
    require_base(found, files, show, named=base is not None)
    show.stage("writing the adapter")
    written = write_adapter_gguf(found.folder, files, folder / "adapter.gguf", outtype="f16")
    text, notes = _modelfile("base.gguf", files.folder, found.folder, "adapter.gguf")
    told = "# base.gguf: the base of this adapter as GGUF, which is not in this folder.\n"
    write_atomically(folder / "Modelfile", told + text)
    return {"notes": [*written["notes"], *notes], "merge": None}


def _model(adapter: str | os.PathLike[str], folder: Path, outtype: str, recipe: str | os.PathLike[str] | None,
           base: str | None, device: str, show: Show) -> dict[str, Any]:
    from tunesmith.share.gguf import write_model_gguf

    path, measured = expanded(adapter), None
    checkpoint, note_folder = path, path
    if not ((path / "config.json").exists() and not (path / "adapter_config.json").exists()):
        checkpoint = folder / "merged"
        measured = merge(adapter, checkpoint, recipe=recipe, base=base, device=device, show=show)
        measured = {key: value for key, value in measured.items() if key not in ("out", "files", "bytes")}  # gone in the end
        note_folder = find_adapter(os.fspath(adapter), show).folder
    show.stage(f"writing the model in {outtype}")
    written = write_model_gguf(checkpoint, folder / "model.gguf", outtype,
                               progress=lambda done, whole: show.progress("writing", done, whole))
    text, notes = _modelfile("model.gguf", checkpoint, note_folder, None)
    write_atomically(folder / "Modelfile", text)
    shutil.rmtree(folder / "merged", ignore_errors=True)
    return {"notes": [*written["notes"], *notes], "merge": measured}


def _modelfile(gguf_name: str, tokenizer_folder: Path, note_folder: Path, adapter_name: str | None) -> tuple[str, list[str]]:
    """(the Modelfile, what to know of it): the prompt's template and the tokens that end an answer."""
    import json

    from transformers import AutoTokenizer

    from tunesmith.share.gguf import modelfile
    from tunesmith.share.note import read_note

    note = read_note(note_folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False)
    settings = next((folder / "generation_config.json" for folder in (note_folder, tokenizer_folder)
                     if (folder / "generation_config.json").exists()), None)
    ends = json.loads(settings.read_text(encoding="utf-8")).get("eos_token_id") if settings else tokenizer.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    stop = [text for text in (tokenizer.convert_ids_to_tokens(end) for end in ends if end is not None) if text]
    template = getattr(tokenizer, "chat_template", None) if note.get("messages") or not note.get("prompt") else None
    text = modelfile(gguf_name, template=template, prompt=note.get("prompt") or None, stop=stop, adapter_name=adapter_name)
    if "prompt" not in note and template is None:
        text = "# How prompts were written in training is not known: what is sent is sent as it stands.\n" + text
    return text, [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
