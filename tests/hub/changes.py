"""A commit: how each file is to be uploaded, and its lines turned into the new state, all or nothing."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from . import card
from .store import Commit, Repository, Store, git_sha1
from .wire import Refusal

Line = tuple[str, dict[str, Any]]


def upload_mode(store: Store, commit: Commit, asked: dict[str, Any]) -> dict[str, Any]:
    """As a large file or within the commit; `oid` is the id of what is there now, to compare."""
    path, sample = asked["path"], base64.b64decode(asked["sample"])
    found = {"path": path, "uploadMode": "lfs" if store.is_large(path, sample, asked["size"]) else "regular",
             "shouldIgnore": False}
    if path in commit.files:
        found["oid"] = commit.lfs.get(path) or git_sha1(commit.files[path])
    return found


def lines(body: bytes) -> list[Line]:
    """The keys and values of an ndjson body."""
    try:
        found = [json.loads(line) for line in body.splitlines() if line.strip()]
        return [(line["key"], line["value"]) for line in found]
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(400, f"The body is not the ndjson of a commit: {error!r}") from error


def apply(repository: Repository, branch: str, changes: list[Line]) -> Commit:
    """A new commit on the branch; nothing is changed where any line is refused."""
    if branch not in repository.branches:
        raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    head, header = repository.find(branch), dict(changes).get("header", {})
    if not header.get("summary"):
        raise Refusal(400, "The commit has no summary")
    parent = header.get("parentCommit")
    if parent is not None and not head.oid.startswith(parent.lower()):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files, lfs = dict(head.files), dict(head.lfs)
    for key, value in changes:
        _change(repository, files, lfs, key, value)
    message = "\n\n".join(part for part in (header["summary"], header.get("description")) if part)
    return repository.record(files, lfs, message, branch)


def _change(repository: Repository, files: dict[str, bytes], lfs: dict[str, str], key: str,
            value: dict[str, Any]) -> None:
    if key == "header":
        return
    path = _checked(value.get("path"))
    if key == "file":
        files[path] = _decoded(path, value)
        lfs.pop(path, None)
    elif key == "lfsFile":
        files[path] = _held(repository, path, value)
        lfs[path] = value["oid"]
    elif key in ("deletedFile", "deletedFolder"):
        for gone in _deleted(files, path, folder=key == "deletedFolder"):
            del files[gone]
            lfs.pop(gone, None)
    else:
        raise Refusal(400, f"Unknown key in a commit: {key}")


def _checked(path: object) -> str:
    plain = path.rstrip("/") if isinstance(path, str) else ""
    if not plain or plain.startswith("/") or {"", ".", "..", ".git"} & set(plain.split("/")):
        raise Refusal(400, f"Invalid path in a commit: {path!r}")
    return plain


def _decoded(path: str, value: dict[str, Any]) -> bytes:
    if value.get("encoding") not in ("base64", "utf-8", None):
        raise Refusal(400, f"Unknown encoding of {path}: {value['encoding']}")
    try:
        data = (
            base64.b64decode(value["content"], validate=True)
            if value.get("encoding") == "base64"
            else value["content"].encode()
        )
    except binascii.Error as error:
        raise Refusal(400, f"{path} is not base64: {error}") from error
    errors = card.judge(data.decode(errors="replace"))[0] if path == "README.md" else []
    if errors:
        raise Refusal(400, "; ".join(errors))
    return data


def _held(repository: Repository, path: str, value: dict[str, Any]) -> bytes:
    data = repository.objects.get(value.get("oid", ""))
    if data is None:
        raise Refusal(400, f"{path}: an LFS pointer pointed to a file that does not exist")
    if value.get("size", len(data)) != len(data):
        raise Refusal(400, f"{path} has {len(data)} bytes, not {value['size']}")
    return data


def _deleted(files: dict[str, bytes], path: str, folder: bool) -> list[str]:
    gone = [name for name in files
            if name.startswith(f"{path}/")] if folder else [name for name in files if name == path]
    if not gone:
        raise Refusal(404, f"A {'folder' if folder else 'file'} with this name doesn't exist: {path}",
                      "EntryNotFound")
    return gone
