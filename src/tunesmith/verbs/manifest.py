"""The manifest of a run: hashes of base, data and template, versions, seed, machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import time
import uuid
from typing import Any

from tunesmith.errors import IntegrityError, RecipeError
from tunesmith.model.files import fingerprint
from tunesmith.recipe import Recipe
from tunesmith.rundir.ordinary import require_kinds
from tunesmith.verbs.prepare import Prepared

_ANOTHER = "Start another run with --run."
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors")


def library_versions() -> dict[str, str]:
    """The versions of this package and of what computes the run's numbers."""
    versions = {"python": platform.python_version()}
    for name in ("tunesmith", *_LIBRARIES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


def describe_machine() -> str:
    """This machine in a line: processor, cores, memory, GPUs."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    parts = [f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} CPU cores",
             f"{memory_bytes / 2**30:.0f} GiB memory"]
    return ", ".join([*parts, *gpu_names()])


def gpu_names() -> list[str]:
    """The GPUs that torch sees; none where torch itself does not start."""
    try:
        import torch
    except (ImportError, OSError):
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def build_manifest(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What a run starts from."""
    import torch

    placement = prepared.decisions.placement
    template = "\n".join(str(part) for part in (recipe.data.prompt, recipe.data.completion, recipe.data.messages,
                                                getattr(prepared.tokenizer, "chat_template", None)))
    return {
        "format": 2, "run_id": uuid.uuid4().hex,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"), "seed": recipe.train.seed,
        "quantization": placement.quantization,
        "base": {"name": recipe.model.base, "revision": recipe.model.revision, "files": fingerprint(prepared.base)},
        "data": {"source": recipe.data.source, "content": prepared.content_hash, "counts": prepared.data.counts,
                 "template": hashlib.sha256(template.encode()).hexdigest()},
        "engine": placement.engine, "engine_reason": placement.reason, "device": placement.device,
        "dtype": placement.dtype_name, "threads": torch.get_num_threads(),
        "machine": describe_machine(), "versions": library_versions(),
    }


#: What the report says of a manifest when the run has ended.
_REPORTED: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("quantization", "started", "engine_reason", "machine", "base.name", "data.source"), (str,)),
    **{f"data.counts.{name}": (int,) for name in ("train", "validation", "truncated", "dropped")}}


def check_same(then: dict[str, Any], now: dict[str, Any], run: str) -> list[str]:
    """Refuse to resume when base or data changed; returns what else differs and only matters to the last bit.

    Raises RecipeError saying what changed, IntegrityError for a manifest that is not as this program writes it.
    """
    changed = []
    files, files_now = _section(then, "base", run).get("files"), now["base"]["files"]
    if not isinstance(files, dict):
        raise IntegrityError(f"{run}: manifest.json: base.files: not as this program writes it", _ANOTHER)
    # A run of before manifests had a format lists weights, config.json and tokenizer.json alone.
    looked_at = {**files, **files_now} if "format" in then else files
    if names := sorted(name for name in looked_at if files.get(name) != files_now.get(name)):
        changed.append(f"the base's files ({', '.join(names)})")
    if _section(then, "data", run).get("content") != now["data"]["content"]:
        changed.append(f"the rows of {now['data']['source']}")
    if then["data"].get("template") != now["data"]["template"]:
        changed.append("the template")
    if changed:
        raise RecipeError(f"{run}: changed since the run began: {', '.join(changed)}",
                          "Put them back, or start another run with --run.")
    require_kinds(then, _REPORTED, f"{run}: manifest.json", _ANOTHER)
    versions = _section(then, "versions", run)
    differing = [f"{name} {versions.get(name)} -> {version}" for name, version in now["versions"].items()
                 if versions.get(name) != version]
    differing += [f"{name} {then.get(name)} -> {now[name]}" for name in ("engine", "device", "dtype", "threads")
                  if then.get(name) != now[name]]
    return differing


def _section(manifest: dict[str, Any], name: str, run: str) -> dict[str, Any]:
    found = manifest.get(name)
    if not isinstance(found, dict):
        raise IntegrityError(f"{run}: manifest.json: {name}: not as this program writes it", _ANOTHER)
    return found


def sampled(manifest: dict[str, Any]) -> bool:
    """Whether some of the base's files were too large to be hashed whole."""
    return any(str(digest).startswith("sha256-of-samples") for digest in manifest["base"]["files"].values())
