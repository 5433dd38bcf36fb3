"""Failures on the way to the Hub: of the network, the Hub, this disk, or a mistake of ours; in words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from tunesmith.errors import EnvironmentFault, Kind, NetworkError, TunesmithError, UsageError
from tunesmith.hub.client import TryAgain, Unreached, http, offline
from tunesmith.os_errors import explained_os_error
from tunesmith.wordings import errno_in, says_disk_full

#: Of the statuses of an answer, those that another attempt may change.
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
#: What code raises that is asked for something that makes no sense: our mistake, or the client's when an
#: answer makes none. hf_xet, which moves large files, has but RuntimeError for a failed transfer.
_MISTAKES = (ValueError, TypeError, LookupError, AttributeError, NameError, RuntimeError)
#: The client and what it stands on.
_CLIENT = ("huggingface_hub", "httpx", "httpcore", "httpx2", "httpcore2", "h11", "hf_xet", "datasets",
           "fsspec")


class Garbled(Exception):
    """An answer of which the client can make nothing: cut short, no JSON, without what it should hold."""


def possible_failures() -> tuple[type[Exception], ...]:
    """The classes of which `failure` says whether they are one."""
    return *_client_errors(), *_MISTAKES


def _client_errors() -> tuple[type[Exception], ...]:
    """The classes in which the client, its HTTP library and the system say that something failed."""
    from huggingface_hub import errors

    client_classes = [each for each in vars(errors).values()
                      if isinstance(each, type) and issubclass(each, Exception)]
    return *client_classes, http().InvalidURL, OSError, TryAgain, Garbled


def failure(error: Exception, *, answers: int) -> Exception | None:
    """The failure of network, Hub or disk behind an error; None for a mistake of ours.

    answers: how many the Hub gave before it: without any, what the client cannot make sense of is our
    question.
    """
    if raised_by_us(error):
        return None
    if isinstance(error, _client_errors()):
        return error
    if (cause := underlying_failure(error)) is not None:
        return cause
    if isinstance(error, RuntimeError) and (number := errno_in(error)) is not None:
        return OSError(number, os.strerror(number))
    if (refusal := _refusal(error)) is not None:
        return refusal
    if not answers:
        return None
    if isinstance(error, RuntimeError):
        return Unreached(_first_line(error))
    return Garbled(f"{type(error).__name__}: {_first_line(error)}")


def _refusal(error: BaseException) -> Exception | None:
    """An answer that was no, over which the client then stumbled: the answer is what failed."""
    from huggingface_hub.errors import HfHubHTTPError

    return next((each for each in _chain(error) if isinstance(each, HfHubHTTPError)), None)


def raised_by_us(error: BaseException) -> bool:
    """Whether an error arose in our own code, in what the client calls back too, rather than in the client's.

    Of the frames in its traceback that are ours or the client's, the innermost is where it arose.
    """
    if isinstance(error, TryAgain | Unreached | Garbled):
        return False
    entry, ours = error.__traceback__, True
    while entry is not None:
        package = str(entry.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package == "tunesmith" or package in _CLIENT:
            ours = package == "tunesmith"
        entry = entry.tb_next
    return ours


def underlying_failure(error: BaseException) -> Exception | None:
    """The failure of network, Hub or disk that an error came from, or that it is; None if there is none."""
    from huggingface_hub.errors import HfHubHTTPError

    for each in _causes(error):
        if isinstance(each, HfHubHTTPError) or _of_a_connection(each):
            return each  # type: ignore[return-value]  # all of these are of Exception
        if isinstance(each, OSError) and each.errno is not None:
            return each
        if says_disk_full(each):
            return OSError(28, os.strerror(28))
    return None


def status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, its causes included; None where the Hub did not answer."""
    for each in _chain(error):
        code = getattr(getattr(each, "response", None), "status_code", None)
        if isinstance(code, int):
            return code
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its causes and what was being handled; a cause that is raised again closes a ring."""
    visited: list[BaseException] = []
    while error is not None and not any(error is each for each in visited):
        yield error
        visited.append(error)
        error = error.__cause__ or error.__context__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Without what was merely being handled, such as a file that the cache lacks, when it was raised."""
    while error is not None:
        yield error
        error = error.__cause__


def _of_a_connection(error: BaseException) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError, http().TransportError))


def not_reached(error: BaseException) -> bool:
    """Whether the connection failed, rather than the Hub answering no."""
    return any(map(_of_a_connection, _chain(error)))


def _timed_out(error: BaseException) -> bool:
    return any(isinstance(each, (TimeoutError, http().TimeoutException)) for each in _chain(error))


def _on_disk(error: BaseException) -> OSError | None:
    """The failed file operation behind an error; None where the Hub, a connection or nothing failed."""
    from huggingface_hub.errors import HfHubHTTPError

    for each in _causes(error):
        if isinstance(each, HfHubHTTPError) or _of_a_connection(each):
            return None
        if isinstance(each, OSError) and each.errno is not None:
            return each
    return None


def _is_garbled(error: Exception) -> bool:
    """Also for a file without the hash or length that the client needs, or of another length."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    if isinstance(error, Garbled):
        return True
    return (isinstance(error, OSError) and status(error) is None and _on_disk(error) is None
            and not isinstance(error, LocalTokenNotFoundError))


def is_transient(error: Exception) -> bool:
    """Whether another attempt, soon or another day, may end otherwise."""
    code = status(error)
    if isinstance(error, TryAgain) or code in _PASSING:
        return True
    return code is None and not _of_the_address(error) and (not_reached(error) or _is_garbled(error))


def _of_the_address(error: BaseException) -> bool:
    """Whether there is no such address, whoever would answer at it."""
    library = http()
    return any(isinstance(each, (library.InvalidURL, library.UnsupportedProtocol)) for each in _chain(error))


def retry_after_s(error: BaseException) -> float | None:
    """How long the Hub asks to wait [s]."""
    for each in _chain(error):
        headers = getattr(getattr(each, "response", None), "headers", None) or {}
        for name in ("Retry-After", "retry-after"):
            try:
                return float(headers[name])
            except (KeyError, ValueError, TypeError):
                continue
    return None


def _unreachable(error: Exception) -> bool:
    """Whether the Hub could not be reached, did not answer, or answered that it cannot for now."""
    code = status(error)
    return is_transient(error) or (code is not None and code >= 500)


def reason(error: Exception) -> str:
    """Why a call failed, in a line that holds no token."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    code = status(error)
    if code is not None and _unreachable(error) and not isinstance(error, TryAgain):
        return f"the Hub answers {code}"
    if _timed_out(error):
        return "the Hub does not answer"
    if not_reached(error) or isinstance(error, LocalEntryNotFoundError):
        return "the Hub cannot be reached"
    if _is_garbled(error):
        return f"the answer is not one of the Hub's ({redacted(_first_line(error))})"
    return redacted(_first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def redacted(text: str) -> str:
    """The text without anything that is or looks like the user's token."""
    from huggingface_hub import get_token

    token = get_token()
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_***", text.replace(token, "hf_***") if token else text)


def explained(error: Exception, what: str) -> TunesmithError:
    """What a failed call means for the user. what: the thing that it was about."""
    from huggingface_hub import constants, errors

    code = status(error)
    if _of_the_address(error):
        return EnvironmentFault(f"{what}: HF_ENDPOINT is {constants.ENDPOINT}, which is no address of a Hub",
                                "Unset it, or correct it.")
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{what}: not the name of a repository: {reason(error)}", "Write ORG/NAME.")
    if (failed := _on_disk(error)) is not None:
        return _of_the_disk(failed, what)
    if code == 429 and (wait_s := retry_after_s(error)):
        return NetworkError(f"{what}: the Hub asks to wait {wait_s:.0f} s",
                            "Run the same command after that.", kind=Kind.UNREACHABLE)
    if isinstance(error, errors.LocalTokenNotFoundError) or code in (401, 403, 404, 412):
        return _refused(error, code, what)
    if offline():
        return NetworkError(f"{what}: not in the local cache, and HF_HUB_OFFLINE is set",
                            "Unset it, or name a local folder.", kind=Kind.OFFLINE)
    hint = "A login page of this network may have answered instead. " if _is_garbled(error) else ""
    return NetworkError(f"{what}: {reason(error)}",
                        f"{hint}Check the network, then run the same command again.",
                        kind=Kind.UNREACHABLE if _unreachable(error) else None)


def _refused(error: Exception, code: int | None, what: str) -> NetworkError:
    """An answer that is no."""
    from huggingface_hub import errors, get_token

    if isinstance(error, errors.GatedRepoError):
        return NetworkError(f"{what}: the Hub asks you to accept its terms first",
                            "Open its page on the Hub while logged in.")
    if code is None or (code == 401 and not get_token()):
        return NetworkError(f"{what}: you are not logged in to the Hub",
                            "Log in with `hf auth login`, or set HF_TOKEN.")
    if code == 401:
        return NetworkError(f"{what}: the Hub does not accept your token",
                            "Log in again (`hf auth login`), or set HF_TOKEN.")
    if code == 403:
        return NetworkError(f"{what}: your token may not do this",
                            "It needs the right to write there: see the Hub's settings.")
    if isinstance(error, errors.RevisionNotFoundError):
        return NetworkError(f"{what}: no such revision on the Hub", "Leave the revision out, or check it.",
                            kind=Kind.NO_SUCH_REVISION)
    if code == 404:
        return NetworkError(f"{what}: the Hub shows you no such repository",
                            "Check the name; a private one needs `hf auth login`.",
                            kind=Kind.NO_SUCH_REPOSITORY)
    return NetworkError(f"{what}: someone else changed it meanwhile", "Run the same command again.")


def _of_the_disk(failed: OSError, what: str) -> TunesmithError:
    """Downloads go to the client's cache, wherever that is."""
    from huggingface_hub import constants

    place: Any = failed.filename or f"the Hub's cache, {constants.HF_HUB_CACHE}"
    explanation = (explained_os_error(failed, f"{what}: {place}")
                   or EnvironmentFault(f"{what}: {place}: {failed.strerror}"))
    return explanation.reword(hint=f"{explanation.hint} HF_HOME says where downloads go.".strip())
