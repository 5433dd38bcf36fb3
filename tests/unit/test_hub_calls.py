"""Which failures of a call to the Hub are tried again, and which are mistakes of ours."""

from __future__ import annotations

import errno
import importlib
import json
from typing import Any

import pytest

from tunesmith.errors import Kind, NetworkError, TunesmithError
from tunesmith.hub.calls import call, quiet
from tunesmith.model.files import explain_base


@pytest.mark.parametrize("mistake", [lambda: {}["missing"], lambda: None.missing, lambda: len(3), lambda: int("x"),  # type: ignore[attr-defined, arg-type]
                                     lambda: json.dumps(object()), lambda: b"\xff".decode()])
def test_a_mistake_of_ours_comes_out_at_once(mistake: Any) -> None:
    tries = []

    def action() -> Any:
        tries.append(1)
        return mistake()

    with pytest.raises((KeyError, AttributeError, TypeError, ValueError)):
        call("it", action, quiet)
    assert len(tries) == 1


def test_an_answer_that_the_client_can_make_nothing_of_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import ModelCard

    monkeypatch.setenv("TUNESMITH_HUB_WAIT", "0.01")
    monkeypatch.setattr("tunesmith.hub.calls.offline", lambda: False)
    tries = []

    def action() -> Any:
        tries.append(1)
        return ModelCard(3)  # type: ignore[arg-type]

    with pytest.raises(NetworkError):
        call("it", action, quiet)
    assert len(tries) == 5


def full() -> Any:
    raise OSError(errno.ENOSPC, "No space left on device", "/cache/blob")


@pytest.mark.parametrize(("failure", "kind", "code"), [
    (full, Kind.DISK_FULL, 7), (lambda: answer(404, "RepoNotFound"), Kind.NO_SUCH_REPOSITORY, 3),
    (lambda: answer(404, "RevisionNotFound"), Kind.NO_SUCH_REVISION, 3), (lambda: answer(503), Kind.UNREACHABLE, 8),
    (lambda: answer(403), None, 8)], ids=["full", "repository", "revision", "busy", "forbidden"])
def test_a_failure_of_the_hub_keeps_its_kind_and_code_where_it_is_about_a_base(
        failure: Any, kind: Kind | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.hub.calls.offline", lambda: False)
    with pytest.raises(TunesmithError) as caught:
        call("maker/base", failure, quiet, attempts=1, explain=explain_base)
    assert (caught.value.kind, caught.value.exit_code, caught.value.setting) == (kind, code, "model.base")
    assert caught.value.message.startswith("model.base: maker/base")


def answer(status: int, code: str = "") -> Any:
    """What the client makes of an answer."""
    from huggingface_hub.utils import _http, hf_raise_for_status

    library: Any = _http.default_client_factory().__class__.__module__.partition(".")[0]
    httpx = importlib.import_module(library)
    request = httpx.Request("GET", "https://huggingface.co/api/models/maker/base")
    return hf_raise_for_status(httpx.Response(status, headers={"X-Error-Code": code}, request=request))
