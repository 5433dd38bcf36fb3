"""The Hub of our tests, tried with the real client: it does what the Hub does, and fails when told to."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.errors import RevisionNotFoundError as RevisionNotFound
from huggingface_hub.utils import close_session, disable_progress_bars, enable_progress_bars, get_session

from hub.server import HubServer

ID = "tester/adapter"
CARD = b"---\nlicense: mit\nbase_model: tester/base\n---\n# An adapter\n"
FILES = {"README.md": CARD, "adapter_config.json": b"{}\n", "empty.txt": b"", "notes/a b.txt": "ä\n".encode(),
         "adapter_model.safetensors": bytes(range(256)) * 400}
LARGE = "adapter_model.safetensors"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[float]]:
    """This process's client as `environment()` sets one up; how long it waits between tries, unwaited."""
    waits: list[float] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    clock = SimpleNamespace(sleep=waits.append, time=time.time)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    monkeypatch.setattr("huggingface_hub.file_download.time", clock)
    disable_progress_bars()
    close_session()
    yield waits
    close_session()
    enable_progress_bars()


def api(hub: HubServer, token: str | bool | None = None) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token if token is None else token)


def publish(hub: HubServer, files: dict[str, bytes] = FILES, **options: Any) -> str:
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return str(api(hub).create_commit(ID, operations, commit_message="Publish", **options).oid)


def fetch(hub: HubServer, cache: Path, **options: Any) -> dict[str, bytes]:
    """All files of a snapshot in a cache of its own."""
    options = {"token": hub.token, "endpoint": hub.url, "cache_dir": cache, "etag_timeout": 1,
               "max_workers": 1, **options}
    folder = Path(snapshot_download(ID, **options))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetch_one(hub: HubServer, cache: Path, path: str) -> bytes:
    return Path(hf_hub_download(ID, path, endpoint=hub.url, token=hub.token, cache_dir=cache,
                                etag_timeout=1)).read_bytes()


def names(error: BaseException | None) -> str:
    """The types of an exception and of what it came from."""
    return f"{type(error).__name__} {names(error.__cause__)}" if error is not None else ""


# What the Hub does


def test_who_a_token_is(hub: HubServer) -> None:
    found = api(hub).whoami()
    assert (found["name"], found["orgs"][0]["name"],
            found["auth"]["accessToken"]["role"]) == ("tester", "choir", "write")
    assert api(hub, hub.read_token).whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api(hub, "hf_unknown").whoami()


def test_create(hub: HubServer) -> None:
    url = api(hub).create_repo(ID, private=True)
    assert (url.repo_id, url) == (ID, f"{hub.url}/{ID}")
    assert hub.repositories["model", ID].private
    assert list(hub.files("model", ID)) == [".gitattributes"]
    assert api(hub).create_repo(ID, private=False, exist_ok=True).repo_id == ID
    assert hub.repositories["model", ID].private
    with pytest.raises(HfHubHTTPError, match="already created"):
        api(hub).create_repo(ID)
    assert api(hub).create_repo("choir/rows", repo_type="dataset", visibility="public").repo_type == "dataset"
    for id, token in (("stranger/x", hub.token), ("tester/x", hub.read_token)):
        with pytest.raises(HfHubHTTPError, match="don't have the rights"):
            api(hub, token).create_repo(id)
    api(hub).delete_repo(ID)
    assert ("model", ID) not in hub.repositories


def test_publish(hub: HubServer) -> None:
    api(hub).create_repo(ID, private=True)
    start = api(hub).model_info(ID).sha
    oid = publish(hub, parent_commit=start)
    assert hub.files("model", ID) == {**FILES, ".gitattributes": hub.files("model", ID)[".gitattributes"]}
    assert [(commit.oid, commit.parent)
            for commit in hub.commits("model", ID)] == [(start, None), (oid, start)]
    assert hub.commits("model", ID)[-1].lfs == {LARGE: hashlib.sha256(FILES[LARGE]).hexdigest()}
    steps = [entry.route for entry in hub.log[2:]]
    assert steps == ["validate", "preupload", "lfs-batch", "lfs-put", "lfs-verify", "commit"]


def test_the_token_never_goes_to_the_large_files(hub: HubServer, tmp_path: Path) -> None:
    hub.add("model", ID, {})
    publish(hub)
    assert fetch(hub, tmp_path) == FILES
    assert get_session().get(f"{hub.url}/{ID}/resolve/main/{LARGE}",
                             headers={"authorization": f"Bearer {hub.token}"}).content
    assert {entry.origin for entry in hub.log} == {"hub", "lfs"}
    assert {entry.authorization for entry in hub.log if entry.origin == "lfs"} == {None}
    assert {entry.authorization for entry in hub.log if entry.origin == "hub"} == {f"Bearer {hub.token}"}


def test_a_moved_parent(hub: HubServer) -> None:
    start = hub.add("model", ID, {"a": b"1"})
    moved = hub.add("model", ID, {"a": b"2"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        publish(hub, parent_commit=start)
    assert caught.value.response.status_code == 412
    assert hub.commits("model", ID)[-1].oid == moved
    assert publish(hub, parent_commit=moved) == hub.commits("model", ID)[-1].oid


def test_what_is_there_is_not_sent_again(hub: HubServer) -> None:
    hub.add("model", ID, FILES)
    assert publish(hub) == hub.commits("model", ID)[0].oid
    assert not hub.requests("commit")
    hub.log.clear()
    publish(hub, {"copy.bin": FILES[LARGE]})  # the same content at another path
    assert not hub.requests("lfs-put")


def test_large_by_name_by_size_and_by_content(hub: HubServer) -> None:
    hub.lfs_threshold = 1000
    hub.add("model", ID, {})
    publish(hub, {"a.gguf": b"text", "b.txt": b"x" * 1001, "c.dat": b"\0", "d.txt": b"x" * 1000,
                  "e.safetensors": b""})
    assert sorted(hub.commits("model", ID)[-1].lfs) == ["a.gguf", "b.txt", "c.dat"]


def test_deletions(hub: HubServer) -> None:
    hub.add("model", ID, FILES)
    gone = [CommitOperationDelete("notes/"), CommitOperationDelete(LARGE)]
    api(hub).create_commit(ID, gone, commit_message="Less", commit_description="Why")
    assert sorted(hub.files("model", ID)) == ["README.md", "adapter_config.json", "empty.txt"]
    assert hub.commits("model", ID)[-1].message == "Less\n\nWhy"
    with pytest.raises(RemoteEntryNotFoundError):
        api(hub).delete_file("none.txt", ID)


def test_a_commit_is_all_or_nothing(hub: HubServer) -> None:
    head = hub.add("model", ID, {"a": b"1"})
    good = {"key": "file",
            "value": {"path": "b", "encoding": "base64", "content": base64.b64encode(b"2").decode()}}
    bad = [{"key": "lfsFile", "value": {"path": "c", "oid": "0" * 64, "size": 1}},
           {"key": "file", "value": {"path": "../c"}}, {"key": "deletedFile", "value": {"path": "none"}},
           {"key": "unknown", "value": {"path": "c"}}]
    for line in bad:
        body = "\n".join(json.dumps(part)
                         for part in ({"key": "header", "value": {"summary": "x"}}, good, line))
        answer = get_session().post(f"{hub.url}/api/models/{ID}/commit/main", content=body.encode(),
                                    headers={"authorization": f"Bearer {hub.token}"})
        assert answer.status_code in (400, 404), answer.text
    assert ([commit.oid for commit in hub.commits("model", ID)],
            hub.files("model", ID)) == ([head], {"a": b"1"})


def test_large_files_are_checked(hub: HubServer) -> None:
    hub.add("model", ID, {})
    oid = hashlib.sha256(b"right").hexdigest()
    batch = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": 5}]}
    asked = get_session().post(f"{hub.url}/{ID}.git/info/lfs/objects/batch", json=batch,
                               headers={"authorization": f"Bearer {hub.token}"}).json()
    href = asked["objects"][0]["actions"]["upload"]["href"]
    assert href.startswith(hub.lfs_url)
    assert hub.lfs_url.startswith("http://localhost:")
    answers = [get_session().put(href, content=b"wrong"), get_session().put(href, content=b"longer"),
               get_session().put(href, content=b"right", headers={"authorization": f"Bearer {hub.token}"}),
               get_session().put(href.replace("signature=", "signature=0"), content=b"right")]
    assert [answer.status_code for answer in answers] == [400, 400, 400, 403]
    assert not hub.repositories["model", ID].objects
    assert get_session().put(href, content=iter([b"ri", b"ght"])).status_code == 200  # in chunks
    assert hub.repositories["model", ID].objects == {oid: b"right"}


def test_snapshots(hub: HubServer, tmp_path: Path) -> None:
    first = hub.add("model", ID, {"a": b"1"})
    api(hub).create_tag(ID, tag="v1")
    hub.add("model", ID, FILES)
    api(hub).create_branch(ID, branch="side/way", revision=first)
    assert fetch(hub, tmp_path / "1") == {"a": b"1", **FILES}
    for revision in (first, "v1", "side/way"):
        assert fetch(hub, tmp_path / revision.replace("/", "-"), revision=revision) == {"a": b"1"}
    with pytest.raises(RevisionNotFound):
        fetch(hub, tmp_path / "2", revision="none")
    with pytest.raises(RemoteEntryNotFoundError):
        fetch_one(hub, tmp_path / "3", "none.txt")


def test_what_is_told_about_a_repository(hub: HubServer) -> None:
    oid = hub.add("model", ID, FILES)
    info = api(hub).model_info(ID, files_metadata=True)
    assert (info.sha, info.private, info.gated, info.card_data["license"]) == (oid, False, False, "mit")
    sizes = {file.rfilename: file.size for file in info.siblings}
    assert sizes == {path: len(data) for path, data in FILES.items()}
    tree = {entry.path: entry for entry in api(hub).list_repo_tree(ID, recursive=True)}
    assert sorted(tree) == sorted([*FILES, "notes"])
    assert (tree[LARGE].lfs.sha256, tree[LARGE].size) == (hashlib.sha256(FILES[LARGE]).hexdigest(),
                                                          len(FILES[LARGE]))
    assert [entry.path for entry in api(hub).list_repo_tree(ID, "notes", expand=True)] == ["notes/a b.txt"]
    assert [entry.path for entry in api(hub).get_paths_info(ID, [LARGE, "none", "notes"])] == [LARGE, "notes"]
    assert [commit.title for commit in api(hub).list_repo_commits(ID)] == ["Seeded"]
    api(hub).create_branch(ID, branch="side")
    assert [ref.name for ref in api(hub).list_repo_refs(ID).branches] == ["main", "side"]
    api(hub).update_repo_settings(ID, private=True)
    assert hub.repositories["model", ID].private
    api(hub).auth_check(ID, write=True)


@pytest.mark.parametrize(("head", "complaint"), [
    ("license: [", "YAML Metadata Error"), ("just words", "must be a mapping"),
    ("tags: music", '"tags" must be an array'), ("base_model: /home/me/base", "is not valid. Use a model id"),
    ("language: english", "ISO 639-1"),
])
def test_the_card_is_read(hub: HubServer, head: str, complaint: str) -> None:
    hub.add("model", ID, {})
    with pytest.raises(ValueError, match=complaint):
        publish(hub, {"README.md": f"---\n{head}\n---\n# Hi\n".encode()})
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        publish(hub, {"README.md": b"# Hi\n"})


# Who may do what


def test_a_private_repository(hub: HubServer, tmp_path: Path) -> None:
    hub.add("model", ID, FILES, private=True)
    hub.tokens["hf_stranger"] = {"name": "stranger", "orgs": [], "write": True}
    for token, error, status in ((False, RepositoryNotFoundError, 401),
                                 ("hf_stranger", RepositoryNotFoundError, 404),
                                 ("hf_unknown", HfHubHTTPError, 401)):
        for ask in (
            lambda token=token: api(hub, token).model_info(ID),
            lambda token=token: fetch(hub, tmp_path, token=token),
        ):
            with pytest.raises(error) as caught:
                ask()
            assert (type(caught.value), caught.value.response.status_code) == (error, status)
    assert fetch(hub, tmp_path, token=hub.read_token) == FILES


def test_a_gated_repository(hub: HubServer, tmp_path: Path) -> None:
    hub.add("model", ID, FILES, gated=True)
    hub.tokens["hf_stranger"] = {"name": "stranger", "orgs": [], "write": False}
    for token in (False, "hf_stranger"):
        assert api(hub, token).model_info(ID).gated == "manual"
        with pytest.raises(GatedRepoError):
            api(hub, token).auth_check(ID)
        with pytest.raises(GatedRepoError):
            fetch(hub, tmp_path, token=token)
    hub.repositories["model", ID].granted.add("stranger")
    assert fetch(hub, tmp_path, token="hf_stranger") == FILES


def test_who_only_reads_writes_nothing(hub: HubServer) -> None:
    hub.add("model", ID, {})
    hub.add("model", "stranger/open", {})
    for token, id in ((hub.read_token, ID), (hub.token, "stranger/open")):
        with pytest.raises(HfHubHTTPError, match="don't have the rights") as caught:
            api(hub, token).create_commit(id, [CommitOperationAdd("a", b"1")], commit_message="x")
        assert caught.value.response.status_code == 403
    assert len(hub.commits("model", ID)) == 1


# What goes wrong on purpose

#: Route, fault, what the client does with it, requests on the route, its wait before each further try [s].
OUTCOMES: list[tuple[str, int | str, str, int, list[float]]] = [
    ("whoami", 429, "HfHubHTTPError", 1, []),
    ("whoami", "reset", "ReadError", 1, []),
    ("whoami", "garbage", "JSONDecodeError", 1, []),
    ("create", 503, "HfHubHTTPError", 1, []),
    ("create", "applied-lost", "ReadError", 1, []),
    ("create", "truncate", "RemoteProtocolError", 1, []),
    ("validate", 500, "HfHubHTTPError", 1, []),
    ("preupload", 401, "HfHubHTTPError", 1, []),
    ("preupload", 429, "ok", 2, [8.0]),
    ("preupload", "truncate", "ok", 2, [1]),
    ("lfs-batch", 504, "ok", 2, [1]),
    ("lfs-batch", "garbage", "JSONDecodeError", 1, []),
    ("lfs-put", 403, "RuntimeError HfHubHTTPError", 1, []),
    ("lfs-put", 500, "ok", 2, [1]),
    ("lfs-put", "reset", "ok", 2, [1]),
    ("lfs-put", "applied-lost", "ok", 2, [1]),
    ("lfs-put", "garbage", "RuntimeError HfHubHTTPError", 1, []),  # nothing is there when it is verified
    ("lfs-verify", "reset", "ok", 2, [1]),
    ("commit", 409, "HfHubHTTPError", 1, []),
    ("commit", 412, "HfHubHTTPError", 1, []),
    ("commit", 429, "HfHubHTTPError", 1, []),
    ("commit", 503, "HfHubHTTPError", 1, []),
    ("commit", "reset", "ReadError", 1, []),
    ("commit", "applied-lost", "ReadError", 1, []),
    ("commit", "truncate", "RemoteProtocolError", 1, []),
    ("commit", "slow", "ok", 1, []),
    ("info", 404, "LocalEntryNotFoundError HfHubHTTPError", 1, []),
    ("info", 503, "LocalEntryNotFoundError HfHubHTTPError", 1, []),
    ("info", "reset", "ReadError", 1, []),
    ("tree", "garbage", "JSONDecodeError", 1, []),
    ("resolve-head", 403, "LocalEntryNotFoundError HfHubHTTPError", 1, []),
    ("resolve-head", 500, "ok", 2, []),
    ("resolve-head", "reset", "ReadError", 1, []),
    ("resolve-head", "hang", "ok", 2, []),
    ("resolve-head", "garbage", "LocalEntryNotFoundError FileMetadataError", 1, []),
    ("resolve-get", 429, "ok", 2, [8.0]),
    ("resolve-get", 503, "HfHubHTTPError", 1, []),
    ("resolve-get", "reset", "ReadError", 1, []),
    ("resolve-get", "hang", "ok", 2, [1]),
    ("lfs-get", 403, "HfHubHTTPError", 1, []),
    ("lfs-get", "truncate", "ok", 2, [1]),
    ("lfs-get", "garbage", "OSError", 1, []),
    ("lfs-get", "flip", "other bytes", 1, []),
]
FAULT_OPTIONS: dict[int | str, dict[str, Any]] = {429: {"retry_after": 7}, "hang": {"seconds": 60},
                                                  "slow": {"seconds": 0.2}}


def work(hub: HubServer, route: str, cache: Path) -> str:
    """Do what leads to the route."""
    if route == "whoami":
        api(hub).whoami()
    elif route == "create":
        api(hub).create_repo("tester/new")
    elif route in ("validate", "preupload", "lfs-batch", "lfs-put", "lfs-verify", "commit"):
        publish(hub, {"README.md": CARD, "b.bin": b"1"})
    elif route == "resolve-get":
        return "ok" if fetch_one(hub, cache, "README.md") == FILES["README.md"] else "other bytes"
    elif route in ("resolve-head", "lfs-get"):
        return "ok" if fetch_one(hub, cache, LARGE) == FILES[LARGE] else "other bytes"
    else:
        return "ok" if fetch(hub, cache) == FILES else "other bytes"
    return "ok"


@pytest.mark.parametrize(("route", "fault", "outcome", "requests", "pauses"), OUTCOMES,
                         ids=[f"{route}-{fault}" for route, fault, *_ in OUTCOMES])
def test_faults(hub: HubServer, waits: list[float], tmp_path: Path, route: str, fault: int | str,
                outcome: str, requests: int, pauses: list[float]) -> None:
    hub.add("model", ID, FILES)
    hub.fail(route, fault, **FAULT_OPTIONS.get(fault, {}))
    assert [left.kind for left in hub.faults_left()] == [fault]
    try:
        found = work(hub, route, tmp_path)
    except Exception as error:
        found = names(error)
    assert (found + " ").startswith(outcome + " "), found
    entries = hub.requests(route)
    assert (len(entries), waits, hub.faults_left()) == (requests, pauses, [])
    assert [entry.fault for entry in entries] == [fault] + [None] * (requests - 1)
    if isinstance(fault, int):
        assert entries[0].status == fault
    done = {"create": ("model", "tester/new") in hub.repositories,
            "commit": len(hub.commits("model", ID)) == 2}
    if route in done:
        assert done[route] == (fault in ("applied-lost", "truncate", "slow"))


def test_a_download_goes_on_where_it_was_cut(hub: HubServer, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the client keeps whole chunks only
    hub.add("model", ID, FILES)
    hub.fail("lfs-get", "truncate", keep=40_500)
    assert fetch_one(hub, tmp_path, LARGE) == FILES[LARGE]
    assert [(entry.headers.get("range"), entry.status) for entry in hub.requests("lfs-get")] == [
        (None, 200), ("bytes=40000-", 206)]


@pytest.mark.parametrize(("asked", "status", "found"), [
    ("bytes=2-4", 206, b"cde"), ("bytes=7-", 206, b"hij"), ("bytes=-3", 206, b"hij"),
    ("bytes=5-99", 206, b"fghij"), ("bytes=10-", 416, None), ("words", 416, None),
])
def test_ranges(hub: HubServer, asked: str, status: int, found: bytes | None) -> None:
    hub.add("dataset", ID, {"a.txt": b"abcdefghij"})
    answer = get_session().get(f"{hub.url}/datasets/{ID}/resolve/main/a.txt", headers={"Range": asked})
    assert (answer.status_code, answer.content if found else None) == (status, found)


def test_which_request_is_hit(hub: HubServer) -> None:
    hub.add("model", ID, FILES)
    hub.fail("resolve-head", 500, after=1, times=2)
    hub.fail("resolve-head", 501, match="README")
    hub.fail("*", 502, times=None, match="never")
    heads = [get_session().head(f"{hub.url}/{ID}/resolve/main/{path}").status_code
             for path in ("empty.txt", "README.md", "empty.txt", "README.md", "README.md")]
    assert heads == [200, 500, 500, 501, 200]
    assert [fault.kind for fault in hub.faults_left()] == [502]
    hub.clear_faults()
    assert not hub.faults_left()
    for route, fault, options in (("none", 500, {}), ("commit", "none", {}), ("commit", 200, {}),
                                  ("commit", "flip", {"by": 2})):
        with pytest.raises(ValueError, match="no "):
            hub.fail(route, fault, **options)


def test_the_fields_of_an_injected_answer(hub: HubServer) -> None:
    hub.fail("create", 409, fields={"url": f"{hub.url}/{ID}"})
    assert api(hub).create_repo(ID, exist_ok=True).repo_id == ID
    hub.fail("create", 409, 3, message="Cannot create repo: another conflicting operation is in progress")
    assert api(hub).create_repo(ID).repo_id == ID
    assert len(hub.requests("create")) == 5
    hub.fail("info", 401, code="RepoNotFound")
    with pytest.raises(RepositoryNotFoundError):
        api(hub).model_info(ID)


@pytest.mark.parametrize("early", [False, True])
def test_a_reset_is_one(hub: HubServer, early: bool) -> None:
    hub.fail("create", "reset", early=early)
    with socket.create_connection(("127.0.0.1", int(hub.url.rpartition(":")[2]))) as plain:
        plain.sendall(b"POST /api/repos/create HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
                      + (b"" if early else b"{}"))
        with pytest.raises(ConnectionResetError):
            plain.recv(1)
    assert hub.requests("create")[0].status is None


def test_leaving_releases_what_hangs() -> None:
    outcome: list[str] = []

    def ask(hub: HubServer) -> None:
        try:
            api(hub).whoami()
        except Exception as error:
            outcome.append(names(error))

    with HubServer() as hub:
        hub.fail("whoami", "hang")
        asking = threading.Thread(target=ask, args=(hub,), daemon=True)
        asking.start()
        while not hub.requests("whoami"):
            time.sleep(0.01)
    asking.join(10)
    assert not asking.is_alive()
    assert outcome[0].startswith(("ReadError", "RemoteProtocolError"))


def test_a_late_answer(hub: HubServer) -> None:
    hub.fail("whoami", "hang", seconds=0.1, answer=True)
    assert api(hub).whoami()["name"] == "tester"


def test_mistakes_of_the_server_come_out() -> None:
    def raise_one() -> None:
        with HubServer() as hub:
            hub.repositories["model", ID] = "no repository"  # type: ignore[assignment]
            with pytest.raises(HfHubHTTPError, match="A mistake of the test server"):
                api(hub).model_info(ID)

    with pytest.raises(RuntimeError, match="mistakes of the test server"):
        raise_one()


# Other processes


def test_data_sets_by_id_in_another_process(hub: HubServer, tmp_path: Path) -> None:
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["c", "d"]}), table)
    hub.add("dataset", "tester/lines", {"rows.jsonl": b'{"text": "a"}\n{"text": "b"}\n'})
    hub.add("dataset", "choir/table", {"README.md": CARD, "data/train-0.parquet": table.getvalue()},
            private=True)
    code = ("import datasets, json, sys\n"
            "print(json.dumps([datasets.load_dataset(id)['train']['text'][:] for id in sys.argv[1:]]))")
    env = {**os.environ, **hub.environment(), "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, "tester/lines", "choir/table"], env=env,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["a", "b"], ["c", "d"]]
    assert {entry.authorization for entry in hub.requests("lfs-get")} == {None}


def test_the_environment_is_all_that_a_process_needs(hub: HubServer, tmp_path: Path) -> None:
    hub.add("model", ID, FILES, private=True)
    code = ("import huggingface_hub as h, sys\n"
            "h.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])\n"
            "print(h.snapshot_download(sys.argv[1]))")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "b.safetensors").write_bytes(b"new")
    env = {**os.environ, **hub.environment(), "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code, ID, str(tmp_path / "new")], env=env,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert hub.files("model", ID) == {**FILES, "b.safetensors": b"new"}
    assert sorted(path.name for path in Path(done.stdout.split("\n")[0]).iterdir()) == sorted(
        {path.split("/")[0] for path in hub.files("model", ID)})
