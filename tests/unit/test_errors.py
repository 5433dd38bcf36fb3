"""An error is told apart by class, kind and setting; a caller who names a place changes none of them."""

from __future__ import annotations

import pickle

import pytest

from tunesmith.errors import DiskError, Interrupted, Kind, NetworkError, RecipeError, TunesmithError


def test_the_message_begins_with_the_setting() -> None:
    error = RecipeError("x/y: no such folder", "Look again.", setting="model.base")
    assert error.message == "model.base: x/y: no such folder"
    assert str(error) == "model.base: x/y: no such folder\n  Look again."
    assert error.kind is None


def test_rewording_keeps_what_callers_decide_by() -> None:
    error = NetworkError("x/y: no answer", "Check the network.", kind=Kind.UNREACHABLE)
    assert error.reword(setting="model.base") is error
    assert error.at("the run") is error
    assert (error.message, error.hint, error.kind, error.exit_code) == (
        "the run: model.base: x/y: no answer", "Check the network.", Kind.UNREACHABLE, 8)
    assert error.reword("gone", hint="").message == "gone"
    assert str(error) == "gone"
    assert error.args == ("gone",)


def test_rewording_keeps_the_exit_code_of_a_signal() -> None:
    assert Interrupted(15, "Stopped.").at("the run").exit_code == 143


@pytest.mark.parametrize("error", [DiskError("full", "Free some.", kind=Kind.DISK_FULL),
                                   Interrupted(2, "Stopped.", "Again.")])
def test_an_error_survives_the_way_from_another_process(error: TunesmithError) -> None:
    found = pickle.loads(pickle.dumps(error.at("here")))
    assert (type(found), str(found), found.kind, found.exit_code) == (type(error), str(error), error.kind,
                                                                      error.exit_code)
