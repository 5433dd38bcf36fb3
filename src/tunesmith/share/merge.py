"""Merge an adapter into its base: a checkpoint of the base's layout, kept only if it still agrees.

Shapes: O outputs, I inputs, R rows of a weight that are worked on at once.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from tunesmith.data import TokenRow
from tunesmith.errors import DiskError, IntegrityError
from tunesmith.hub import parse_hub_id
from tunesmith.model.engine import Engine
from tunesmith.model.files import BaseFiles, fingerprint
from tunesmith.model.lora import CONFIG_NAME, WEIGHTS_NAME
from tunesmith.model.quantization import WAYS
from tunesmith.paths import expanded
from tunesmith.rundir import CARD_NAME, put_in_place, require_free, seal, staging_folder, sync_folder
from tunesmith.rundir.files import disk_errors, write_synced
from tunesmith.rundir.ordinary import read_ordinary
from tunesmith.rundir.seal import SEAL_NAME, sha256_file
from tunesmith.share.adapter import json_bytes
from tunesmith.share.agreement import Agreement, Reference, better, compare, lost, reference
from tunesmith.share.card import prompts
from tunesmith.share.folding import Change, Changes, Skeleton, read_changes, read_skeleton
from tunesmith.share.markdown import plain
from tunesmith.share.metadata import METADATA_NAME, read_metadata
from tunesmith.share.shards import FLOATS, INDEX_NAME, Stored, read_header, shards_of, write_shard

#: What was measured, beside the merged weights.
MERGE_NAME = "merge.json"
#: Files of a base that a merged checkpoint needs beside its weights, or that its licence asks to be passed
#: on.
_CARRIED = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
            "*.tiktoken", "chat_template*", "LICENSE*", "NOTICE*", "USE_POLICY*")
#: What of an adapter's metadata holds for the merged model too.
_CARRIED_METADATA = ("base", "revision", "prompt", "messages", "template_kwargs", "special_tokens", "trained")
#: Values of a weight that are worked on at once in fp32: 8 MiB.
_VALUES_AT_ONCE = 1 << 21
#: Room for the small files, and for what a file system keeps for itself.
_SPARE_BYTES = 32 << 20


@dataclass(frozen=True)
class MergedWeights:
    """What was written. files: their names. changed: how many tensors are not the base's. untied: whether the
    head became a tensor of its own.
    """

    files: list[str]
    bytes: int
    changed: int
    untied: bool


def merge_weights(base: BaseFiles, adapter: Path, out: Path, *, dequantised: str | None,
                  progress: Callable[[int, int], None]) -> MergedWeights:
    """Write W + scale * B A, computed in fp32 and rounded once to each tensor's dtype, into the folder `out`.

    dequantised: a way of fewer bits to start from the weights as a run in it saw them; None to start from the
    files' own. progress: called with (bytes written, bytes in all). Raises IntegrityError for an adapter or a
    base that cannot be merged and where a merged weight overflows its dtype, RecipeError for an architecture
    that transformers does not know, DiskError. What was written until then stays.
    """
    plan = _Plan.make(base, adapter, dequantised)
    _require_space(out, plan.total_bytes)
    done = 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        progress(done, plan.total_bytes)

    sizes = {}
    with disk_errors(out):
        for path, (tensors, metadata) in plan.shards.items():
            sizes[path.name] = write_shard(out / path.name, tensors, metadata, content=plan.content,
                                           wrote=wrote)
        for name, content in _small_files(base, adapter, plan).items():
            write_synced(out / name, content)
            sizes[name] = len(content)
        sync_folder(out)
    changed = len(plan.changes) + len(plan.requantised - set(plan.changes))
    return MergedWeights(sorted(sizes), sum(sizes.values()), changed, plan.added is not None)


@dataclass(frozen=True)
class _Plan:
    """What is written, by the names of the files' tensors, which may lack the body's prefix.

    shards: each file's tensors in their order, and its metadata. requantised: tensors to be quantised and
    turned back; columns: those of them that lie as [I, O]. added: the shard of each tensor that the base does
    not have; None when nothing is untied.
    """

    shards: dict[Path, tuple[dict[str, Stored], dict[str, str]]]
    changes: dict[str, Change]
    requantised: frozenset[str]
    columns: frozenset[str]
    added: dict[str, Path] | None
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
        kinds = {names.at(f"{module}.weight"): skeleton.kinds[module]
                 for module in sorted(skeleton.quantised)}
        kinds = {name: kind for name, kind in kinds.items()
                 if name not in changes or changes[name].replacement is None}
        columns = frozenset(name for name, kind in kinds.items() if kind == "conv1d")
        return cls(shards, changes, frozenset(kinds), columns, added, dequantised)

    @property
    def total_bytes(self) -> int:
        """Of all tensors."""
        return sum(each.stop - each.start for tensors, _ in self.shards.values() for each in tensors.values())

    def content(self, name: str) -> Iterator[bytes | memoryview]:
        """The new bytes of a tensor."""
        stored = next(tensors[name] for tensors, _ in self.shards.values() if name in tensors)
        if name not in self.changes and name not in self.requantised:
            return stored.chunks()
        return self._merged(name, stored)

    def _merged(self, name: str, stored: Stored) -> Iterator[bytes | memoryview]:
        change, dtype = self.changes.get(name, Change()), FLOATS[stored.dtype]
        start = stored.read() if change.replacement is None else change.replacement
        if name in self.requantised:
            start = _dequantised(start, str(self.dequantised), columns=name in self.columns)
        start = start if start.ndim > 1 else start.reshape(1, -1)
        wide = torch.promote_types(dtype, torch.float32)
        step = max(1, _VALUES_AT_ONCE // max(1, start[0].numel()))
        for first in range(0, len(start), step):
            part = start[first:first + step].to(wide, copy=True)
            if change.left is not None and change.right is not None:
                part.addmm_(change.left[first:first + step].to(wide), change.right.to(wide),
                            alpha=change.scale)
            merged = part.to(dtype)
            if not torch.isfinite(merged).all():
                whole = torch.isfinite(start[first:first + step]).all()
                kind = f"overflows {stored.dtype}, whose largest value is {torch.finfo(dtype).max:.5g}"
                raise IntegrityError(f"{name}: the merged weight "
                                     + (kind if whole else "is NaN or infinite: the base's is"),
                                     "Use the adapter unmerged, or merge into a copy of the base in bf16 or "
                                     "fp32.")
            yield merged.contiguous().view(-1).view(torch.uint8).numpy().data


def _dequantised(weight: torch.Tensor, quantization: str, *, columns: bool) -> torch.Tensor:
    """A weight as a quantised run sees it, in fp32. columns: it lies as [I, O], quantised as [O, I]."""
    from tunesmith.model.native.weights import build_weight

    weight_OI = (weight.T if columns else weight).contiguous()
    dense_OI = build_weight(weight_OI, quantization, torch.float32).dense()
    return dense_OI.T if columns else dense_OI


class _Names:
    """Under which name a parameter lies in the base's files."""

    def __init__(self, base: BaseFiles, skeleton: Skeleton, stored: dict[str, Stored]) -> None:
        self.base, self.skeleton, self.stored = base, skeleton, stored

    def find(self, parameter: str) -> str | None:
        """The name, with the body's prefix or without; None when it is in no file."""
        prefix = self.skeleton.prefix
        names = (parameter, parameter.removeprefix(prefix), prefix + parameter)
        return next((name for name in names if name in self.stored), None)

    def at(self, parameter: str) -> str:
        """The name. Raises IntegrityError for a tensor that is missing, of another shape, or no floats."""
        name, wanted = self.find(parameter), self.skeleton.shapes[parameter]
        if name is None:
            raise IntegrityError(
                f"{self.base.name}: no tensor of its files is called {parameter}, so nothing can be merged "
                "into it",
                "Its files may be incomplete, or be laid out in another way than its layers: then use the "
                "adapter unmerged.")
        tensor = self.stored[name]
        if tensor.shape != wanted:
            raise IntegrityError(
                f"{self.base.name}: {name} is {list(tensor.shape)}, its config.json calls for {list(wanted)}",
                "Copy or download the base again.")
        if tensor.dtype not in FLOATS:
            raise IntegrityError(
                f"{self.base.name}: {name} is kept as {tensor.dtype}, into which nothing can be merged",
                f"Merge into a copy of the base in one of {', '.join(FLOATS)}.")
        return name

    def untied(self, absent: str, present: str) -> str:
        """How a parameter is to be called that shared another one's tensor."""
        left_out = self.find(present) == present.removeprefix(self.skeleton.prefix) != present
        return absent.removeprefix(self.skeleton.prefix) if left_out else absent


def _untie(wanted: Changes, skeleton: Skeleton, names: _Names,
           shards: dict[Path, tuple[dict[str, Stored], dict[str, str]]]) -> dict[str, Path] | None:
    """Where the adapter changes one of two parameters that share a tensor, each gets its own.

    Returns the new names and their shards; None when nothing that is tied changes.
    """
    if not any(parameter in wanted.changes for pair in skeleton.tied.items() for parameter in pair):
        return None
    added = {}
    for pair in skeleton.tied.items():
        present = [parameter for parameter in pair if names.find(parameter)]
        if len(present) != 1:
            continue
        absent = pair[1] if present[0] == pair[0] else pair[0]
        old, new = names.at(present[0]), names.untied(absent, present[0])
        path = names.stored[old].path
        tensors, metadata = shards[path]
        beside: dict[str, Stored] = {}
        for name, each in tensors.items():
            beside[name] = each
            if name == old:  # of the same dtype, so what follows stays aligned
                beside[new] = each
        shards[path], names.stored[new], added[new] = (beside, metadata), names.stored[old], path
    return added


def _check_own_base(adapter: Path, wanted: Changes, names: _Names) -> None:
    """Raise IntegrityError when the adapter brings a base tensor along that is not this base's."""
    for parameter, own in wanted.own_base.items():
        there = names.stored[names.at(parameter)].read() if parameter in names.skeleton.shapes else None
        if there is None or there.shape != own.shape or not torch.equal(there.to(own.dtype), own):
            raise IntegrityError(
                f"{adapter}: the adapter brings its base's {parameter} along, and it is not this base's",
                "Merge it into the base that it was trained on.")


def _require_space(folder: Path, needed_bytes: int) -> None:
    """Raise DiskError when the disk of `folder`, which need not exist yet, has less free."""
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + _SPARE_BYTES:
        raise DiskError(f"{folder}: merging needs {(needed_bytes + _SPARE_BYTES) / 1e6:,.0f} MB of disk, "
                        f"{free_bytes / 1e6:,.0f} MB are free",
                        "Free some space, or choose a folder on another disk.")


def _small_files(base: BaseFiles, adapter: Path, plan: _Plan) -> dict[str, bytes]:
    """Config, index, generation settings, tokenizer and licence."""
    paths = {path.name: path for pattern in _CARRIED for path in base.folder.glob(pattern) if path.is_file()}
    paths["config.json"] = base.folder / "config.json"
    for folder in (base.folder, adapter):
        if (folder / "generation_config.json").exists():
            paths["generation_config.json"] = folder / "generation_config.json"
    if any(path.name != "model.safetensors" for path in plan.shards) and (base.folder / INDEX_NAME).exists():
        paths[INDEX_NAME] = base.folder / INDEX_NAME
    files = {name: read_ordinary(path) for name, path in sorted(paths.items())}
    if plan.added is not None:
        config = json.loads(files["config.json"])
        for part in [config, *(part for part in config.values() if isinstance(part, dict)
                               and "tie_word_embeddings" in part)]:
            part["tie_word_embeddings"] = False
        files["config.json"] = json_bytes(config)
    if plan.added and INDEX_NAME in files:
        index = json.loads(files[INDEX_NAME])
        index["weight_map"] |= {name: path.name for name, path in plan.added.items()}
        index.setdefault("metadata", {})["total_size"] = plan.total_bytes
        files[INDEX_NAME] = json_bytes(index)
    return files


def merge_adapter(base: BaseFiles, adapter: Path, out: Path, *, quantization: str,
                  load_live: Callable[[], Engine], load_merged: Callable[[Path], Engine],
                  rows: Sequence[TokenRow], prompts: Sequence[list[int]], max_new_tokens: int = 32,
                  on_stage: Callable[[str], None] = lambda stage: None,
                  progress: Callable[[int, int], None] = lambda done, whole: None) -> dict[str, Any]:
    """Merge, measure each way of merging against the live adapter, and keep the nearer one as `out`, sealed.

    quantization: of the run that trained the adapter. An adapter of a quantised base is merged in two ways,
    onto the files' weights and onto the weights that the run saw. load_live: the base in that quantisation
    with the adapter. load_merged: a merged folder, as it is. Only one model is in memory at a time. rows,
    prompts: what is compared on, see `reference`. Returns out, taken, candidates and bare (figures by name),
    files and bytes. Raises UsageError for an `out` that holds something, IntegrityError for an adapter that
    cannot be merged or that every merge has lost, DiskError, EnvironmentFault (another process makes `out`),
    Interrupted, and what the callables raise; nothing new is on the disk then.
    """
    ways: dict[str, str | None] = {_base_bits(base): None}
    if WAYS[quantization].quantised:
        ways[f"dequantised {quantization} base"] = quantization
    out = expanded(out).resolve()
    require_free(out)
    _require_space(out, len(ways) * _Plan.make(base, adapter, None).total_bytes)
    with staging_folder(out) as folder:
        on_stage("asking the live adapter")
        live = load_live()
        live_reference = reference(live, rows, prompts, max_new_tokens)
        del live
        _free()
        agreements: dict[str, Agreement] = {}
        written: dict[str, MergedWeights] = {}
        for number, (name, dequantised) in enumerate(ways.items()):
            candidate = folder / str(number)
            candidate.mkdir()
            on_stage(f"merging onto the {name}")
            written[name] = merge_weights(base, adapter, candidate, dequantised=dequantised,
                                          progress=progress)
            on_stage(f"asking the merge onto the {name}")
            merged = load_merged(candidate)
            agreements[name] = compare(merged, live_reference)
            del merged
            _free()
        taken = better(list(agreements.items()))
        if reason := lost(agreements[taken], live_reference.bare):
            raise IntegrityError(f"the merge has lost the adapter: {reason}\n  "
                                 + "\n  ".join(_lines(live_reference, agreements)),
                                 "Use the adapter unmerged, or merge into a copy of the base in a finer "
                                 "dtype (fp32).")
        on_stage("sealing")
        chosen = folder / str(list(ways).index(taken))
        result = {"taken": taken, "candidates": {name: each.figures() for name, each in agreements.items()},
                  "bare": live_reference.bare.figures(), "untied": written[taken].untied}
        _finish(chosen, base, adapter, {"quantization": quantization, **result},
                _lines(live_reference, agreements))
        put_in_place(chosen, out)
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    return {"out": str(out), **result, "files": list(sizes), "bytes": sum(sizes.values())}


def _base_bits(base: BaseFiles) -> str:
    """What the base's own weights are called: by the dtype that most of its bytes are in."""
    share: dict[str, int] = {}
    for path in shards_of(base.folder, base.weights):
        for stored in read_header(path)[0].values():
            share[stored.dtype] = share.get(stored.dtype, 0) + stored.stop - stored.start
    most = max(share, key=lambda dtype: share[dtype], default="F32")
    return f"{8 * FLOATS[most].itemsize if most in FLOATS else most}-bit base"


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _lines(live_reference: Reference, agreements: dict[str, Agreement]) -> list[str]:
    return [f"live adapter: loss {live_reference.loss:.4f}", f"bare base: {live_reference.bare.line()}",
            *(f"merged onto the {name}: {each.line()}" for name, each in agreements.items())]


def _finish(folder: Path, base: BaseFiles, adapter: Path, result: dict[str, Any], lines: list[str]) -> None:
    """The figures, how prompts are written, a card and the seal."""
    metadata = read_metadata(adapter)
    report = {"base": base.name, "revision": base.revision, "base_files": fingerprint(base),
              "adapter_files": {name: sha256_file(adapter / name) for name in (CONFIG_NAME, WEIGHTS_NAME)},
              **result}
    front_matter = {"library_name": "transformers", "tags": ["lora", "merged", "tunesmith"]}
    if not Path(base.name).is_dir() and parse_hub_id(base.name) is not None:
        front_matter["base_model"] = base.name
    card = ["---", yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True) + "---", "",
            f"# {plain(base.name)} with a LoRA adapter merged into it", "",
            f"Merged onto the {plain(result['taken'])}. Measured on {result['bare']['positions']} positions "
            f"of held-out rows and {result['bare']['prompts']} prompts, against the adapter as it was "
            f"trained (on the base in {plain(result['quantization'])}):",
            "", *(f"- {plain(line)}" for line in lines),
            "", f"All figures are in {MERGE_NAME}.", "", *prompts(metadata), "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            'model = AutoModelForCausalLM.from_pretrained("THIS-FOLDER", dtype="auto")',
            'tokenizer = AutoTokenizer.from_pretrained("THIS-FOLDER")', "```", ""]
    with disk_errors(folder):
        write_synced(folder / MERGE_NAME, json_bytes(report))
        if metadata:  # how prompts are written matters as much as before
            carried = {name: metadata[name] for name in _CARRIED_METADATA if name in metadata}
            write_synced(folder / METADATA_NAME, json_bytes(carried))
        write_synced(folder / CARD_NAME, "\n".join(card).encode())
    seal(folder, [path.name for path in folder.iterdir() if path.name != SEAL_NAME])
