"""A repository's files by id: of one commit, in the client's own cache, each checked against its hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import IntegrityError, Kind, NetworkError
from tunesmith.hub.calls import ATTEMPTS, call
from tunesmith.hub.client import Tell, offline
from tunesmith.hub.failures import explained
from tunesmith.paths import expanded

_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*|[A-Za-z0-9][\w.-]*)"
                 r"(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: The beginning of a commit, as messages print it.
_SHORT = re.compile(r"[0-9a-f]{7,39}")
#: How often the Hub is asked what a revision is now where the cache has an answer.
_ATTEMPTS_WITH_CACHE = 2
#: Which copies were named to the user: a base is looked for more than once.
_MESSAGES_TOLD: set[str] = set()
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class HubId:
    """A repository, and its branch, tag or commit that is wanted; None for its main branch as it is now."""

    repo: str
    revision: str | None


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit on this disk. commit: 40 hex digits."""

    folder: Path
    commit: str


def parse_hub_id(text: str) -> HubId | None:
    """`ORG/NAME` or `ORG/NAME@REVISION`; None for what cannot be one."""
    match = _ID.fullmatch(text)
    if match is None or ".." in text or "--" in match["repo"]:
        return None
    return HubId(match["repo"], match["revision"])


def is_hub_id(text: str) -> bool:
    """Whether it can name a repository, owner included, and nothing here, such as a mistyped run."""
    hub_id, path = parse_hub_id(text), expanded(text)
    return hub_id is not None and "/" in hub_id.repo and not path.exists() and not path.parent.is_dir()


def download(repo: str, revision: str | None, patterns: Sequence[str], tell: Tell, *,
             ignore: Sequence[str] = (), kind: str = "model", explain: Any = None) -> Snapshot:
    """The files of a repository that match, from the cache or the Hub, each one's content checked once.

    patterns, ignore: as `fnmatch` takes them. kind: model or dataset. explain: as for `call`. Raises what
    `explain` says when the Hub does not give them, IntegrityError when what it gives, twice, is not what it
    says that it gives.
    """
    from huggingface_hub import snapshot_download

    explain = explain or explained
    last_complete = _LastComplete(repo, kind, revision, (*patterns, *ignore))
    commit, by_hub = current_commit(repo, revision, tell, kind=kind, explain=explain,
                                    last=last_complete.commit())

    def fetch() -> Path:
        options: dict[str, Any] = {"repo_type": kind, "allow_patterns": list(patterns),
                                   "ignore_patterns": list(ignore)}
        if not by_hub:
            return Path(snapshot_download(repo, revision=commit or revision, local_files_only=True,
                                          **options))
        # By its branch first, so that the cache knows what that meant when there is no network.
        first = commit if revision and _SHORT.fullmatch(revision) else revision
        folder = Path(snapshot_download(repo, revision=first, **options))
        if folder.name != commit:  # it moved on, or the client took an old copy
            folder = Path(snapshot_download(repo, revision=commit, **options))
        return folder

    for attempt in (1, 2):
        folder = call(repo, fetch, tell, explain=explain)
        damaged = [path for path in sorted(folder.rglob("*")) if path.is_file() and not intact(path)]
        if not damaged:
            last_complete.remember(folder.name)
            return Snapshot(folder, folder.name)
        for path in damaged:  # the client would take it for whole for ever
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        if attempt == 1:
            tell(f"{repo}: {damaged[0].name} is not what the Hub says it is; downloading it again.")
    raise IntegrityError(f"{repo}: {damaged[0].relative_to(folder)}: "
                         "arrived twice with other bytes than the Hub's hash says",
                         "Something between the Hub and this machine changes what it passes on. "
                         "Nothing of it was kept.")


@dataclass(frozen=True)
class _LastComplete:
    """The commit whose files were last all here: the cache cannot tell a broken-off snapshot from a whole."""

    repo: str
    kind: str
    revision: str | None
    patterns: tuple[str, ...]

    @property
    def _path(self) -> Path:
        from huggingface_hub import constants

        key = json.dumps([str(constants.HF_HUB_CACHE), self.repo, self.kind, self.revision, self.patterns])
        return Path(constants.HF_HOME, "tunesmith", "whole", hashlib.sha256(key.encode()).hexdigest())

    def remember(self, commit: str) -> None:
        """Remember it."""
        with suppress(OSError):  # a cache that cannot be written to
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(commit)

    def commit(self) -> str | None:
        """The commit, where its snapshot is still in the cache."""
        with suppress(OSError):
            commit = self._path.read_text().strip()
            snapshots = _cache_of(self.repo, self.kind) / "snapshots"
            if _COMMIT.fullmatch(commit) and (snapshots / commit).is_dir():
                return commit
        return None


def current_commit(repo: str, revision: str | None, tell: Tell, *, kind: str = "model",
                   explain: Any = explained, last: str | None = None) -> tuple[str | None, bool]:
    """(a revision's commit by the Hub, True); or, while that is down, (by the cache, False), which is told.

    A commit may be given by its first seven digits or more. last: the commit whose files were all in the
    cache before. The commit is None where there is no network by the user's own wish and the cache does not
    know the revision. Raises what `explain` says when the Hub does not tell and the cache cannot.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    api, cached = HfApi(), last or _cached_commit(repo, revision, kind)
    if offline():
        return cached, False

    def ask() -> str:
        try:
            return str(api.repo_info(repo, repo_type=kind, revision=revision).sha)
        except RevisionNotFoundError:
            if not revision or not _SHORT.fullmatch(revision):
                raise
            history = api.list_repo_commits(repo, repo_type=kind)
            matching = [each.commit_id for each in history if each.commit_id.startswith(revision)]
            if len(matching) != 1:
                raise
            return str(matching[0])

    try:
        return call(repo, ask, tell, explain=explain,
                    attempts=_ATTEMPTS_WITH_CACHE if cached else ATTEMPTS), True
    except NetworkError as error:
        if cached is None or error.kind is not Kind.UNREACHABLE:
            raise
        message = f"{error.message}; taking the copy in the cache, commit {cached[:12]}."
        if message not in _MESSAGES_TOLD:
            tell(message)
            _MESSAGES_TOLD.add(message)
        return cached, False


def _cache_of(repo: str, kind: str) -> Path:
    """A repository's folder in the client's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type=kind))


def _cached_commit(repo: str, revision: str | None, kind: str) -> str | None:
    """The commit of a revision's last download, or the one in the cache that begins so; else None."""
    folder = _cache_of(repo, kind)
    with suppress(OSError):
        return (folder / "refs" / (revision or "main")).read_text().strip()
    if revision and (_SHORT.fullmatch(revision) or _COMMIT.fullmatch(revision)):
        matching = [path.name for path in folder.glob(f"snapshots/{revision}*")]
        return matching[0] if len(matching) == 1 else None
    return None


def intact(path: Path) -> bool:
    """Whether a file of the cache has the content that its name there says.

    The cache names a file by what the Hub says of it: the SHA-256 of large ones, git's SHA-1 of others. A
    file that was found whole is not read again until its size or time changes.
    """
    blob = path.resolve()
    expected = blob.name
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", expected):
        return True  # a cache without links: nothing here says what it should be
    stat = blob.stat()
    record, current = _record_of(blob), {"size": stat.st_size, "time": stat.st_mtime_ns}
    with suppress(OSError, ValueError):  # no note of it, or not a whole one
        if json.loads(record.read_text()) == current:
            return True
    if _hash(blob, len(expected)) != expected:
        return False
    with suppress(OSError):  # a cache that cannot be written to is read again next time
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(current))
    return True


def _record_of(blob: Path) -> Path:
    """Where it is noted that a file was found whole."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME, "tunesmith", "checked", hashlib.sha256(str(blob).encode()).hexdigest())


def _hash(path: Path, digits: int) -> str:
    """SHA-256 (64 digits), or the SHA-1 of git's blob (40)."""
    digest = (hashlib.sha256() if digits == 64
              else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def git_sha1(content: bytes) -> str:
    """Git's hash of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the client's cache stands for; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None


def repo_of(folder: Path) -> str | None:
    """The repository that a folder of the client's cache came from; None for any other folder."""
    name = folder.parent.parent.name
    is_cached = commit_of(folder) and name.startswith("models--")
    return name.removeprefix("models--").replace("--", "/") if is_cached else None


def list_files(repo: str, revision: str | None, tell: Tell) -> list[str]:
    """The names of all files of a repository, downloaded or not. Raises NetworkError."""
    from huggingface_hub import HfApi

    return list(call(repo, lambda: HfApi().list_repo_files(repo, revision=revision), tell))
