"""The base of an adapter as the Hub has it: its licence, and whether the adapter was trained on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunesmith import embedded
from tunesmith.errors import IntegrityError, Kind, TunesmithError, UsageError
from tunesmith.hub import call, parse_hub_id
from tunesmith.hub.client import Tell, offline
from tunesmith.paths import expanded
from tunesmith.rundir.seal import sha256_file


@dataclass(frozen=True)
class HubBase:
    """What the Hub says of a base. commit: its head, if known to be what was trained on; else None."""

    license: str | None = None
    commit: str | None = None


def license_of(info: Any) -> str | None:
    """The licence in a repository's card, as the Hub lists it."""
    license = (info.card_data or {}).get("license")
    return license if isinstance(license, str) else None


def find_hub_base(name: str, trained_on: str, revision: str | None, *, named: bool, tell: Tell,
                  stage: Callable[[str], None]) -> HubBase:
    """Look a base up on the Hub.

    name: its Hub id. trained_on, revision: what the adapter's metadata names: a folder, or a Hub id. named:
    the user gave the id, so it has to be there, to be a base, and, where that can be told, to have the same
    weights. Raises NetworkError where it is not there, UsageError where it is no base, IntegrityError where
    its weights are others.
    """
    if offline():
        return HubBase()
    try:
        info = _info(name, None, tell)
    except TunesmithError as error:
        if named and error.kind is Kind.NO_SUCH_REPOSITORY:
            raise error.reword(setting="--base") from None
        tell(f"The licence of the base is not known: {error.message}.")
        return HubBase()
    if not named or name == trained_on:
        return HubBase(license_of(info))
    hub_weights = _weights(info)
    files = {entry.rfilename for entry in info.siblings or []}
    if "config.json" not in files or "adapter_config.json" in files:
        reason = "it is an adapter" if "adapter_config.json" in files else "it has no config.json"
        raise UsageError(f"--base {name}: not a base: {reason}", "Name the model that it was trained on.")
    stage(f"comparing the base with {name}")
    trained_weights = _trained_weights(trained_on, revision, tell)
    if trained_weights is None:
        tell(f"Whether {name} is the base that it was trained on is not known: {trained_on} is not here.")
        return HubBase(license_of(info))
    if trained_weights != hub_weights:
        different = sorted(file for file in trained_weights | hub_weights
                           if trained_weights.get(file) != hub_weights.get(file))
        raise IntegrityError(
            f"--base {name}: other weights than those it was trained on, {trained_on} ({different[0]})",
            "Name the repository that has these, or publish them.")
    return HubBase(license_of(info), str(info.sha))


def _info(name: str, revision: str | None, tell: Tell) -> Any:
    from huggingface_hub import HfApi

    return call(name, lambda: HfApi().model_info(name, revision=revision, files_metadata=True), tell)


def _weights(info: Any) -> dict[str, str]:
    """SHA-256 of the files of weights that the Hub lists, by name; a small one's git hash."""
    return {entry.rfilename: entry.lfs.sha256 if entry.lfs else f"git {entry.blob_id}"
            for entry in info.siblings or []
            if entry.rfilename.endswith(".safetensors") and "/" not in entry.rfilename}


def _trained_weights(trained_on: str, revision: str | None, tell: Tell) -> dict[str, str] | None:
    """The same of what an adapter was trained on; None where that cannot be had."""
    folder = embedded.path_of(trained_on) or expanded(trained_on)
    if folder.is_dir():
        return {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    if parse_hub_id(trained_on) is None:
        return None
    try:
        return _weights(_info(trained_on, revision, tell))
    except TunesmithError:
        return None
