"""Which failures of a call to the Hub are tried again, and which are mistakes of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.errors import NetworkError
from tunesmith.hub.calls import call, quiet


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
