"""Where a base's files are, checked before any heavy import: config, safetensors weights, no pickle."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tunesmith import embedded
from tunesmith.errors import IntegrityError, Kind, RecipeError, TunesmithError
from tunesmith.hub import download, parse_hub_id
from tunesmith.hub.client import Tell, quiet
from tunesmith.hub.download import commit_of, list_files
from tunesmith.hub.failures import explained
from tunesmith.model.base_config import QUANTISATION_TENSORS, own_quantization
from tunesmith.paths import expanded
from tunesmith.rundir.ordinary import read_json_object, require_ordinary

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_DOWNLOAD = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_NOT_NEEDED = ["adapter_config.json", "adapter_model*", "original/*", "onnx/*", "consolidated*", "*.gguf",
               "*/*"]
#: Of a base's files, besides its weights: what says what it is, how text becomes tokens, and where an answer
#: ends.
_HASHED_FILES = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
                 "added_tokens.json", "vocab.*", "merges.txt", "chat_template.*", "*.model", "*.tiktoken")
#: Above this size only the headers and samples of the weights are hashed for the manifest.
_HASH_WHOLE_BYTES = 2 << 30


@dataclass(frozen=True)
class BaseFiles:
    """A base on this disk. name: as the recipe gives it; folder: where its files are."""

    name: str
    revision: str | None
    folder: Path
    config: dict[str, Any]

    @property
    def pinned(self) -> str | None:
        """The commit that came from the Hub; for a folder, the revision that the recipe names."""
        return commit_of(self.folder) or self.revision

    @property
    def architecture(self) -> str:
        """The `model_type` of its config."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def positions(self) -> int | None:
        """How many tokens its positions reach; None where nothing bounds them (ALiBi)."""
        default = 1024 if self.architecture == "gpt2" else None
        limit = self.config.get("max_position_embeddings") or self.config.get("n_positions") or default
        return limit if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0 else None

    @property
    def weights(self) -> list[Path]:
        """Its safetensors files that transformers would take: one file, else an index's, else all; sorted."""
        alone, index = self.folder / "model.safetensors", self.folder / "model.safetensors.index.json"
        if alone.exists():
            return [alone]
        if index.exists():
            weight_map = read_json_object(index).get("weight_map")
            if (isinstance(weight_map, dict)
                    and all(_is_own_safetensors(self.folder, name) for name in weight_map.values())):
                return sorted({self.folder / name for name in weight_map.values()})
        return sorted(self.folder.glob("*.safetensors"))

    def weight_bytes(self) -> int:
        """How large its weights are on disk."""
        return sum(path.stat().st_size for path in self.weights)


def read_config(folder: Path) -> dict[str, Any]:
    """A base folder's config.json. Raises RecipeError when it is missing or broken."""
    path = folder / "config.json"
    try:
        config = read_json_object(path, infinite=True)
    except FileNotFoundError:
        if (folder / "adapter_config.json").exists():
            raise RecipeError(f"{folder} is an adapter, not a base",
                              "Name the base that it was trained on (base_model_name_or_path in its config).",
                              setting="model.base") from None
        raise RecipeError(f"{folder} has no config.json", "Is this the folder of a model?",
                          setting="model.base") from None
    except IntegrityError as error:
        raise RecipeError(error.message, error.hint or "Copy or download the base again.",
                          setting="model.base") from None
    except OSError as error:
        raise RecipeError(f"{path}: not readable: {error.strerror}") from None
    if not isinstance(config.get("model_type"), str):
        raise RecipeError(f"{path}: names no model_type, so this is not a transformers model")
    return config


def locate_config(base: str, revision: str | None, tell: Tell = quiet) -> tuple[str, dict[str, Any]]:
    """(name, config) of a base without its weights. Raises RecipeError, NetworkError or IntegrityError."""
    return base, read_config(_local_folder(base) or _download(base, revision, ["config.json"], tell))


def locate_base(base: str, revision: str | None, tell: Tell = quiet) -> BaseFiles:
    """The files of a base, downloaded from the Hub when it is no folder here. tell: told what is waited for.

    Raises RecipeError when there is no such base or it has no weights, IntegrityError when it only has
    pickled ones, NetworkError when the Hub does not answer.
    """
    folder = _local_folder(base) or _download(base, revision, _DOWNLOAD, tell)
    config = read_config(folder)
    files = BaseFiles(base, revision, folder, config)
    _require_own_files(files)
    if not files.weights:
        names = (list_files(base, commit_of(folder), tell) if commit_of(folder)
                 else [path.name for path in sorted(folder.iterdir())])
        pickles = [name for name in names if any(fnmatch(name, pattern) for pattern in _PICKLES)]
        if pickles:
            raise IntegrityError(f"{base} has its weights only as pickle ({pickles[0]}), which is refused: "
                                 "a pickle can run any code", "Use a copy of the model in safetensors.",
                                 setting="model.base")
        raise RecipeError(f"{base} has no weights (*.safetensors) in {folder}", setting="model.base")
    _check_headers(files)
    return files


def locate_tokenizer(base: str, revision: str | None, tell: Tell = quiet) -> Path:
    """The folder of a base's tokenizer, no weights. Raises RecipeError, NetworkError, IntegrityError."""
    patterns = [pattern for pattern in _DOWNLOAD if "safetensors" not in pattern]
    folder = _local_folder(base) or _download(base, revision, patterns, tell)
    _require_no_links(folder)
    return folder


def _local_folder(base: str) -> Path | None:
    inside = embedded.path_of(base)
    if inside is not None:
        return inside
    path = expanded(base)
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        raise RecipeError(f"{base} is a file, not the folder of a model", setting="model.base")
    if base.startswith((".", "/", "~", "embedded:")) or base.count("/") > 1 or not base.strip("/"):
        raise RecipeError(
            f"{base}: no such folder",
            f"Give a folder with config.json and safetensors, a Hub id, or {embedded.BASE_NAME}.",
            setting="model.base")
    return None


def _download(base: str, revision: str | None, patterns: list[str], tell: Tell) -> Path:
    hub_id = parse_hub_id(base)
    if hub_id is None or hub_id.revision is not None:
        raise RecipeError(f"{base}: neither a folder nor a Hub id", "A revision stands in model.revision.",
                          setting="model.base", kind=Kind.NO_SUCH_REVISION if hub_id else None)
    return download(base, revision, patterns, tell, ignore=_NOT_NEEDED, explain=explain_base).folder


def explain_base(error: Exception, what: str) -> TunesmithError:
    """What it means for the user that the Hub did not give a base."""
    failure = explained(error, what).reword(setting="model.base")
    if failure.kind is Kind.NO_SUCH_REPOSITORY:
        return RecipeError(f"{what}: neither a folder here nor a repository that the Hub shows you",
                           "Check the name; a private one needs `hf auth login`.", setting="model.base",
                           kind=failure.kind)
    if failure.kind is Kind.NO_SUCH_REVISION:
        return RecipeError(failure.problem, "Check model.revision.", setting="model.base", kind=failure.kind)
    if failure.kind in (Kind.OFFLINE, Kind.UNREACHABLE):
        failure.reword(hint="It is no folder here either: check the name and the network. "
                       f"{embedded.BASE_NAME} needs none.")
    return failure


def _require_own_files(base: BaseFiles) -> None:
    """Raise IntegrityError where the base's folder leads somewhere else, whatever would follow it there.

    Links out of the folder; an index that names other files than safetensors in the folder; a config that
    names the file of the weights; an adapter in the same folder, which transformers would put on the base by
    itself.
    """
    folder, hint = base.folder, "Copy or download the base again."
    _require_no_links(folder)
    if (folder / "adapter_config.json").exists():
        raise IntegrityError(
            f"{folder} also holds an adapter (adapter_config.json), so whether it is meant with or without "
            "that is not clear",
            "Move the adapter's files to another folder, or merge it first.", setting="model.base")
    named = base.config.get("transformers_weights")
    if named is not None and not _is_own_safetensors(folder, named):
        raise IntegrityError(f"{folder / 'config.json'}: transformers_weights is {named!r}, not a "
                             "safetensors file of this folder", hint)
    _check_generation_config(folder, base.config)
    for path in sorted(folder.glob("*.safetensors.index.json")):
        weight_map = read_json_object(path).get("weight_map")
        if not isinstance(weight_map, dict):
            raise IntegrityError(f"{path}: has no weight_map", hint)
        for tensor, file_name in weight_map.items():
            if not _is_own_safetensors(folder, file_name):
                raise IntegrityError(f"{path}: {tensor!r} is said to be in {file_name!r}, which is no "
                                     "safetensors file of this folder", hint)


def _check_generation_config(folder: Path, config: dict[str, Any]) -> None:
    """Raise IntegrityError where it, or the config, names impossible tokens: engines end answers there."""
    path = folder / "generation_config.json"
    generation_config = read_json_object(path) if path.exists() else {}
    for place, each in ((path, generation_config), (folder / "config.json", config)):
        for key in ("eos_token_id", "pad_token_id", "bos_token_id"):
            value = each.get(key)
            tokens = value if isinstance(value, list) else [] if value is None else [value]
            if not all(isinstance(token, int) and not isinstance(token, bool) and -1 <= token < 1 << 31
                       for token in tokens):
                raise IntegrityError(f"{place}: {key} is {str(value)[:60]}: a token, or a list of tokens",
                                     "Copy or download the base again.")


def _require_no_links(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in _DOWNLOAD) and not path.is_dir():
            require_ordinary(path)


def _is_own_safetensors(folder: Path, name: Any) -> bool:
    return (isinstance(name, str) and name.endswith(".safetensors") and "/" not in name and "\0" not in name
            and (folder / name).is_file())


def _check_headers(base: BaseFiles) -> None:
    """Every weight file begins with a safetensors header and is as long as that header says."""
    for path in base.weights:
        size = path.stat().st_size
        try:
            with open(path, "rb") as file:
                (header_bytes,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(header_bytes)) if header_bytes < min(size, 1 << 28) else None
            ends = [entry["data_offsets"][1] for name, entry in (header or {}).items()
                    if name != "__metadata__"]
            whole = header is not None and size == 8 + header_bytes + max(ends, default=0)
            scales = [name for name in header or {} if QUANTISATION_TENSORS.search(name)]
            codes = [name for name, entry in (header or {}).items() if name.endswith(".weight")
                     and _is_code(entry)]
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            whole = False
        if not whole or header is None:
            raise IntegrityError(f"{path}: not a whole safetensors file", "Download or copy the base again.")
        if scales and own_quantization(base.config) is None:
            raise IntegrityError(
                f"{path}: has {scales[0]}, as weights in few bits do, and config.json does not say how "
                "these are kept",
                "Take a copy of the base with its quantization_config, or the model that it was made from.")
        if codes and own_quantization(base.config) is None:
            raise IntegrityError(
                f"{path}: {codes[0]} is kept in {header[codes[0]]['dtype']}, and config.json does not say "
                "how that becomes a weight",
                "Take a copy of the base with its quantization_config, or the model that it was made from.")


def _is_code(entry: Any) -> bool:
    """Whether a tensor of a safetensors header holds no floating-point numbers of 16 bits or more."""
    return isinstance(entry, dict) and entry.get("dtype") not in ("F64", "F32", "F16", "BF16")


def small_files(base: BaseFiles) -> list[Path]:
    """What says what the base is, how text becomes tokens, and where an answer ends; sorted."""
    return [path for path in sorted(base.folder.iterdir())
            if path.is_file() and any(fnmatch(path.name, pattern) for pattern in _HASHED_FILES)]


def fingerprint(base: BaseFiles) -> dict[str, str]:
    """A hash of each file that makes the base what it is, for the manifest; large weights are sampled."""
    sampled = base.weight_bytes() > _HASH_WHOLE_BYTES
    hashes = {}
    for path in [*small_files(base), *base.weights]:
        if path.is_file():
            is_weight = path.suffix == ".safetensors"
            kind = "sha256-of-samples" if sampled and is_weight else "sha256"
            hashes[path.name] = f"{kind}:{_hash(path, sampled and is_weight)}"
    return hashes


def _hash(path: Path, sampled: bool) -> str:
    digest, size = hashlib.sha256(), path.stat().st_size
    digest.update(str(size).encode())
    block = 1 << 20
    starts = range(0, size, max(block, size // 64)) if sampled else range(0, size, block)
    with open(path, "rb") as file:
        for start in starts:
            file.seek(start)
            digest.update(file.read(block))
    return digest.hexdigest()


def generation_eos(base: BaseFiles) -> int | list[int] | None:
    """The end tokens that the base names: in its generation config, else in its config, as transformers
    looks.
    """
    path = base.folder / "generation_config.json"
    found = read_json_object(path).get("eos_token_id") if path.exists() else base.config.get("eos_token_id")
    tokens = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 1 << 31
               for token in tokens):
        raise IntegrityError(f"{base.name}: eos_token_id is {found!r}: a token, or a list of tokens",
                             "Copy or download the base again.", setting="model.base")
    return found


def stop_ids(base: BaseFiles, tokenizer: Any) -> tuple[int, ...]:
    """The tokens on which generation stops: those of the base and the tokenizer's end token."""
    eos = generation_eos(base)
    tokens = eos if isinstance(eos, list) else [] if eos is None else [eos]
    end = tokenizer.eos_token_id
    return tuple(tokens) if end is None or end in tokens else (end, *tokens)
