"""Which failures of a call to the Hub are tried again, what they mean, and which are mistakes of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.utils import close_session, disable_progress_bars, enable_progress_bars

from hub.server import HubServer
from tunesmith.errors import Kind, NetworkError, TunesmithError
from tunesmith.hub.calls import call
from tunesmith.hub.client import HubState, quiet
from tunesmith.model.files import explain_base

ID = "maker/base"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub, and this process's client as one that asks it without much patience."""
    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_DOWNLOAD_TIMEOUT": 1,
                        "HF_HUB_CACHE": str(tmp_path / "cache"),
                        "HF_TOKEN_PATH": str(tmp_path / "no-token")}.items():
        monkeypatch.setattr(constants, name, value)
    for name, word in {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1,localhost",
                       "TUNESMITH_HUB_WAIT": "0.01"}.items():
        monkeypatch.setenv(name, word)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(HubState, "down", False)
    disable_progress_bars()
    close_session()
    with HubServer() as hub:
        hub.add("model", ID, {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40})
        yield hub
    close_session()
    enable_progress_bars()


def info(hub: HubServer, name: str = ID) -> Any:
    return HfApi(endpoint=hub.url).repo_info(name)


def files(hub: HubServer, cache: Path) -> str:
    return snapshot_download(ID, endpoint=hub.url, cache_dir=cache, max_workers=1, etag_timeout=1)


class OfOurs(Exception):
    """Of no kind that anything could be expected to raise."""


def raising(error: Exception) -> Any:
    def act(*anything: Any) -> Any:
        raise error
    return act


MISTAKES: list[Any] = [
    lambda: {}["missing"],
    lambda: None.missing,
    lambda: len(3),
    lambda: int("x"),  # type: ignore[attr-defined, arg-type]
    lambda: json.dumps(object()),
    lambda: b"\xff".decode(),
    lambda: 1 / 0,
    lambda: next(iter([])),
    raising(RuntimeError("ours")),
    raising(OfOurs("ours")),
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_ours_comes_out_at_once(mistake: Any) -> None:
    tries = []

    def action() -> Any:
        tries.append(1)
        return mistake()

    with pytest.raises(Exception) as caught:  # noqa: PT011
        call("it", action, quiet)
    assert len(tries) == 1
    assert not isinstance(caught.value, TunesmithError)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_while_a_refusal_is_handled_is_no_refusal(hub: HubServer, mistake: Any) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    def action() -> Any:
        try:
            return info(hub, "maker/other")
        except RepositoryNotFoundError:
            return mistake()

    with pytest.raises(Exception) as caught:  # noqa: PT011
        call("it", action, quiet)
    assert not isinstance(caught.value, TunesmithError | RepositoryNotFoundError)
    assert len(hub.requests("info")) == 1


@pytest.mark.parametrize("error", [TypeError("ours"), OfOurs("ours"), BrokenPipeError(32, "ours"),
                                   RuntimeError("ours")], ids=repr)
def test_a_mistake_in_what_the_client_calls_back_is_ours(hub: HubServer, tmp_path: Path,
                                                         error: Exception) -> None:
    """It tells of a download that broke off, in the middle of the client's own code."""
    hub.fail("lfs-get", "truncate")
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        raise error

    with pytest.raises(type(error), match="ours"):
        call(ID, lambda: files(hub, tmp_path), tell)
    assert told == ["A download broke off; going on from there."]


def test_a_client_that_is_used_wrongly_is_a_mistake_too() -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call("the card", lambda: ModelCard(3), quiet)  # type: ignore[arg-type]
    assert not isinstance(caught.value, TunesmithError)


@pytest.mark.parametrize("fault", ["garbage", "truncate", "reset", 503])
def test_an_answer_that_the_client_can_make_nothing_of_is_tried_again(hub: HubServer, fault: Any) -> None:
    hub.fail("info", fault, times=None)
    told: list[str] = []
    with pytest.raises(NetworkError) as caught:
        call(ID, lambda: info(hub), told.append)
    assert len(hub.requests("info")) == 5
    assert sum("Trying again" in line for line in told) == 4
    assert caught.value.kind is Kind.UNREACHABLE


@pytest.mark.parametrize(("name", "status", "kind", "code"), [
    ("maker/other", None, Kind.NO_SUCH_REPOSITORY, 3), (ID, 503, Kind.UNREACHABLE, 8), (ID, 403, None, 8)],
                         ids=str)
def test_what_is_wrong_with_a_base_keeps_its_kind(hub: HubServer, name: str, status: int | None,
                                                  kind: Kind | None, code: int) -> None:
    if status is not None:
        hub.fail("info", status, times=None)
    with pytest.raises(TunesmithError) as caught:
        call(name, lambda: HfApi(endpoint=hub.url, token=hub.token).repo_info(name), quiet,
             explain=explain_base)
    assert (caught.value.kind, caught.value.exit_code, caught.value.setting) == (kind, code, "model.base")
    assert caught.value.message.startswith(f"model.base: {name}: ")


def test_an_unknown_revision_has_its_kind(hub: HubServer) -> None:
    with pytest.raises(TunesmithError) as caught:
        call(ID, lambda: HfApi(endpoint=hub.url).repo_info(ID, revision="gone"), quiet, explain=explain_base)
    assert (caught.value.kind, caught.value.exit_code) == (Kind.NO_SUCH_REVISION, 3)


FULL = """
import resource, sys
import tunesmith
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
try:
    {call}
except tunesmith.TunesmithError as error:
    print(type(error).__name__, error.exit_code, error.kind.name, str(error), sep="|")
"""


@pytest.mark.parametrize(("call", "limit"), [
    ("from tunesmith.model.files import locate_base; locate_base('maker/base', None)", 4096),
    ("tunesmith.pull('maker/base', sys.argv[2])", 4096),
    ("from tunesmith.data.sources import read_source; read_source('maker/rows', 'train')", 4096),
    # What `datasets` writes of them is the larger file.
    ("from tunesmith.data.sources import read_source; read_source('maker/rows', 'train')", 13000)],
    ids=["base", "adapter", "rows", "rows-made"])
def test_a_full_disk_is_a_full_disk(hub: HubServer, tmp_path: Path, call: str, limit: int) -> None:
    """As good as full: no file may become longer than the limit."""
    hub.add("model", ID, {"adapter_model.safetensors": bytes(10000), "adapter_config.json": b"{}"})
    hub.add("dataset", "maker/rows", {"train.jsonl": b'{"a": [%s]}\n' % b",".join([b"1"] * 5000)})
    env = {**os.environ, **hub.environment(), "HF_HOME": str(tmp_path), "TUNESMITH_HUB_WAIT": "0.01"}
    done = subprocess.run([sys.executable, "-c", FULL.format(call=call), str(limit), str(tmp_path / "out")],
                          capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    name, code, kind, words = done.stdout.strip().split("|")
    assert (name, code, kind) == ("DiskError", "7", "DISK_FULL"), words
    assert "the disk is full" in words
    assert str(tmp_path) in words or "HF_HOME" in words


def test_a_failure_of_the_client_s_fast_transfers_is_read(hub: HubServer, monkeypatch: pytest.MonkeyPatch,
                                                          tmp_path: Path) -> None:
    """They tell of the disk in words alone."""
    from types import SimpleNamespace

    from huggingface_hub import file_download

    (tmp_path / "file").touch()
    found = SimpleNamespace(endpoint=hub.url, access_token="x", expiration_unix_epoch=2**31)
    monkeypatch.setattr("huggingface_hub.utils._xet.refresh_xet_connection_info", lambda **named: found)
    asked: Any = SimpleNamespace(file_hash="a" * 64, refresh_route=hub.url)
    with pytest.raises(TunesmithError) as caught:
        call(ID, lambda: file_download.xet_get(incomplete_path=tmp_path / "file/in/a/file",
                                               xet_file_data=asked, headers={}), quiet)
    assert caught.value.exit_code == 7
    assert "HF_HOME" in caught.value.hint
