"""One call to the Hub: with a time limit, tried again where that can help, and its failure in words.

The client has no time limit of its own for most calls, and gives up at the first 429 or 503 of some of them.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tunesmith.errors import DiskError, NetworkError, TunesmithError

Found = TypeVar("Found")
#: Receives a line that the user should see.
Tell = Callable[[str], None]
#: How often a call is made at most, the first wait [s] (each later one is twice as long), and how long a Retry-After may be
#: [s] before it is better to come back another day.
ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S = 5, 1.0, 120.0
#: No attempt begins later than this after the first [s]: the client tries some calls again by itself, six times.
PATIENCE_S = 90.0
#: A connection on which nothing moves for so long [s] is given up.
SILENCE_S = 60.0
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
_SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}")


def quiet(text: str) -> None:
    """Tells nobody."""


class TryAgain(Exception):
    """Raised by an action that saw for itself that another attempt can help; its text says why."""


def offline() -> bool:
    """Whether the user asked for no network, as the client reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def _setting(name: str, default: float) -> float:
    try:
        return float(os.environ.get(name, default))
    except ValueError:
        return default


@contextmanager
def patient() -> Iterator[None]:
    """While it lasts, none of the Hub client's connections can stay silent for ever.

    Its sessions are made anew after some failures, so the limit is set where they are made. `TUNESMITH_HUB_SILENCE` [s]
    overrides the default.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    before, asked = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory), 0
    silence_s = _setting("TUNESMITH_HUB_SILENCE", SILENCE_S)

    def watch(request: Any) -> None:
        """Limits what the client left without a limit, in so many words for some calls.

        While another operation is under way it asks for a new repository again and again, without a pause: once is enough.
        """
        nonlocal asked
        limits = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {name: silence_s if limits.get(name) is None else limits[name]
                                         for name in ("connect", "read", "write", "pool")}
        asked += request.url.path.endswith("/api/repos/create")
        if asked > 1:
            raise TryAgain("another operation on it is under way")

    def limited() -> Any:
        client = before()
        client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks.get("request", []), watch]}
        return client

    set_client_factory(limited)
    try:
        yield
    finally:
        set_client_factory(before)


def call(what: str, action: Callable[[], Found], tell: Tell, *,
         explain: Callable[[Exception, str], Exception] | None = None) -> Found:
    """The action's result; tried again, after a wait that is told, while its failure looks as if it will pass.

    what: the thing that the call is about, for messages. explain: what a failure means; `explained` by default.
    Raises what `explain` makes of the last failure.
    """
    explain, began = explain or explained, time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with patient():
                return action()
        except TunesmithError:
            raise
        except Exception as error:  # the client raises a dozen classes of its own and of its HTTP library
            wait_s = _wait_s(error, attempt)
            late = wait_s is not None and time.monotonic() - began + wait_s > _setting("TUNESMITH_HUB_PATIENCE", PATIENCE_S)
            if wait_s is None or late or attempt == ATTEMPTS:
                raise explain(error, what) from None
            tell(f"{what}: {reason(error)}. Trying again in {wait_s:.0f} s ({attempt} of {ATTEMPTS - 1}).")
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, its causes included; None where the Hub did not answer."""
    for each in _chain(error):
        found = getattr(getattr(each, "response", None), "status_code", None)
        if isinstance(found, int):
            return found
    return None


def reason(error: Exception) -> str:
    """Why a call failed, in a line that holds no token."""
    found = status(error)
    if found is not None and (found in _PASSING or found >= 500):
        return f"the Hub answers {found}"
    if not_reached(error) or "LocalEntryNotFoundError" in _kinds(error):
        return "the Hub cannot be reached" if not _timed_out(error) else "the Hub does not answer"
    return redacted((str(error).strip().splitlines() or [type(error).__name__])[0])


def redacted(text: str) -> str:
    """The text without anything that is or looks like the user's token."""
    from huggingface_hub import get_token

    token = get_token()
    return _SECRET.sub("hf_***", text.replace(token, "hf_***") if token else text)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}


def not_reached(error: BaseException) -> bool:
    """Whether the connection failed, rather than the Hub answering no."""
    return bool(_kinds(error) & {"TransportError", "ConnectionError", "TimeoutError", "TimeoutException", "ProtocolError"})


def _timed_out(error: BaseException) -> bool:
    return bool(_kinds(error) & {"TimeoutException", "TimeoutError"})


def _wait_s(error: Exception, attempt: int) -> float | None:
    """How long to wait before the next attempt; None where another would end the same."""
    if offline():
        return None
    wait_s = _setting("TUNESMITH_HUB_WAIT", FIRST_WAIT_S) * 2 ** (attempt - 1)
    found = status(error)
    if isinstance(error, TryAgain):
        return wait_s
    if found is None:
        return wait_s if not_reached(error) or _garbled(error) else None
    if found not in _PASSING:
        return None
    asked_s = _retry_after_s(error)
    if asked_s is None:
        return wait_s
    return None if asked_s > LONGEST_WAIT_S else max(wait_s, asked_s)


def _garbled(error: BaseException) -> bool:
    """Whether an answer came that the client could make nothing of: cut short, no JSON, without what it should hold."""
    if _kinds(error) & {"HFValidationError", "LocalTokenNotFoundError"} or "Invalid metadata" in str(error):
        return False
    on_disk = isinstance(error, OSError) and error.errno is not None
    return isinstance(error, OSError | ValueError | KeyError | TypeError | AttributeError) and not on_disk


def _retry_after_s(error: BaseException) -> float | None:
    for each in _chain(error):
        headers = getattr(getattr(each, "response", None), "headers", None) or {}
        for name in ("Retry-After", "retry-after"):
            try:
                return float(headers[name])
            except (KeyError, ValueError, TypeError):
                continue
    return None


def explained(error: Exception, what: str) -> TunesmithError:
    """What a failed call means for the user."""
    from huggingface_hub import get_token

    found = status(error)
    names = _kinds(error)
    if "GatedRepoError" in names:
        return NetworkError(f"{what}: the Hub asks you to accept its terms first", "Open its page on the Hub while logged in.")
    if "LocalTokenNotFoundError" in names or (found == 401 and not get_token()):
        return NetworkError(f"{what}: you are not logged in to the Hub", "Log in with `hf auth login`, or set HF_TOKEN.")
    if found == 401:
        return NetworkError(f"{what}: the Hub does not accept your token", "Log in again (`hf auth login`), or set HF_TOKEN.")
    if found == 403:
        return NetworkError(f"{what}: your token may not do this", "It needs the right to write there: see the Hub's settings.")
    if "RevisionNotFoundError" in names:
        return NetworkError(f"{what}: no such revision on the Hub", "Leave the revision out, or check it.")
    if found == 404:
        return NetworkError(f"{what}: the Hub shows you no such repository",
                            "Check the name; a private one needs `hf auth login`.")
    if found == 412:
        return NetworkError(f"{what}: someone else changed it meanwhile", "Run the same command again.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return DiskError(f"{what}: {error.filename or 'the cache'}: {error.strerror}", "HF_HOME says where downloads go.")
    if offline():
        return NetworkError(f"{what}: not in the local cache, and HF_HUB_OFFLINE is set", "Unset it, or name a local folder.")
    return NetworkError(f"{what}: {reason(error)}", "Check the network, then run the same command again.")
