"""`tunesmith push`: an adapter to the Hub, in one commit, with a card written from its run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tunesmith.errors import IntegrityError, UsageError
from tunesmith.hub import call, parse_hub_id
from tunesmith.recipe import parse_recipe
from tunesmith.verbs.adapters import AdapterFiles, adapter_base, find_adapter, hub_name
from tunesmith.verbs.show import Show, Silent


def push(adapter: str | os.PathLike[str], repo: str, *, private: bool | None = None, message: str | None = None,
         base: str | None = None, license: str | None = None, dry_run: bool = False,
         show: Show | None = None) -> dict[str, Any]:
    """Publish an adapter: PEFT's files, tokenizer, generation settings, a card from the run it stands in. Nothing else.

    adapter: a run or an adapter folder. repo: ORG/NAME, or a name in your own account. private: None makes a new
    repository private and leaves another as it is. message: of the commit. base: the Hub id of the base, where the
    adapter was trained on a local folder of it. license: of the adapter; the base's by default, where the Hub says it.
    dry_run: only show what would be published.
    Returns repo, commit, url, private, changed (False: all was there already), files (name to bytes), and card.
    Raises UsageError, IntegrityError (a damaged adapter; a secret or a local path in a file), NetworkError.
    """
    from tunesmith.share.push import CARD_NAME, assemble, publish

    show = show or Silent()
    wanted = parse_hub_id(repo)
    if wanted is None or wanted.revision:
        raise UsageError(f"{repo}: not the name of a repository", "Write ORG/NAME.")
    if not Path(adapter).expanduser().is_dir():
        raise UsageError(f"{os.fspath(adapter)}: no such folder", "Give a run folder (such as runs/NAME) or an adapter folder.")
    found = find_adapter(os.fspath(adapter), show)
    chosen = adapter_base(found, base=None, quantization=None)
    name = base or hub_name(chosen["base"])
    if name is None or "/" not in name or parse_hub_id(name) is None:
        raise UsageError(f"{found.folder}: its base is {chosen['base']}, which nobody else can load",
                         "Name the base's Hub id: --base ORG/NAME")
    folder = _tokenizer_folder(chosen, show)
    card = _card(found, chosen, name, repo, license or _license(name, show, dry_run))
    files = assemble(found.folder, folder, card)
    told = {"files": {name: len(content) for name, content in sorted(files.items())}, "card": files[CARD_NAME].decode()}
    if dry_run:
        return {"repo": repo, "commit": None, "url": None, "private": private is not False, "changed": False, **told}
    show.stage(f"pushing to {repo}")
    done = publish(files, repo, private=private, message=message or f"LoRA adapter for {name}", tell=show.note)
    return {"repo": done.repo, "commit": done.commit, "url": done.url, "private": done.private, "changed": done.changed, **told}


def _tokenizer_folder(chosen: dict[str, Any], show: Show) -> Path | None:
    """Where the base's tokenizer is, if it can be had."""
    from tunesmith.errors import TunesmithError
    from tunesmith.model.files import locate_tokenizer

    try:
        return locate_tokenizer(chosen["base"], chosen["revision"], show.note)
    except TunesmithError as error:
        show.note(f"The base's tokenizer does not go along: {error.message}.")
        return None


def _card(found: AdapterFiles, chosen: dict[str, Any], name: str, repo: str, license: str | None) -> Any:
    """The card of an adapter: from its run, where it stands in one; else from its own note."""
    from tunesmith.rundir import RunFolder
    from tunesmith.share.adapter import read_note
    from tunesmith.share.card import Card

    note = {"base": name, "revision": chosen["revision"], "quantization": chosen["quantization"], "prompt": "",
            "messages": chosen["messages"]}
    note |= {key: value for key, value in read_note(found.folder).items() if key not in ("base", "revision", "quantization")}
    if found.run is None:
        return Card(note, repo=repo, license=license)
    run = RunFolder(found.run)
    if not (found.run / "result.json").exists():
        raise IntegrityError(f"{found.run}: this run is not finished", "Train it to its end, then push it.")
    result = run.read_json(found.run / "result.json")
    recipe = parse_recipe(run.recipe.read_text(encoding="utf-8"), name=str(run.recipe)).model_dump(mode="json")
    return Card(note, result, result.get("judgement"), recipe, repo, license)


def _license(base: str, show: Show, dry_run: bool) -> str | None:
    """The base's licence as the Hub tells it: an adapter is a work on top of it. None where it does not say."""
    from huggingface_hub import HfApi

    from tunesmith.errors import TunesmithError

    try:
        info = call(base, lambda: HfApi().model_info(base), lambda text: None if dry_run else show.note(text))
    except TunesmithError:
        return None
    found = (info.card_data or {}).get("license") if info.card_data else None
    return found if isinstance(found, str) else None
