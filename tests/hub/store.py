"""What the Hub holds: accounts, repositories, their commits, and the large files uploaded to them."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, TypedDict

from .wire import Refusal

Kind = Literal["model", "dataset"]
WRITE_TOKEN: Final = "hf_writetokenwritetokenwritetoken"
READ_TOKEN: Final = "hf_readtokenreadtokenreadtokenread"
USER: Final = "tester"
ORGANISATION: Final = "choir"
LFS_SUFFIXES: Final = (".safetensors", ".gguf", ".bin", ".parquet", ".pt", ".pth", ".onnx", ".zip", ".arrow",
                       ".npz")
GITATTRIBUTES: Final = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n"
                               for suffix in LFS_SUFFIXES).encode()


class Account(TypedDict):
    """Who a token belongs to, and whether it may write."""

    name: str
    orgs: list[str]
    write: bool


@dataclass(frozen=True)
class Commit:
    """A whole state of the files; `lfs` has the SHA-256 of each file that is stored as a large one."""

    oid: str
    parent: str | None
    message: str
    files: dict[str, bytes]
    lfs: dict[str, str]
    date: datetime


@dataclass
class Repository:
    """A model or dataset. `granted`: names let into a gated one; `objects`: its large files by SHA-256."""

    kind: Kind
    id: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def namespace(self) -> str:
        """The user or the organisation that owns it; empty for an id of one word."""
        return self.id.rpartition("/")[0]

    def find(self, revision: str) -> Commit:
        """The commit of a branch, a tag or an oid."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        for commit in self.commits:
            if commit.oid == oid:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str) -> list[Commit]:
        """The commits that lead to a revision, oldest first."""
        chain: list[Commit] = []
        commit: Commit | None = self.find(revision)
        while commit is not None:
            chain.append(commit)
            commit = self.find(commit.parent) if commit.parent else None
        return chain[::-1]

    def record(self, files: dict[str, bytes], lfs: dict[str, str], message: str,
               branch: str = "main") -> Commit:
        """Move a branch to a new commit of these files."""
        parent = self.branches.get(branch)
        names = "\n".join(f"{path} {git_sha1(data) if path not in lfs else lfs[path]}"
                          for path, data in sorted(files.items()))
        seed = f"{self.kind} {self.id} {len(self.commits)} {parent} {message}\n{names}"
        commit = Commit(hashlib.sha1(seed.encode()).hexdigest(), parent, message, files, lfs,
                        datetime.now(UTC))
        self.commits.append(commit)
        self.branches[branch] = commit.oid
        return commit


class Store:
    """Accounts and repositories, and who may see and change them. Hold `lock` to change a running one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.token = WRITE_TOKEN
        self.read_token = READ_TOKEN
        self.tokens: dict[str, Account] = {
            WRITE_TOKEN: {"name": USER, "orgs": [ORGANISATION], "write": True},
            READ_TOKEN: {"name": USER, "orgs": [ORGANISATION], "write": False},
        }
        self.repositories: dict[tuple[Kind, str], Repository] = {}
        self.lfs_threshold = 10 * 1024 * 1024  # bytes
        self.lfs_suffixes: tuple[str, ...] = LFS_SUFFIXES

    def add(self, kind: Kind, id: str, files: dict[str, bytes], private: bool = False, gated: bool = False,
            message: str = "Seeded") -> str:
        """Add or replace files on the main branch, in a new repository if need be; returns its commit."""
        with self.lock:
            repository = self.repositories.get((kind, id)) or self.create(kind, id, private, gated, {})
            head = repository.find("main") if repository.commits else None
            large = {path: sha256(data) for path, data in files.items()
                     if self.is_large(path, data[:512], len(data))}
            repository.objects.update({oid: files[path] for path, oid in large.items()})
            kept = {path: oid for path, oid in (head.lfs if head else {}).items() if path not in files}
            return repository.record({**(head.files if head else {}), **files}, {**kept, **large},
                                     message).oid

    def create(self, kind: Kind, id: str, private: bool, gated: bool, files: dict[str, bytes]) -> Repository:
        """A new repository; with files it starts with one commit, without them it has none yet."""
        repository = self.repositories[kind, id] = Repository(kind, id, private, gated)
        if files:
            repository.record(files, {}, "initial commit")
        return repository

    def files(self, kind: Kind, id: str, revision: str = "main") -> dict[str, bytes]:
        """What the repository holds at a revision."""
        with self.lock:
            return dict(self.repositories[kind, id].find(revision).files)

    def commits(self, kind: Kind, id: str, revision: str = "main") -> list[Commit]:
        """The commits that lead to a revision, oldest first."""
        with self.lock:
            return self.repositories[kind, id].history(revision)

    def is_large(self, path: str, sample: bytes, size: int) -> bool:
        """Whether a file is stored as a large one: by its name, its size, or because it is not text."""
        return size > 0 and (path.endswith(self.lfs_suffixes) or size > self.lfs_threshold or b"\0" in sample)

    def account(self, authorization: str | None) -> Account | None:
        """Whose token this is; None without one."""
        if authorization is None:
            return None
        account = self.tokens.get(authorization.removeprefix("Bearer "))
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def may_create(self, authorization: str | None, kind: Kind, namespace: str | None) -> str:
        """The namespace in which the token may create or delete."""
        account = self.account(authorization)
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        namespace = namespace or account["name"]
        if not account["write"] or not owns(account, namespace):
            raise Refusal(403,
                          f"You don't have the rights to create a {kind} under the namespace \"{namespace}\"")
        return namespace

    def reach(self, authorization: str | None, kind: Kind, id: str, *, write: bool = False,
              content: bool = False) -> Repository:
        """The repository, for one who may see it, may change it (`write`), may read its files (`content`)."""
        account = self.account(authorization)
        repository = self.repositories.get((kind, id))
        owner = account is not None and repository is not None and owns(account, repository.namespace)
        if repository is None or (repository.private and not owner):
            raise _not_found(account)
        if (content and repository.gated and not owner
                and (account is None or account["name"] not in repository.granted)):
            raise _gated(account, repository)
        if write and account is None:
            raise Refusal(401, "Invalid username or password.")
        if write and not (owner and account is not None and account["write"]):
            raise Refusal(403, f"You don't have the rights to write to this {kind} with this token")
        return repository


def owns(account: Account, namespace: str) -> bool:
    """Whether the account is the namespace or belongs to it."""
    return namespace == account["name"] or namespace in account["orgs"]


def git_sha1(data: bytes) -> str:
    """The id that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    """The id that LFS gives to a file."""
    return hashlib.sha256(data).hexdigest()


def pointer(oid: str, size: int) -> bytes:
    """The small file that git keeps in place of a large one."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()


def _not_found(account: Account | None) -> Refusal:
    # The Hub does not tell a private repository from one that is not there. Without a token it says 401; over
    # plain http the client takes that for a missing repository only with the code.
    if account is None:
        return Refusal(401, "Invalid username or password.", "RepoNotFound")
    return Refusal(404, "Repository not found", "RepoNotFound")


def _gated(account: Account | None, repository: Repository) -> Refusal:
    if account is None:
        message = (f"Access to {repository.kind} {repository.id} is restricted. "
                   "You must have access to it and be authenticated.")
        return Refusal(401, message, "GatedRepo")
    message = (
        f"Access to {repository.kind} {repository.id} is restricted and you are not in the authorized list."
    )
    return Refusal(403, message, "GatedRepo")
