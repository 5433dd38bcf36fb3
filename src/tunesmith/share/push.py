"""An adapter on its way to the Hub: its files are put together, checked, and published in one commit."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith import embedded
from tunesmith.errors import IntegrityError, NetworkError, UsageError
from tunesmith.hub import call
from tunesmith.hub.client import Tell, TryAgain, offline
from tunesmith.hub.download import git_sha1
from tunesmith.hub.failures import reason, redacted, status
from tunesmith.rundir import CARD_NAME, SEAL_NAME, canonical_seal
from tunesmith.rundir.ordinary import read_ordinary
from tunesmith.share.adapter import json_bytes
from tunesmith.share.card import Card, render_card
from tunesmith.share.hub_base import license_of
from tunesmith.share.metadata import METADATA_NAME
from tunesmith.share.scan import refuse_private

#: What of a base's tokenizer goes along.
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
              "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")


@dataclass(frozen=True)
class Published:
    """Where it is now. changed: False where all was there already."""

    repo: str
    commit: str
    url: str
    private: bool
    changed: bool


def assemble(adapter: Path, base_folder: Path | None, card: Card) -> dict[str, bytes]:
    """What is published, by name, and nothing else that is in the folder.

    PEFT's two files, tokenizer and generation settings, our metadata, the card, their hashes. adapter: its
    folder. base_folder: where the base's tokenizer is. Raises IntegrityError where a file holds what should
    not leave.
    """
    from tunesmith.model.lora import CONFIG_NAME, WEIGHTS_NAME, read_adapter_config

    config = read_adapter_config(adapter)
    config |= {"base_model_name_or_path": card.metadata["base"], "revision": card.metadata.get("revision")}
    files = {CONFIG_NAME: json_bytes(config, sort_keys=True), WEIGHTS_NAME: _content(adapter / WEIGHTS_NAME),
             METADATA_NAME: json_bytes(card.metadata)}
    for name in ("generation_config.json", *_TOKENIZER):
        for folder in (adapter, base_folder):
            if folder is not None and os.path.lexists(folder / name):
                files[name] = _content(folder / name)
                break
    if "tokenizer_config.json" in files:
        files["tokenizer_config.json"] = _without_places(files["tokenizer_config.json"])
    # The card is left out: whoever edits it on the Hub has not damaged the adapter.
    files[SEAL_NAME] = canonical_seal({name: hashlib.sha256(content).hexdigest()
                                       for name, content in files.items()})
    files[CARD_NAME] = render_card(replace(card, files=frozenset(files))).encode()
    refuse_private(files)
    return files


def _content(path: Path) -> bytes:
    """A file's content, never what a link leads to. Raises IntegrityError for one with hard links.

    The files that came with this program are its own, with however many names an installer has given them.
    """
    if os.lstat(path).st_nlink > 1 and path.parent.resolve() != embedded.path_of(embedded.BASE_NAME):
        raise IntegrityError(
            f"{path}: has a second name elsewhere (a hard link), so it may be a file of another folder",
            "Copy the file itself into its folder, if it may be published.")
    return read_ordinary(path)


def _without_places(tokenizer_config: bytes) -> bytes:
    """transformers notes there where the tokenizer was read from."""
    try:
        settings = json.loads(tokenizer_config)
        kept = {key: value for key, value in settings.items()
                if key not in ("name_or_path", "_name_or_path", "local_files_only")}
    except (ValueError, AttributeError):
        return tokenizer_config
    return tokenizer_config if kept == settings else json_bytes(kept)


@dataclass(frozen=True)
class Place:
    """Where a push would go. private: None for a repository that does not exist yet. license: its card's."""

    repo: str
    private: bool | None
    license: str | None = None

    def private_after(self, wanted: bool | None) -> bool:
        """Who sees it after a push that asks for `wanted`: True for its owner alone."""
        return self.private is not False and wanted is not False


def look(repo: str, *, private: bool | None, tell: Tell) -> Place:
    """The repository that is meant, with its owner, and who sees it. Nothing is changed.

    Raises NetworkError, or UsageError where it is public and was asked to be private.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if offline():
        raise NetworkError(f"{repo}: HF_HUB_OFFLINE is set, so the Hub is not asked",
                           "Unset it, then push again.")
    api = HfApi()
    if "/" not in repo:
        repo = f"{call('your account', api.whoami, tell)['name']}/{repo}"

    def ask() -> Any:
        try:
            return api.repo_info(repo)
        except RepositoryNotFoundError as error:
            if status(error) == 404:
                return None
            raise  # 401: it may be there, but not for this token

    info = call(repo, ask, tell)
    if private and info is not None and not info.private:
        raise UsageError(f"{repo} is public, and was asked to be private; nothing was pushed to it",
                         "Say --public (in a recipe share.private: false), or choose another name.")
    return Place(repo, None, None) if info is None else Place(repo, bool(info.private), license_of(info))


def publish(files: dict[str, bytes], place: Place, *, private: bool | None, message: str, keep_card: bool,
            tell: Tell) -> Published:
    """One commit that holds all files; nothing where the repository has them already.

    private: None leaves a repository that exists as it is, and makes a new one private. A new one is private
    until its files are there. keep_card: a card that someone changed since is no reason for a commit. Every
    attempt begins with a look at what is there, so an answer that was lost on its way does no harm. Raises
    NetworkError, or UsageError where the Hub refuses the card or the repository became public meanwhile.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, repo = HfApi(), place.repo
    _validate(files[CARD_NAME], tell)
    if place.private is None:
        call(repo, lambda: api.create_repo(repo, private=True, exist_ok=True), tell)
    before = look(repo, private=True if place.private is None else private, tell=tell)
    if before.private is False:
        tell(f"{repo} is public: whoever looks sees what is pushed.")
    elif private is False and place.private:
        tell(f"{repo} is private until now: all of it, with its earlier commits, is shown to everyone.")
    wanted = {name: content for name, content in files.items() if not (keep_card and name == CARD_NAME)}

    def commit() -> tuple[str, bool]:
        head = str(api.repo_info(repo).sha)
        if _same(api, repo, head, wanted):
            return head, False
        if place.private is not None and not _same(api, repo, head, {CARD_NAME: files[CARD_NAME]}):
            tell(f"{repo}: the card there is replaced; it stays in the history.")
        operations = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        try:
            made = api.create_commit(repo, operations, commit_message=message, parent_commit=head)
        # a refused card is a ValueError, a lost upload a RuntimeError
        except (HfHubHTTPError, ValueError, RuntimeError) as error:
            if status(error) == 412:
                raise TryAgain("someone else committed at the same time") from None
            # it is there, so: an upload that something on the way swallowed
            if status(error) in (400, 404, 422):
                raise TryAgain(f"the Hub refused the commit: {reason(error)}") from None
            raise
        return str(made.oid), True

    oid, changed = call(repo, commit, tell)
    if not _same(api, repo, oid, wanted):
        raise NetworkError(f"{repo}: what the Hub lists at {oid[:12]} is not what was sent",
                           "Run the same command again.")
    if private is False and before.private is not False:
        call(repo, lambda: api.update_repo_settings(repo, private=False), tell)
    return Published(repo, oid, f"{api.endpoint}/{repo}", before.private_after(private), changed)


def _validate(card: bytes, tell: Tell) -> None:
    """Raise UsageError where the Hub does not take the card, before anything is made there."""
    from huggingface_hub import ModelCard

    def ask() -> None:
        try:
            ModelCard(card.decode()).validate()
        except ValueError as error:
            if status(error) == 400:
                raise UsageError(f"the Hub does not take this card: {redacted(_complaint(str(error)))}",
                                 "push --dry-run shows it; --license names another licence.") from None
            raise

    call("the card", ask, tell)


def _complaint(answer: str) -> str:
    """What the Hub says against a card, in a line."""
    try:
        return "; ".join(str(error["message"]) for error in json.loads(answer)["errors"])
    except (ValueError, KeyError, TypeError):
        return answer.strip().splitlines()[-1] if answer.strip() else "it does not say why"


def _same(api: Any, repo: str, revision: str, files: dict[str, bytes]) -> bool:
    """Whether a commit has all the files with the same content, by the Hub's own hashes."""
    listed = {entry.path: entry for entry in api.list_repo_tree(repo, revision=revision, recursive=True)}
    for name, content in files.items():
        entry = listed.get(name)
        if entry is None or not hasattr(entry, "blob_id"):
            return False
        lfs = getattr(entry, "lfs", None)
        if lfs is not None:
            if lfs.sha256 != hashlib.sha256(content).hexdigest():
                return False
        elif entry.blob_id != git_sha1(content):
            return False
    return True
