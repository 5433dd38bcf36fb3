"""Open a run or an adapter folder: find its base, check its seal, load both."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import EnvironmentFault, IntegrityError, Kind, OutOfMemory, TunesmithError, UsageError
from tunesmith.hub import download, is_hub_id, parse_hub_id
from tunesmith.hub.download import list_files, repo_of
from tunesmith.hub.failures import explained
from tunesmith.model.quantization import AS_THEY_ARE, WAYS, choices
from tunesmith.paths import expanded, require_utf8
from tunesmith.rundir import SEAL_NAME, check_seal, read_seal, require_folder
from tunesmith.rundir.manifest import of_this_format, require_format
from tunesmith.rundir.ordinary import require_ordinary_folder
from tunesmith.rundir.seal import sha256_file
from tunesmith.rundir.status import read_status
from tunesmith.verbs.show import Show

if TYPE_CHECKING:
    from tunesmith.model.files import BaseFiles

#: What of a repository makes an adapter: no pickle, no code.
ADAPTER_PATTERNS = ("adapter_config.json", "adapter_model.safetensors", "tunesmith.json", SEAL_NAME,
                    "README.md", "generation_config.json", "tokenizer*", "special_tokens_map.json",
                    "chat_template.jinja", "vocab.*", "merges.txt", "added_tokens.json")
#: What to do where a base is not found.
ANOTHER_PLACE = "Another place of this base: --base FOLDER or --base ORG/NAME"
#: What only an adapter's folder has: without any of these it is something else.
_ADAPTER_SIGNS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter folder, and the run it stands in if it does."""

    folder: Path
    run: Path | None

    @property
    def recipe(self) -> Path | None:
        """The recipe of its run."""
        return self.run / "recipe.yaml" if self.run and (self.run / "recipe.yaml").exists() else None


def find_adapter(target: str, show: Show) -> AdapterFiles:
    """The adapter behind a run folder, an adapter folder or a Hub id (`ORG/NAME` or `ORG/NAME@REVISION`).

    Its hashes are checked if it has any, but for the card's. Raises UsageError when there is no such folder,
    IntegrityError when it has no adapter or a damaged one, NetworkError when the Hub does not give it.
    """
    if is_hub_id(target):
        return AdapterFiles(download_adapter(target, show), None)
    path = expanded(target).resolve()
    require_utf8(path, target)
    hint = ("Give a run folder (such as runs/NAME), an adapter folder, "
            "or ORG/NAME or ORG/NAME@REVISION on the Hub.")
    if "/" in target and parse_hub_id(target):
        hint += f" {path.parent.name}/ is a folder here, so the Hub was not asked."
    require_folder(path, target, hint)
    if (path / "recipe.yaml").exists() and not (path / "adapter_config.json").exists():
        require_format(path)
        adapter = AdapterFiles(path / "adapter", path)
        if not adapter.folder.is_dir():
            run = os.path.relpath(path)
            raise IntegrityError(f"{target}: this run has no adapter yet: it {read_status(path).sentence()}",
                                 "Train it to its end first: "
                                 + shlex.join(["tunesmith", "train", os.path.join(run, "recipe.yaml"),
                                               "--run", run]))
    else:
        adapter = AdapterFiles(path, run_of(path))
    require_ordinary_folder(adapter.folder)
    sealed = (adapter.folder / SEAL_NAME).exists()
    damaged = check_seal(adapter.folder, cards=False) if sealed else []
    if damaged:
        raise IntegrityError("\n".join(f"{file}: {'damaged' if file.exists() else 'missing'}"
                                       for file in damaged),
                             "The newest checkpoint of its run may still be whole; tunesmith verify says."
                             if adapter.run else "Copy or pull it again.")
    if not any((adapter.folder / name).exists() for name in _ADAPTER_SIGNS):
        if (path / "config.json").exists():
            raise UsageError(f"{target}: a whole model, not an adapter",
                             "transformers loads it as it is, tunesmith export takes it, "
                             "a recipe can name it as model.base.")
        raise UsageError(f"{target}: neither a run nor an adapter: it has no adapter_config.json",
                         "Give a run folder (such as runs/NAME) or an adapter folder.")
    return adapter


def run_of(adapter: Path) -> Path | None:
    """The run that an adapter's folder is part of: it is called `adapter`, and the run's seal knows it.

    A recipe beside a folder is not enough: `init` writes recipes anywhere. The seal of a run that is not
    finished names no adapter yet. Of a run folder of another format the adapter alone is read.
    """
    run = adapter.parent
    if adapter.name != "adapter" or not of_this_format(run):
        return None
    try:
        hashes = read_seal(run)
    except IntegrityError:
        return None
    if not {"recipe.yaml", "manifest.json"} <= set(hashes):
        return None
    adapter_hashes = {name: digest for name, digest in hashes.items() if name.startswith("adapter/adapter_")}
    return run if all((run / name).is_file() and sha256_file(run / name) == digest
                      for name, digest in adapter_hashes.items()) else None


def require_choices(*, quantization: str | None = None, device: str = "auto") -> None:
    """Raise UsageError for a word that is none of those a command line knows."""
    if quantization is not None and quantization not in WAYS:
        raise UsageError(f"--quantization is {quantization}: {choices()}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UsageError(f"--device is {device}: auto, cpu, cuda or cuda:N")


def download_adapter(target: str, show: Show, *, named: bool = False) -> Path:
    """An adapter's files by Hub id, checked; where they are in the client's cache.

    named: the user said that it is a Hub id, so nobody thinks of a folder.
    Raises UsageError, NetworkError or IntegrityError.
    """
    from tunesmith.model.lora import CONFIG_NAME, WEIGHTS_NAME, read_adapter_config

    hub_id = parse_hub_id(target)
    if hub_id is None:
        raise UsageError(f"{target}: not a Hub id", "Write ORG/NAME, or ORG/NAME@REVISION.")
    show.stage(f"looking for {target} on the Hub")

    def explain(error: Exception, what: str) -> TunesmithError:
        failure = explained(error, what)
        if failure.kind is Kind.NO_SUCH_REPOSITORY:
            nowhere = "" if named else ", and no folder here has it"
            failure.reword(f"{target}: the Hub shows you no model of this name{nowhere}")
        return failure

    snapshot = download(hub_id.repo, hub_id.revision, ADAPTER_PATTERNS, show.note, explain=explain)
    if (snapshot.folder / SEAL_NAME).exists() and (damaged := check_seal(snapshot.folder)):
        raise IntegrityError(f"{target}: {damaged[0].name} is not what its own list of hashes says",
                             "Whoever published it has to push it again.")
    if not (snapshot.folder / WEIGHTS_NAME).exists():
        names = list_files(hub_id.repo, snapshot.commit, show.note)
        if pickles := [name for name in names if name.startswith("adapter_model.") and name != WEIGHTS_NAME]:
            raise IntegrityError(f"{target}: its weights are a pickle ({pickles[0]}), "
                                 "which is refused: it can run any code",
                                 "Ask for it in safetensors: current versions of peft save so.")
        if CONFIG_NAME not in names:
            raise IntegrityError(f"{target}: not an adapter: it has no {CONFIG_NAME}",
                                 "A whole model is no adapter; name it as model.base in a recipe.")
    read_adapter_config(snapshot.folder)
    show.note(f"{hub_id.repo} at {snapshot.commit[:12]}")
    return snapshot.folder


@contextmanager
def base_option(folder: Path, *, named: bool) -> Iterator[None]:
    """Where a base is not found, name what this command knows: its --base or the adapter, not a recipe.

    named: the user gave --base. Errors that are not of the base's name or place pass as they are.
    """
    try:
        yield
    except TunesmithError as error:
        if error.setting == "model.base":
            error.reword(setting="--base" if named else f"{folder}: the base that it names")
            if named and error.kind is Kind.NO_SUCH_REVISION:
                error.reword(hint="A revision cannot be named here: give ORG/NAME, "
                                  "whose main branch is taken.")
            elif not named and not isinstance(error, OutOfMemory | EnvironmentFault):
                # it names a recipe's model.revision
                advice = "" if error.kind is Kind.NO_SUCH_REVISION else error.hint
                error.reword(hint=f"{advice} {ANOTHER_PLACE}".strip())
        raise


def require_base(adapter: AdapterFiles, base: BaseFiles, show: Show, *, named: bool) -> None:
    """Raise IntegrityError where the adapter's metadata says that it was trained on other weights than these.

    named: the user named this base for it, so it is only told. An adapter of others' making has no metadata.
    """
    from tunesmith.model.files import fingerprint
    from tunesmith.share.metadata import read_metadata

    trained_on = read_metadata(adapter.folder).get("base_weights")
    if not isinstance(trained_on, dict) or trained_on == weight_hashes(fingerprint(base)):
        return
    problem = f"{adapter.folder}: trained on other weights than those of {base.name}"
    if not named:
        named_base = read_metadata(adapter.folder).get("base")
        raise IntegrityError(problem, f"It names the base {named_base}. Name another with --base.")
    show.note(problem + ".")


def weight_hashes(hashes: dict[str, str]) -> dict[str, str]:
    """Of a base's files, those that hold weights."""
    return {name: value for name, value in hashes.items() if name.endswith(".safetensors")}


def hub_name(base: str) -> str | None:
    """The Hub id behind a base's name: itself, or its cache folder's; None for any other folder."""
    folder = expanded(base)
    if folder.is_dir():
        return repo_of(folder.resolve())
    return base if parse_hub_id(base) else None


def adapter_base(adapter: AdapterFiles, *, base: str | None, quantization: str | None) -> dict[str, Any]:
    """Which base an adapter wants and how it is kept: what the user says, else what the adapter's files say.

    Returns base, revision, quantization, and messages (whether it was trained on chats).
    Raises IntegrityError when the files name no base.
    """
    from tunesmith.model.lora import read_adapter_config
    from tunesmith.share.metadata import read_metadata

    config, metadata = read_adapter_config(adapter.folder), read_metadata(adapter.folder)
    name = base or metadata.get("base") or config.get("base_model_name_or_path")
    if not name:
        raise IntegrityError(f"{adapter.folder}: names no base model", "Name it with --base.")
    kept = quantization or metadata.get("quantization", AS_THEY_ARE)
    if kept not in WAYS:
        raise IntegrityError(f"{adapter.folder}: names an unknown quantisation, {kept!r}",
                             "Name it with --quantization.")
    return {"base": name, "revision": None if base else metadata.get("revision", config.get("revision")),
            "quantization": kept, "messages": bool(metadata.get("messages")),
            "template_kwargs": metadata.get("template_kwargs", {}),
            "special_tokens": bool(metadata.get("special_tokens"))}
