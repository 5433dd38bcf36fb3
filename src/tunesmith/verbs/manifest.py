"""The manifest of a run: hashes of base, data and template, versions, seed, machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import time
import uuid

from tunesmith.errors import RecipeError
from tunesmith.model.files import fingerprint
from tunesmith.recipe import Recipe
from tunesmith.rundir.manifest import RUN_FORMAT, BaseFacts, DataFacts, Manifest, RowCounts
from tunesmith.verbs.prepare import Prepared

#: How many of the files of its rows a manifest names.
_MOST_FILES = 1000
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
    return [torch.cuda.get_device_name(i)
            for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def build_manifest(recipe: Recipe, prepared: Prepared) -> Manifest:
    """What a run starts from."""
    import torch

    decisions = prepared.decisions
    placement = decisions.placement
    data = recipe.data
    form = (data.prompt, data.completion, data.messages, data.tools, data.chat, data.template_kwargs,
            data.answers)
    template = "\n".join(str(part) for part in (*form, getattr(prepared.tokenizer, "chat_template", None)))
    return Manifest(
        format=RUN_FORMAT, run_id=uuid.uuid4().hex, started=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        seed=recipe.train.seed, quantization=placement.quantization,
        base=BaseFacts(name=recipe.model.base, revision=recipe.model.revision,
                       files=fingerprint(prepared.base)),
        data=DataFacts(source=recipe.data.source_name[:4096], content=prepared.content_hash,
                       files=prepared.files[:_MOST_FILES],
                       validation_files=prepared.validation_files[:_MOST_FILES],
                       counts=RowCounts(**prepared.data.counts),
                       template=hashlib.sha256(template.encode()).hexdigest()),
        engine=placement.engine, engine_reason=placement.reason, device=placement.device,
        dtype=placement.dtype_name, matmul=placement.matmul, spread=placement.spread,
        activation_budget_bytes=float(decisions.activation_budget_bytes),
        trainable_parameters=decisions.counts.trainable, all_parameters=decisions.counts.all,
        threads=torch.get_num_threads(), machine=describe_machine(), versions=library_versions())


def check_same(then: Manifest, now: Manifest, run: str) -> list[str]:
    """Refuse to resume when base or data changed; returns what else differs and only matters to the last bit.

    Raises RecipeError saying what changed.
    """
    changed, files = [], {**then.base.files, **now.base.files}
    if names := sorted(name for name in files if then.base.files.get(name) != now.base.files.get(name)):
        changed.append(f"the base's files ({', '.join(names)})")
    if then.data.content != now.data.content:
        changed.append(f"the rows of {now.data.source}")
    if then.data.template != now.data.template:
        changed.append("the template")
    if changed:
        raise RecipeError(f"{run}: changed since the run began: {', '.join(changed)}",
                          "Put them back, or start another run with --run.")
    before, after = ({**each.versions, "engine": each.engine, "device": each.device, "dtype": each.dtype,
                      "spread over GPUs": each.spread, "threads": each.threads} for each in (then, now))
    return [f"{name} {before.get(name)} -> {value}" for name, value in after.items()
            if before.get(name) != value]
