"""`tunesmith push`: an adapter to the Hub, in one commit, with a card written from its run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import IntegrityError, NetworkError, TunesmithError, UsageError
from tunesmith.hub import parse_hub_id
from tunesmith.hub.download import repo_of
from tunesmith.rundir import CARD_NAME, RunFolder
from tunesmith.verbs.adapters import AdapterFiles, adapter_base, find_adapter, hub_name
from tunesmith.verbs.show import Show, Silent

if TYPE_CHECKING:
    from tunesmith.share.card import Card


def push(adapter: str | os.PathLike[str], repo: str, *, private: bool | None = None,
         message: str | None = None, base: str | None = None, license: str | None = None,
         dry_run: bool = False, keep_card: bool = False, show: Show | None = None) -> dict[str, Any]:
    """Publish an adapter: PEFT's files, tokenizer, generation settings, a card. Nothing else.

    adapter: a run, an adapter folder, or the Hub id of one to copy. repo: ORG/NAME, or a name in your own
    account. private: None makes a new repository private and leaves another as it is. message: of the commit.
    base: the Hub id of the base, where the adapter was trained on a local folder of it. license: of the
    adapter; by default what its folder's card says, else the repository's, else the base's, where the Hub
    says it. dry_run: only show what would be published. keep_card: where nothing but the card differs, leave
    the one that is there. Returns repo, commit, url, private (dry_run: what it would be), exists (each None
    where it is not known), private_before, changed (False: all was there already), files (name to bytes),
    prompt (an example) and card. Raises UsageError, IntegrityError (a damaged adapter; a secret or a local
    path in a file), NetworkError.
    """
    from tunesmith.share.hub_base import find_hub_base
    from tunesmith.share.metadata import example_prompt
    from tunesmith.share.push import Place, assemble, look, publish

    show = show or Silent()
    hub_id = parse_hub_id(repo)
    if hub_id is None or hub_id.revision:
        raise UsageError(f"{repo}: not the name of a repository", "Write ORG/NAME.")
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise UsageError(f"--license is {license!r}: not an id of a licence",
                         "Such as apache-2.0, mit, or other.")
    adapter_files = find_adapter(os.fspath(adapter), show)
    if (adapter_files.folder / "state.json").exists():
        raise UsageError(f"{adapter_files.folder}: a checkpoint, which nothing has judged",
                         "Push its run, once that is finished.")
    base_spec = adapter_base(adapter_files, base=None, quantization=None)
    name = base or hub_name(base_spec["base"])
    if name is None or "/" not in name or parse_hub_id(name) is None:
        raise UsageError(f"{adapter_files.folder}: its base is {base_spec['base']}, "
                         "which nobody else can load", "Name the base's Hub id: --base ORG/NAME")
    try:
        place, reached = look(repo, private=private, tell=show.note), True
    except NetworkError as error:
        if not dry_run:
            raise
        show.note(f"Whether it exists, and who sees it, is not known: {error.message}.")
        place, reached = Place(repo, None), False
    hub_base = find_hub_base(name, base_spec["base"], base_spec["revision"], named=base is not None,
                             tell=show.note, stage=show.stage)
    if hub_base.commit:
        base_spec["revision"] = hub_base.commit
    card = _card(adapter_files, base_spec, name, place.repo,
                 license or _own_license(adapter_files.folder) or place.license or hub_base.license)
    files = assemble(adapter_files.folder, _tokenizer_folder(base_spec, show), card)
    preview = {"repo": place.repo, "exists": place.private is not None if reached else None,
               "private_before": place.private, "prompt": example_prompt(card.metadata),
               "files": {name: len(content) for name, content in sorted(files.items())},
               "card": files[CARD_NAME].decode()}
    if dry_run:
        after = place.private_after(private) if reached else None
        return {**preview, "commit": None, "url": None, "private": after, "changed": False}
    show.stage(f"pushing to {place.repo}")
    published = publish(files, place, private=private, message=message or f"LoRA adapter for {name}",
                        keep_card=keep_card, tell=show.note)
    return {**preview, "commit": published.commit, "url": published.url, "private": published.private,
            "changed": published.changed}


def _tokenizer_folder(base_spec: dict[str, Any], show: Show) -> Path | None:
    """Where the base's tokenizer is, if it can be had."""
    from tunesmith.model.files import locate_tokenizer

    try:
        return locate_tokenizer(base_spec["base"], base_spec["revision"], show.note)
    except TunesmithError as error:
        show.note(f"The base's tokenizer does not go along: {error.message}.")
        return None


def _card(adapter: AdapterFiles, base_spec: dict[str, Any], name: str, repo: str,
          license: str | None) -> Card:
    """The card of an adapter, from its metadata. Raises IntegrityError for one whose run is not finished."""
    from tunesmith.share.card import Card
    from tunesmith.share.metadata import read_metadata

    if adapter.run is not None and not RunFolder(adapter.run).finished():
        raise IntegrityError(f"{adapter.run}: this run is not finished", "Train it to its end, then push it.")
    metadata = read_metadata(adapter.folder) | {"base": name, "revision": base_spec["revision"]}
    origin = repo_of(adapter.folder)
    return Card(metadata, repo, license,
                f"{origin} at {adapter.folder.name[:12]}" if origin and origin != repo else None)


def _own_license(folder: Path) -> str | None:
    """What the card in an adapter's folder says, if there is one."""
    from huggingface_hub import ModelCard

    path = folder / CARD_NAME
    try:
        license = getattr(ModelCard.load(path).data, "license", None) if path.is_file() else None
    except TunesmithError:  # a signal of the user's
        raise
    except Exception:  # a card is text of anybody's making
        return None
    return license if isinstance(license, str) else None
