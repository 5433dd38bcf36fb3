"""One call to the Hub: with a time limit, tried again where that can help, and its failure in words.

The client has no time limit of its own for most calls, gives up at the first 429 or 503 of some of them, and asks for others
six times over without a word to the user. So all waiting is done here, where it is told.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tunesmith.errors import EnvironmentFault, Kind, NetworkError, TunesmithError, UsageError
from tunesmith.os_errors import explained_os_error

Found = TypeVar("Found")
#: Receives a line that the user should see.
Tell = Callable[[str], None]
#: How often a call is made at most, the first wait [s] (each later one is twice as long), and how long a Retry-After may be
#: [s] before it is better to come back another day.
ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S = 5, 1.0, 120.0
#: No attempt begins later than this after the first [s].
PATIENCE_S = 90.0
#: A connection on which nothing moves for so long [s] is given up.
SILENCE_S = 60.0
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
#: Of these, those that the client itself would ask again for.
_BUSY = {429, 500, 502, 503, 504}
#: Of the classes of Python and of the client's HTTP library, those that say that a connection failed.
_OF_CONNECTIONS = {"TransportError", "ConnectionError", "TimeoutError", "TimeoutException", "ProtocolError"}
_SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}")


def quiet(text: str) -> None:
    """Tells nobody."""


class TryAgain(Exception):
    """Raised by an action that saw for itself that another attempt can help; its text says why."""


class Unreached(ConnectionError):
    """A connection failed: of a kind that the client does not take for a reason to ask again by itself."""


class _Memory:
    """What was seen of the Hub: while it cannot be reached, each call after the first asks once."""

    down = False


def offline() -> bool:
    """Whether the user asked for no network, as the client reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def _setting(name: str, default: float) -> float:
    try:
        return float(os.environ.get(name, default))
    except ValueError:
        return default


@contextmanager
def patient(tell: Tell = quiet) -> Iterator[None]:
    """While it lasts, the Hub client's connections cannot stay silent for ever, and it asks for nothing twice by itself.

    Its sessions are made anew after some failures, so they are changed where they are made. `TUNESMITH_HUB_SILENCE` [s]
    overrides how long nothing may move. tell: hears when a download goes on from where it broke off; the client's other
    lines are about attempts, of which `call` tells.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    before = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    logger = logging.getLogger("huggingface_hub")
    handlers, logger.handlers = logger.handlers, [_Resumed(tell)]
    asked = _Asked()
    set_client_factory(lambda: _limited(before(), asked))
    try:
        yield
    finally:
        set_client_factory(before)
        logger.handlers = handlers


class _Asked:
    """What was asked for while `patient` lasts."""

    creations = 0


class _Resumed(logging.Handler):
    """Of the client's log, the lines that say that a download broke off and goes on."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """The client's line names a signed address, so it is worded anew."""
        if "resume" in record.getMessage():
            self.tell("A download broke off; going on from there.")


def _limited(client: Any, asked: _Asked) -> Any:
    """A session whose requests have a time limit, and whose failures come out at once."""
    silence_s, send = _setting("TUNESMITH_HUB_SILENCE", SILENCE_S), client.send

    def limit(request: Any) -> None:
        """Some calls ask for no limit in so many words. While another operation is under way the client asks for a new
        repository again and again, without a pause: once is enough.
        """
        limits = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {name: silence_s if limits.get(name) is None else limits[name]
                                         for name in ("connect", "read", "write", "pool")}
        asked.creations += request.url.path.endswith("/api/repos/create")
        if asked.creations > 1:
            raise TryAgain("another operation on it is under way")

    def refuse(response: Any) -> None:
        """What the client would wait for without a word becomes the error that it is."""
        from huggingface_hub import utils

        _Memory.down = False
        if response.status_code in _BUSY:
            response.read()
            utils.hf_raise_for_status(response)  # type: ignore[attr-defined]  # public, though its list of names lacks it

    def once(request: Any, **named: Any) -> Any:
        try:
            return send(request, **named)
        except Exception as error:
            if status(error) is None and not_reached(error):
                raise Unreached(str(error)) from error
            raise

    hooks = client.event_hooks
    client.event_hooks = {"request": [*hooks.get("request", []), limit], "response": [*hooks.get("response", []), refuse]}
    client.send = once
    return client


def call(what: str, action: Callable[[], Found], tell: Tell, *, attempts: int = ATTEMPTS,
         explain: Callable[[Exception, str], Exception] | None = None) -> Found:
    """The action's result; tried again, after a wait that is told, while its failure looks as if it will pass.

    what: the thing that the call is about, for messages. attempts: at most. explain: what a failure means; `explained` by
    default.
    Raises what `explain` makes of the last failure.
    """
    explain, began = explain or explained, time.monotonic()
    attempts = 1 if _Memory.down else attempts
    for attempt in range(1, attempts + 1):
        try:
            with patient(tell):
                return action()
        except TunesmithError:
            raise
        except Exception as error:  # the client raises a dozen classes of its own and of its HTTP library
            if _is_our_fault(error):
                raise
            wait_s = _wait_s(error, attempt)
            late = wait_s is not None and time.monotonic() - began + wait_s > _setting("TUNESMITH_HUB_PATIENCE", PATIENCE_S)
            if wait_s is None or late or attempt == attempts:
                _Memory.down = status(error) is None and not_reached(error)
                raise explain(error, what) from None
            tell(f"{what}: {reason(error)}. Trying again in {wait_s:.0f} s ({attempt} of {attempts - 1}).")
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


#: What a mistake in a program raises.
_MISTAKES = (TypeError, KeyError, AttributeError, IndexError, NameError, AssertionError, ValueError)
#: The client and what it stands on: a mistake that is raised below them is a garbled answer that they made nothing of.
_CLIENT = ("huggingface_hub", "httpx", "httpcore", "httpx2", "httpcore2", "h11", "requests", "urllib3", "datasets", "fsspec",
           "hf_xet")


def _is_our_fault(error: BaseException) -> bool:
    """Whether an error did not come through the client, so that it is a mistake of ours, which no network mends."""
    if not isinstance(error, _MISTAKES) or status(error) is not None:
        return False
    place = error.__traceback__
    while place is not None:
        if place.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _CLIENT:
            return False
        place = place.tb_next
    return True


def status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, its causes included; None where the Hub did not answer."""
    for each in _chain(error):
        found = getattr(getattr(each, "response", None), "status_code", None)
        if isinstance(found, int):
            return found
    return None


def reason(error: Exception) -> str:
    """Why a call failed, in a line that holds no token."""
    if _passes(error):
        if (found := status(error)) is not None:
            return f"the Hub answers {found}"
        return "the Hub cannot be reached" if not _timed_out(error) else "the Hub does not answer"
    return redacted((str(error).strip().splitlines() or [type(error).__name__])[0])


def _passes(error: Exception) -> bool:
    """Whether the Hub could not be reached, did not answer, or answered that it cannot for now."""
    found = status(error)
    if found is not None and (found in _PASSING or found >= 500):
        return True
    return not_reached(error) or "LocalEntryNotFoundError" in _kinds(error)


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
    return bool(_kinds(error) & _OF_CONNECTIONS)


def _on_disk(error: BaseException) -> OSError | None:
    """The failed operation on a file behind an error; None where there is none, or it is a connection that failed."""
    for each in _chain(error):
        if {kind.__name__ for kind in type(each).__mro__} & _OF_CONNECTIONS:
            return None
        if isinstance(each, OSError) and each.errno is not None:
            return each
    return None


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _timed_out(error: BaseException) -> bool:
    return bool(_kinds(error) & {"TimeoutException", "TimeoutError"})


def _wait_s(error: Exception, attempt: int) -> float | None:
    """How long to wait before the next attempt; None where another would end the same."""
    if offline():
        return None
    wait_s = _setting("TUNESMITH_HUB_WAIT", FIRST_WAIT_S) * 2.0 ** (attempt - 1)
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
    return isinstance(error, OSError | ValueError | KeyError | TypeError | AttributeError) and _on_disk(error) is None


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
    if "HFValidationError" in names:
        return UsageError(f"{what}: not the name of a repository: {reason(error)}", "Write ORG/NAME.")
    if found == 429 and (wait_s := _retry_after_s(error)):
        return NetworkError(f"{what}: the Hub asks to wait {wait_s:.0f} s", "Run the same command after that.",
                            kind=Kind.UNREACHABLE)
    if "GatedRepoError" in names:
        return NetworkError(f"{what}: the Hub asks you to accept its terms first", "Open its page on the Hub while logged in.")
    if "LocalTokenNotFoundError" in names or (found == 401 and not get_token()):
        return NetworkError(f"{what}: you are not logged in to the Hub", "Log in with `hf auth login`, or set HF_TOKEN.")
    if found == 401:
        return NetworkError(f"{what}: the Hub does not accept your token", "Log in again (`hf auth login`), or set HF_TOKEN.")
    if found == 403:
        return NetworkError(f"{what}: your token may not do this", "It needs the right to write there: see the Hub's settings.")
    if "RevisionNotFoundError" in names:
        return NetworkError(f"{what}: no such revision on the Hub", "Leave the revision out, or check it.",
                            kind=Kind.NO_SUCH_REVISION)
    if found == 404:
        return NetworkError(f"{what}: the Hub shows you no such repository",
                            "Check the name; a private one needs `hf auth login`.", kind=Kind.NO_SUCH_REPOSITORY)
    if found == 412:
        return NetworkError(f"{what}: someone else changed it meanwhile", "Run the same command again.")
    if (failed := _on_disk(error)) is not None:
        place = failed.filename or f"the Hub's cache ({_cache()})"
        found_on_disk = explained_os_error(failed, f"{what}: {place}")
        return (found_on_disk or EnvironmentFault(f"{what}: {place}: {failed.strerror}")).reword(
            hint=f"{found_on_disk.hint if found_on_disk else ''} HF_HOME says where downloads go.".strip())
    if offline():
        return NetworkError(f"{what}: not in the local cache, and HF_HUB_OFFLINE is set", "Unset it, or name a local folder.",
                            kind=Kind.OFFLINE)
    return NetworkError(f"{what}: {reason(error)}", "Check the network, then run the same command again.",
                        kind=Kind.UNREACHABLE if _passes(error) else None)
