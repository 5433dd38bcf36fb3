"""What goes wrong with the Hub, on every route: bounded, told, nothing half-published or damaged kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hub.server import Fault, HubServer
from tunesmith import embedded

SERVER = """
import json, sys, time, traceback
import tunesmith
from tunesmith.verbs.show import Silent

class Notes(Silent):
    def __init__(self): self.notes = []
    def note(self, text): self.notes.append(text)

for line in sys.stdin:
    verb, words, named = json.loads(line)
    show, began = Notes(), time.monotonic()
    try:
        found = {"result": getattr(tunesmith, verb)(*words, **named, show=show)}
    except tunesmith.TunesmithError as error:
        found = {"error": str(error), "code": error.exit_code}
    except BaseException:
        found = {"bug": traceback.format_exc()}
    print(json.dumps(found | {"notes": show.notes, "seconds": time.monotonic() - began}), flush=True)
"""


class Client:
    """One process that calls the verbs, as a user with a token and little patience."""

    def __init__(self, hub: HubServer, cache: Path) -> None:
        env = {**os.environ, **hub.environment(), "HF_TOKEN": hub.token, "HF_HOME": str(cache),
               "TUNESMITH_HUB_WAIT": "0.02", "TUNESMITH_HUB_SILENCE": "0.5", "TUNESMITH_HUB_PATIENCE": "15",
               "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1",
               "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)

    def __call__(self, verb: str, *words: str, **named: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([verb, words, named]) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        assert "bug" not in found, found["bug"]
        return found


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        folder = embedded.path_of(embedded.BASE_NAME)
        assert folder is not None
        hub.add("model", "maker/sprout",
                {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        yield hub


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub, tmp_path_factory.mktemp("cache"))
    yield client
    client.process.kill()


def adapter_files(seed: int = 0) -> dict[str, bytes]:
    from tunesmith.model.lora import LoraSettings, peft_config_dict

    generator = torch.Generator().manual_seed(seed)
    state = {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": torch.randn(
            *shape, generator=generator
        )
        for side, shape in (("A", (4, 32)), ("B", (32, 4)))
    }
    config = peft_config_dict(LoraSettings(4, 8, 0.0,
                                           ["q_proj"])) | {"base_model_name_or_path": "embedded:sprout"}
    return {"adapter_config.json": json.dumps(config).encode(),
            "adapter_model.safetensors": safetensors.torch.save(state)}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    for name, content in adapter_files().items():
        (folder / name).write_bytes(content)
    return folder


#: Faults that pass: with one of them the command must come through.
PASSING = [429, 503, "reset", "hang", "truncate", "garbage", "applied-lost"]
FINAL = [401, 403, 404]
PUSH_ROUTES = ["whoami", "create", "validate", "preupload", "lfs-batch", "lfs-put", "lfs-verify", "commit",
               "info", "tree"]
PULL_ROUTES = ["info", "tree", "resolve-head", "resolve-get", "lfs-get"]
OPTIONS: dict[Any, dict[str, Any]] = {429: {"retry_after": 1}, "hang": {"seconds": 30.0}}
numbers = iter(range(10**6))


def published(hub: HubServer, repo: str) -> list[Any]:
    """Commits that hold the adapter's weights for the first time or anew."""
    if ("model", repo) not in hub.repositories:
        return []
    return [commit for commit in hub.commits("model", repo) if "adapter_model.safetensors" in commit.files]


def no_token(hub: HubServer, found: dict[str, Any]) -> None:
    assert hub.token not in json.dumps(found)
    assert all(entry.authorization is None for entry in hub.log
               if entry.origin == "lfs"), "the token went to another origin"


def met(hub: HubServer, fault: Fault, what: str, found: dict[str, Any]) -> None:
    """End the fault, print what came of it; skips where nothing asked that route."""
    hit = fault.hits
    hub.clear_faults()
    no_token(hub, found)
    outcome = "came through" if "result" in found else f"exit {found['code']}"
    print(f"FAULT {what}: {outcome if hit else 'never met'}, {found['seconds']:.1f} s, "
          f"notes {found['notes']}")
    if not hit:
        pytest.skip("this route is not asked")


@pytest.mark.parametrize(("route", "fault"), [
    *((route, fault) for route in PUSH_ROUTES for fault in [*PASSING, *FINAL, 409, 412]),
    *(("commit", fault) for fault in (408, 500, 502, 504))], ids=str)
def test_push(hub: HubServer, client: Client, adapter: Path, route: str, fault: Any) -> None:
    repo = f"tester/push-{next(numbers)}-{os.getpid()}"
    # one's own name is only asked for where it is needed
    name = repo.partition("/")[2] if route == "whoami" else repo
    # The base's licence is looked up by the same route: what is meant is the repository itself.
    fault_made = hub.fail(route, fault, times=1, match=repo if route == "info" else "",
                          **OPTIONS.get(fault, {}))
    first = client("push", str(adapter), name, base="maker/sprout")
    met(hub, fault_made, f"push {route} {fault}", first)
    if fault in PASSING or (route == "commit" and fault not in FINAL):
        assert "result" in first, first
    if "error" in first:
        assert first["code"] in (8, 9), first
        assert not published(hub, repo), "nothing half-published"
        assert "result" in client("push", str(adapter), name, base="maker/sprout")
    assert len(published(hub, repo)) == 1
    assert hub.repositories["model", repo].private
    again = client("push", str(adapter), name, base="maker/sprout")
    assert again["result"]["changed"] is False
    assert len(published(hub, repo)) == 1


@pytest.mark.parametrize(("route", "fault"), [
    *((route, fault) for route in ("create", "commit", "info")
      for fault in (429, 503, "reset", "hang", "garbage")),
    # The client itself would try these six times, and sleep as long as it is asked to.
    *((route, fault) for route in ("preupload", "lfs-put") for fault in (429, 503, "reset"))], ids=str)
def test_a_push_that_never_gets_through_ends(hub: HubServer, client: Client, adapter: Path, route: str,
                                             fault: Any) -> None:
    repo = f"tester/stuck-{next(numbers)}-{os.getpid()}"
    hub.fail(route, fault, times=None,
             **(OPTIONS.get(fault, {}) | ({"retry_after": 0} if fault == 429 else {})))
    found = client("push", str(adapter), repo, base="maker/sprout")
    hub.clear_faults()
    no_token(hub, found)
    assert found.get("code") == 8, found
    assert sum("Trying again" in note for note in found["notes"]) == 4, found["notes"]
    assert not published(hub, repo)
    assert "result" in client("push", str(adapter), repo, base="maker/sprout")


@pytest.mark.parametrize("route", ["create", "preupload", "lfs-put"])
def test_a_long_retry_after_is_not_waited_for(hub: HubServer, client: Client, adapter: Path,
                                              route: str) -> None:
    hub.fail(route, 429, times=None, retry_after=3600)
    before = len(hub.requests(route))
    found = client("push", str(adapter), f"tester/patience-{route}", base="maker/sprout")
    hub.clear_faults()
    assert found["code"] == 8
    assert len(hub.requests(route)) == before + 1


def test_a_busy_repository_is_not_asked_for_ever(hub: HubServer, client: Client, adapter: Path) -> None:
    """The client itself would ask again without a pause or an end."""
    words = {"message": "Cannot create repo: another conflicting operation is in progress"}
    hub.fail("create", 409, times=None, **words)
    began = len(hub.requests("create"))
    found = client("push", str(adapter), "tester/busy", base="maker/sprout")
    hub.clear_faults()
    assert found["code"] == 8
    assert len(hub.requests("create")) - began <= 5
    hub.fail("create", 409, times=2, **words)
    assert "result" in client("push", str(adapter), "tester/busy", base="maker/sprout")


def test_the_cache_serves_while_the_hub_is_down_and_says_so(hub: HubServer, client: Client,
                                                            tmp_path: Path) -> None:
    repo = f"tester/down-{os.getpid()}"
    hub.add("model", repo, adapter_files(7))
    commit = client("pull", repo, str(tmp_path / "one"))["result"]["commit"]
    hub.fail("info", 503, times=None)
    found = client("pull", repo, str(tmp_path / "two"))
    hub.clear_faults()
    assert found["result"]["commit"] == commit
    assert any("the copy in the cache" in note for note in found["notes"])


def test_someone_else_commits_meanwhile(hub: HubServer, client: Client, adapter: Path) -> None:
    """Their file stays, ours is there, each in a commit of its own."""
    hub.add("model", "tester/shared", {"README.md": b"# theirs\n", "notes.txt": b"theirs\n"}, private=True)
    hub.fail("commit", 412, times=2)
    found = client("push", str(adapter), "tester/shared", base="maker/sprout")
    assert found["result"]["changed"]
    files = hub.files("model", "tester/shared")
    assert files["notes.txt"] == b"theirs\n"
    assert b"LoRA adapter" in files["README.md"]


def test_a_public_repository_is_not_pushed_to_by_surprise(hub: HubServer, client: Client,
                                                          adapter: Path) -> None:
    hub.add("model", "tester/open", {"README.md": b"# open\n"})
    found = client("push", str(adapter), "tester/open", base="maker/sprout", private=True)
    assert found["code"] == 2
    assert not published(hub, "tester/open")
    assert client("push", str(adapter), "tester/open", base="maker/sprout")["result"]["private"] is False


def test_a_new_public_one_is_private_until_its_files_are_there(hub: HubServer, client: Client,
                                                               adapter: Path) -> None:
    hub.fail("commit", 503, times=None)
    client("push", str(adapter), "tester/shown", base="maker/sprout", private=False)
    assert hub.repositories["model", "tester/shown"].private
    hub.clear_faults()
    found = client("push", str(adapter), "tester/shown", base="maker/sprout", private=False)
    assert found["result"]["private"] is False
    assert not hub.repositories["model", "tester/shown"].private


@pytest.mark.parametrize("route", PULL_ROUTES)
@pytest.mark.parametrize("fault", [*PASSING[:-1], *FINAL, "flip"], ids=str)
def test_pull(hub: HubServer, client: Client, tmp_path: Path, route: str, fault: Any) -> None:
    repo = f"tester/pull-{next(numbers)}-{os.getpid()}"
    files = adapter_files(next(numbers))
    hub.add("model", repo, files)
    fault_made = hub.fail(route, fault, times=1, **OPTIONS.get(fault, {}))
    first = client("pull", repo, str(tmp_path / "here"))
    met(hub, fault_made, f"pull {route} {fault}", first)
    if fault not in FINAL:
        assert "result" in first, first
    if "error" in first:
        assert first["code"] in (8, 9)
        assert not (tmp_path / "here").exists()
        assert "result" in client("pull", repo, str(tmp_path / "here"))
    for name, content in files.items():
        assert (tmp_path / "here" / name).read_bytes() == content


@pytest.mark.parametrize("route", ["resolve-get", "lfs-get"])
def test_what_is_flipped_twice_is_refused_and_not_kept(hub: HubServer, client: Client, tmp_path: Path,
                                                       route: str) -> None:
    repo = f"tester/flipped-{next(numbers)}-{os.getpid()}"
    hub.add("model", repo, adapter_files(next(numbers)))
    hub.fail(route, "flip", times=None)
    found = client("pull", repo, str(tmp_path / "here"))
    hub.clear_faults()
    assert found["code"] == 9
    assert not (tmp_path / "here").exists()
    assert "result" in client("pull", repo, str(tmp_path / "here")), "nothing damaged stayed in the cache"


def test_a_file_that_rots_in_the_cache_is_seen(hub: HubServer, client: Client, tmp_path: Path,
                                               tmp_path_factory: pytest.TempPathFactory) -> None:
    repo = f"tester/rotten-{os.getpid()}"
    files = adapter_files(5)
    hub.add("model", repo, files)
    cache = tmp_path_factory.mktemp("rotten")
    other = Client(hub, cache)
    assert "result" in other("pull", repo, str(tmp_path / "one"))
    (blob,) = (path.resolve() for path in cache.rglob("adapter_model.safetensors"))
    content = bytearray(blob.read_bytes())
    content[-3] ^= 1
    blob.write_bytes(content)
    found = other("pull", repo, str(tmp_path / "two"))
    other.process.kill()
    assert "result" in found, found
    assert any("downloading it again" in note for note in found["notes"])
    assert (tmp_path / "two/adapter_model.safetensors").read_bytes() == files["adapter_model.safetensors"]
