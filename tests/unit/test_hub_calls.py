"""Which failures of a call to the Hub are tried again, and which are mistakes of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.errors import NetworkError
from tunesmith.hub.calls import call, quiet


@pytest.mark.parametrize("mistake", [lambda: {}["missing"], lambda: None.missing, lambda: len(3)])  # type: ignore[attr-defined, arg-type]
def test_a_mistake_of_ours_comes_out_at_once(mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def action() -> Any:
        tries.append(1)
        return mistake()

    from pathlib import Path

    monkeypatch.setattr("tunesmith.hub.calls._OWN_CODE", str(Path(__file__).resolve().parent))  # this file is ours here
    with pytest.raises((KeyError, AttributeError, TypeError, IndexError)):
        call("it", action, quiet)
    assert len(tries) == 1


def test_an_answer_that_nothing_can_be_made_of_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_HUB_WAIT", "0.01")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("tunesmith.hub.calls.offline", lambda: False)
    tries = []

    def action() -> Any:
        tries.append(1)
        return json.loads("<html>")

    with pytest.raises(NetworkError):
        call("it", action, quiet)
    assert len(tries) == 5
