"""One call to the Hub: with a time limit, tried again where that can help, and its failure in words."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tunesmith.errors import TunesmithError
from tunesmith.hub.client import HubState, Tell, Traffic, TryAgain, env_number, offline, patient
from tunesmith.hub.failures import (
    explained,
    failure,
    is_transient,
    not_reached,
    possible_failures,
    reason,
    retry_after_s,
    status,
)

Result = TypeVar("Result")
#: How often a call is made at most, the first wait [s] (each later one is twice as long), and how long a
#: Retry-After may be [s] before it is better to come back another day.
ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S = 5, 1.0, 120.0
#: No attempt begins later than this after the first [s].
PATIENCE_S = 90.0


def call(what: str, action: Callable[[], Result], tell: Tell, *, attempts: int = ATTEMPTS,
         explain: Callable[[Exception, str], TunesmithError] = explained) -> Result:
    """The action's result; tried again, after a wait that is told, while its failure looks transient.

    what: the thing that the call is about, for messages. attempts: at most. explain: what a failure means.
    Raises what `explain` makes of the last failure. What the action raises of ours, and mistakes in it, pass
    as they are.
    """
    began = time.monotonic()
    attempts = 1 if HubState.down else attempts
    for attempt in range(1, attempts + 1):
        traffic = Traffic()
        try:
            with patient(tell, traffic):
                return action()
        except possible_failures() as error:
            failed = failure(error, answers=traffic.answers)
            if failed is None:
                raise
            wait_s = _wait_s(failed, attempt)
            late = (wait_s is not None and time.monotonic() - began + wait_s
                    > env_number("TUNESMITH_HUB_PATIENCE", PATIENCE_S))
            if wait_s is None or late or attempt == attempts:
                HubState.down = status(failed) is None and not_reached(failed)
                raise explain(failed, what) from None
            tell(f"{what}: {reason(failed)}. Trying again in {wait_s:.0f} s ({attempt} of {attempts - 1}).")
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _wait_s(error: Exception, attempt: int) -> float | None:
    """How long to wait before the next attempt [s]; None where another would end the same."""
    if offline() or not is_transient(error):
        return None
    wait_s = env_number("TUNESMITH_HUB_WAIT", FIRST_WAIT_S) * 2.0 ** (attempt - 1)
    requested_s = None if isinstance(error, TryAgain) else retry_after_s(error)
    if requested_s is None:
        return wait_s
    return None if requested_s > LONGEST_WAIT_S else max(wait_s, requested_s)
