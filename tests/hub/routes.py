"""The routes of the Hub and of its store of large files: what each request asks for, and the answer to it."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from . import card, changes
from .store import GITATTRIBUTES, Commit, Kind, Repository, Store, git_sha1, pointer, sha256
from .wire import Answer, Origin, Refusal, Request, content_answer, json_answer

_SECRET: Final = secrets.token_bytes(16)  # signs the addresses of large files, as a cloud store does


class Hub(Store):
    """A store that knows at which two addresses it is reached."""

    url = ""
    lfs_url = ""


@dataclass(frozen=True)
class Route:
    """A name for faults and the log, its methods and path, and the function that answers."""

    name: str
    methods: str
    path: re.Pattern[str]
    answer: Callable[[Hub, Request], Answer]
    origin: Origin = "hub"


def find_route(method: str, path: str, origin: Origin) -> tuple[Route | None, dict[str, str]]:
    """The route of a request, and the unquoted parts of its path."""
    for route in ROUTES:
        match = route.path.fullmatch(path)
        if match is not None and method in route.methods.split() and origin == route.origin:
            return route, {key: unquote(value) for key, value in match.groupdict().items()
                           if value is not None}
    return None, {}


def _kind(request: Request) -> Kind:
    return "dataset" if request.arguments.get("kind", "").startswith("datasets") else "model"


def _reach(hub: Hub, request: Request, *, write: bool = False, content: bool = False) -> Repository:
    authorization = request.headers.get("Authorization")
    return hub.reach(authorization, _kind(request), request.arguments["id"], write=write, content=content)


def _revision(request: Request) -> str:
    return request.arguments.get("revision", "main")


def _page(hub: Hub, repository: Repository) -> str:
    return f"{hub.url}/{'datasets/' if repository.kind == 'dataset' else ''}{repository.id}"


def _whoami(hub: Hub, request: Request) -> Answer:
    account = hub.account(request.headers.get("Authorization"))
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    orgs = [{"type": "org", "name": name, "roleInOrg": "write" if account["write"] else "read"}
            for name in account["orgs"]]
    token = {"displayName": "test", "role": "write" if account["write"] else "read"}
    return json_answer({"type": "user", "name": account["name"], "fullname": account["name"], "orgs": orgs,
                        "auth": {"type": "access_token", "accessToken": token}})


def _named(hub: Hub, request: Request) -> tuple[Kind, str, dict[str, Any]]:
    asked = request.json()
    kind: Kind = "dataset" if asked.get("type") == "dataset" else "model"
    if asked.get("type") not in (None, "model", "dataset"):
        raise Refusal(400, f"No repositories of type {asked['type']} here")
    namespace = hub.may_create(request.headers.get("Authorization"), kind, asked.get("organization"))
    name = asked.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,95}",
                                                     name) or name.endswith(".git"):
        raise Refusal(400, f"Invalid repo name: {name}")
    return kind, f"{namespace}/{name}", asked


def _create(hub: Hub, request: Request) -> Answer:
    kind, id, asked = _named(hub, request)
    found = hub.repositories.get((kind, id))
    if found is not None:
        return json_answer({"error": f"You already created this {kind} repo", "url": _page(hub, found)}, 409)
    private = asked.get("visibility") == "private" or asked.get("private") is True
    repository = hub.create(kind, id, private, False, {".gitattributes": GITATTRIBUTES})
    return json_answer({"url": _page(hub, repository), "name": id, "id": id})


def _delete(hub: Hub, request: Request) -> Answer:
    kind, id, _ = _named(hub, request)
    if hub.repositories.pop((kind, id), None) is None:
        raise Refusal(404, "Repository not found", "RepoNotFound")
    return Answer(200, b"OK", {"Content-Type": "text/plain"})


def _settings(hub: Hub, request: Request) -> Answer:
    repository, asked = _reach(hub, request, write=True), request.json()
    if "visibility" in asked or "private" in asked:
        repository.private = asked.get("visibility") == "private" or asked.get("private") is True
    if "gated" in asked:
        repository.gated = bool(asked["gated"])
    return json_answer({"private": repository.private, "gated": repository.gated})


def _auth_check(hub: Hub, request: Request) -> Answer:
    _reach(hub, request, content=True, write="write" in request.arguments)
    return json_answer({})


def _validate(hub: Hub, request: Request) -> Answer:
    hub.account(request.headers.get("Authorization"))
    errors, warnings = card.judge(str(request.json().get("content", "")))
    found = {"errors": [{"message": line} for line in errors],
             "warnings": [{"message": line} for line in warnings]}
    return json_answer(found, 400 if errors else 200)


def _preupload(hub: Hub, request: Request) -> Answer:
    commit = _reach(hub, request, write=True).find(_revision(request))
    return json_answer({"files": [changes.upload_mode(hub, commit, asked)
                                  for asked in request.json()["files"]]})


def _commit(hub: Hub, request: Request) -> Answer:
    repository = _reach(hub, request, write=True)
    if request.first("create_pr"):
        raise Refusal(400, "No pull requests here")
    commit = changes.apply(repository, _revision(request), changes.lines(request.body))
    return json_answer({"success": True, "commitOid": commit.oid,
                        "commitUrl": f"{_page(hub, repository)}/commit/{commit.oid}", "hookOutput": ""})


def _lfs_batch(hub: Hub, request: Request) -> Answer:
    repository, asked = _reach(hub, request, write=True), request.json()
    if asked.get("operation") != "upload" or "basic" not in asked.get("transfers", ["basic"]):
        raise Refusal(400, "Only uploads with the basic transfer here")
    objects = [_lfs_object(hub, repository, entry["oid"], entry["size"]) for entry in asked["objects"]]
    return json_answer({"transfer": "basic", "objects": objects}, 200,
                       {"Content-Type": "application/vnd.git-lfs+json"})


def _lfs_object(hub: Hub, repository: Repository, oid: str, size: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"oid": oid, "size": size}
    if not re.fullmatch(r"[0-9a-f]{64}", oid):
        return {**entry, "error": {"code": 422, "message": "oid is no SHA-256"}}
    if oid in repository.objects:
        return entry
    upload = {"href": _address(hub, repository, oid, "PUT", size)}
    verify = {"href": f"{_page(hub, repository)}.git/info/lfs/objects/verify"}
    return {**entry, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


def _lfs_verify(hub: Hub, request: Request) -> Answer:
    repository, asked = _reach(hub, request, write=True), request.json()
    held = repository.objects.get(asked["oid"])
    if held is None:
        raise Refusal(404, "This object was not uploaded")
    if len(held) != asked["size"]:
        raise Refusal(422, f"This object has {len(held)} bytes, not {asked['size']}")
    return json_answer({})


def _address(hub: Hub, repository: Repository, oid: str, method: str, size: int) -> str:
    path = f"/objects/{repository.kind}s/{repository.id}/{oid}"
    return f"{hub.lfs_url}{path}?size={size}&signature={_signature(method, path, str(size))}"


def _signature(method: str, path: str, size: str) -> str:
    return hmac.new(_SECRET, f"{method} {path} {size}".encode(), hashlib.sha256).hexdigest()


def _signed(hub: Hub, request: Request, method: str) -> Repository:
    """The repository of a signed address; as at a cloud store, a second way to say who one is, is refused."""
    if request.headers.get("Authorization") is not None:
        raise Refusal(400,
                      "Only one auth mechanism allowed; "
                      "only the signature of the address or the Authorization header")
    if not hmac.compare_digest(request.first("signature"),
                               _signature(method, request.path, request.first("size"))):
        raise Refusal(403, "SignatureDoesNotMatch")
    repository = hub.repositories.get((_kind(request), request.arguments["id"]))
    if repository is None:
        raise Refusal(404, "NoSuchKey")
    return repository


def _lfs_put(hub: Hub, request: Request) -> Answer:
    repository, oid = _signed(hub, request, "PUT"), request.arguments["oid"]
    if len(request.body) != int(request.first("size")):
        raise Refusal(400, f"IncompleteBody: {len(request.body)} bytes came, not {request.first('size')}")
    if sha256(request.body) != oid:
        raise Refusal(400, "BadDigest: the SHA-256 of what came is another one")
    repository.objects[oid] = request.body
    return Answer(200, b"", {"ETag": f'"{oid}"'})


def _lfs_get(hub: Hub, request: Request) -> Answer:
    held = _signed(hub, request, "GET").objects.get(request.arguments["oid"])
    if held is None:
        raise Refusal(404, "NoSuchKey")
    return content_answer(request, held, {"ETag": f'"{request.arguments["oid"]}"'})


def _resolve(hub: Hub, request: Request) -> Answer:
    repository = _reach(hub, request, content=True)
    commit, path = repository.find(_revision(request)), request.arguments["path"]
    data, headers = commit.files.get(path), {"X-Repo-Commit": commit.oid}
    if data is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", headers)
    oid = commit.lfs.get(path)
    if oid is None:
        return content_answer(request, data, {**headers, "ETag": f'"{git_sha1(data)}"'})
    location = _address(hub, repository, oid, "GET", len(data))
    headers |= {"Location": location, "X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(data)),
                "ETag": f'"{oid}"'}
    return Answer(302, f"Found. Redirecting to {location}".encode(),
                  {"Content-Type": "text/plain", **headers})


def _info(hub: Hub, request: Request) -> Answer:
    repository = _reach(hub, request)
    commit = repository.find(_revision(request))
    blobs = request.first("blobs").lower() in ("true", "1")
    found = {
        "_id": hashlib.sha1(repository.id.encode()).hexdigest()[:24], "id": repository.id,
        "author": repository.namespace, "sha": commit.oid, "private": repository.private,
        "gated": "manual" if repository.gated else False, "disabled": False, "lastModified": _date(commit),
        "createdAt": repository.created.strftime("%Y-%m-%dT%H:%M:%S.000Z"), "downloads": 0, "likes": 0,
        "tags": [], "siblings": [_sibling(commit, path, blobs) for path in sorted(commit.files)],
    }
    try:
        found["cardData"] = card.metadata(commit.files.get("README.md", b"").decode(errors="replace"))
    except ValueError:
        found["cardData"] = None
    return json_answer(found | ({"modelId": repository.id} if repository.kind == "model" else {}))


def _sibling(commit: Commit, path: str, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    entry = _file(commit, path)
    lfs = {"lfs": {**entry["lfs"], "sha256": entry["lfs"]["oid"]}} if "lfs" in entry else {}
    return {"rfilename": path, "size": entry["size"], "blobId": entry["oid"], **lfs}


def _file(commit: Commit, path: str) -> dict[str, Any]:
    data, oid = commit.files[path], commit.lfs.get(path)
    if oid is None:
        return {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
    small = pointer(oid, len(data))
    lfs = {"oid": oid, "size": len(data), "pointerSize": len(small)}
    return {"type": "file", "path": path, "size": len(data), "oid": git_sha1(small), "lfs": lfs}


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": git_sha1(path.encode())}


def _folders(commit: Commit) -> set[str]:
    parts = [path.split("/")[:-1] for path in commit.files]
    return {"/".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)}


def _entry(commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    entry = _file(commit, path) if path in commit.files else _folder(path)
    return entry | ({"lastCommit": {"id": commit.oid, "title": commit.message, "date": _date(commit)}}
                    if expand else {})


def _date(commit: Commit) -> str:
    return commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _tree(hub: Hub, request: Request) -> Answer:
    commit = _reach(hub, request).find(_revision(request))
    root = request.arguments.get("path", "").strip("/")
    folders = _folders(commit)
    if root and root not in folders:
        raise Refusal(404, f"{root} does not exist on \"{_revision(request)}\"", "EntryNotFound",
                      {"X-Repo-Commit": commit.oid})
    below = [path for path in sorted({*commit.files, *folders})
             if path.startswith(f"{root}/" if root else "")]
    if request.first("recursive").lower() not in ("true", "1"):
        below = [path for path in below if "/" not in path.removeprefix(f"{root}/")]
    expand = request.first("expand").lower() in ("true", "1")
    return json_answer([_entry(commit, path, expand) for path in below])


def _paths_info(hub: Hub, request: Request) -> Answer:
    commit = _reach(hub, request).find(_revision(request))
    in_json = "json" in request.headers.get("Content-Type", "")
    asked: dict[str, Any] = request.json() if in_json else parse_qs(request.body.decode())
    expand = "true" in str(asked.get("expand", "")).lower()
    known = {*commit.files, *_folders(commit)}
    return json_answer([_entry(commit, path, expand) for path in asked.get("paths", []) if path in known])


def _commits(hub: Hub, request: Request) -> Answer:
    history = _reach(hub, request).history(_revision(request))
    return json_answer([{"id": commit.oid, "authors": [], "date": _date(commit),
                         "title": commit.message.split("\n")[0],
                         "message": commit.message.partition("\n\n")[2]} for commit in reversed(history)])


def _refs(hub: Hub, request: Request) -> Answer:
    repository = _reach(hub, request)
    branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
                for name, oid in repository.branches.items()]
    tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid}
            for name, oid in repository.tags.items()]
    return json_answer({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


def _branch(hub: Hub, request: Request) -> Answer:
    repository, name = _reach(hub, request, write=True), request.arguments["revision"]
    start = None if request.method == "DELETE" else str(request.json().get("startingPoint", "main"))
    return _point(repository, repository.branches, name, start)


def _tag(hub: Hub, request: Request) -> Answer:
    repository, name = _reach(hub, request, write=True), request.arguments["revision"]
    if request.method == "DELETE":
        return _point(repository, repository.tags, name, None)
    return _point(repository, repository.tags, str(request.json()["tag"]), name)


def _point(repository: Repository, names: dict[str, str], name: str, start: str | None) -> Answer:
    """Let a new name point to a revision; without one, forget the name."""
    if start is None:
        if name == "main" or names.pop(name, None) is None:
            raise Refusal(404, f"Reference does not exist: {name}", "RevisionNotFound")
    elif name in names:
        raise Refusal(409, f"Reference already exists: {name}")
    else:
        names[name] = repository.find(start).oid
    return json_answer({})


_API: Final = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+(?:/[^/]+)?)"
_REVISION: Final = r"(?P<revision>[^/]+)"
_PLAIN: Final = r"/(?P<kind>datasets/)?(?P<id>[^/]+(?:/[^/]+)?)"
_OBJECT: Final = r"/objects/(?P<kind>models|datasets)/(?P<id>.+)/(?P<oid>[0-9a-f]{64})"


def _route(name: str, methods: str, path: str, answer: Callable[[Hub, Request], Answer],
           origin: Origin = "hub") -> Route:
    return Route(name, methods, re.compile(path), answer, origin)


ROUTES: Final = (
    _route("whoami", "GET", r"/api/whoami-v2", _whoami),
    _route("create", "POST", r"/api/repos/create", _create),
    _route("delete", "DELETE", r"/api/repos/delete", _delete),
    _route("validate", "POST", r"/api/validate-yaml", _validate),
    _route("preupload", "POST", rf"{_API}/preupload/{_REVISION}", _preupload),
    _route("commit", "POST", rf"{_API}/commit/{_REVISION}", _commit),
    _route("tree", "GET", rf"{_API}/tree/{_REVISION}(?:/(?P<path>.*))?", _tree),
    _route("paths-info", "POST", rf"{_API}/paths-info/{_REVISION}", _paths_info),
    _route("commits", "GET", rf"{_API}/commits/{_REVISION}", _commits),
    _route("branch", "POST DELETE", rf"{_API}/branch/{_REVISION}", _branch),
    _route("tag", "POST DELETE", rf"{_API}/tag/{_REVISION}", _tag),
    _route("refs", "GET", rf"{_API}/refs", _refs),
    _route("settings", "PUT", rf"{_API}/settings", _settings),
    _route("auth-check", "GET", rf"{_API}/auth-check(?P<write>/write)?", _auth_check),
    _route("info", "GET", rf"{_API}(?:/revision/{_REVISION})?", _info),
    _route("lfs-batch", "POST", rf"{_PLAIN}\.git/info/lfs/objects/batch", _lfs_batch),
    _route("lfs-verify", "POST", rf"{_PLAIN}\.git/info/lfs/objects/verify", _lfs_verify),
    _route("resolve-head", "HEAD", rf"{_PLAIN}/resolve/{_REVISION}/(?P<path>.+)", _resolve),
    _route("resolve-get", "GET", rf"{_PLAIN}/resolve/{_REVISION}/(?P<path>.+)", _resolve),
    _route("lfs-put", "PUT", _OBJECT, _lfs_put, "lfs"),
    _route("lfs-get", "GET HEAD", _OBJECT, _lfs_get, "lfs"),
)
ROUTE_NAMES: Final = frozenset(route.name for route in ROUTES)
