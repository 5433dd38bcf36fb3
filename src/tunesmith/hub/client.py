"""All that is changed of the Hub's client and of `datasets` for the whole process, each with its reason.

- The client has no time limit of its own for most requests, gives up at the first 429 or 503 of some, and
  sends others six times without a word to the user. No argument changes that, and all its calls share one
  session. So while one of our calls lasts (`patient`), sessions come from a factory of ours: it puts time
  limits, and an end at the first failure, into the session that the user's own factory makes. Waiting and
  asking again are then done by `hub.calls.call`, which tells the user. `set_client_factory` is public; a
  private name is read because nothing public says which factory was set before.
- The client's log has signed addresses and counts attempts; while a call lasts, the user gets it in our
  words.
- `datasets` has no argument for "from the cache alone": it reads two modules' constants
  (`without_network`).
- Counts of downloads and of what is used are sent by default, which nobody asked for (`no_telemetry`).
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

#: Receives a line that the user should see.
Tell = Callable[[str], None]


def quiet(text: str) -> None:
    """Tells nobody."""


#: A connection on which nothing moves for so long [s] is given up.
SILENCE_S = 60.0
#: Of the statuses of an answer, those after which the client itself would ask again.
_BUSY = {429, 500, 502, 503, 504}


class TryAgain(Exception):
    """Raised by an action that saw for itself that another attempt can help; its text says why."""


class Unreached(ConnectionError):
    """A connection failed: of a kind that the client does not take for a reason to ask again by itself."""


@dataclass
class Traffic:
    """A call's traffic. answers: how many came, of any status; creations: of repositories requested."""

    answers: int = 0
    creations: int = 0


class HubState:
    """What this process saw of the Hub: while it cannot be reached, calls after the first ask once."""

    down = False


def offline() -> bool:
    """Whether the user asked for no network, as the client reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def env_number(name: str, default: float) -> float:
    """A number from the environment; the default where there is none."""
    try:
        return float(os.environ.get(name, default))
    except ValueError:
        return default


def http() -> Any:
    """The HTTP library that the client stands on: httpx, or for newer clients httpx2."""
    from huggingface_hub import errors

    # It is imported there, and is the base of the client's own errors.
    base: type = errors.HTTPError  # type: ignore[attr-defined]
    return importlib.import_module(base.__module__.partition(".")[0])


def no_telemetry() -> None:
    """Tell the client, which reads it when imported, not to report usage, unless the user decided that."""
    if "HF_HUB_DISABLE_TELEMETRY" not in os.environ:
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        if constants := sys.modules.get("huggingface_hub.constants"):
            constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]


@contextmanager
def patient(tell: Tell, traffic: Traffic) -> Iterator[None]:
    """While it lasts, no connection stays silent for ever, and the client asks for nothing twice by itself.

    Its sessions are made anew after some failures, so they are changed where they are made.
    `TUNESMITH_HUB_SILENCE` [s] overrides how long nothing may move. tell: hears when a download goes on from
    where it broke off. traffic: is counted in.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    before = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    logger = logging.getLogger("huggingface_hub")
    handlers, logger.handlers = logger.handlers, [_Resumed(tell)]
    set_client_factory(lambda: _limited(before(), traffic))
    try:
        yield
    finally:
        set_client_factory(before)
        logger.handlers = handlers


class _Resumed(logging.Handler):
    """Of the client's log, the lines that say that a download broke off and goes on."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.WARNING)
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """The client's line names a signed address, so it is worded anew."""
        if "resume" in record.getMessage():
            self.tell("A download broke off; going on from there.")


def _limited(session: Any, traffic: Traffic) -> Any:
    """A session whose requests have a time limit, and whose failures come out at once."""
    from huggingface_hub import utils

    silence_s = env_number("TUNESMITH_HUB_SILENCE", SILENCE_S)
    send, transport = session.send, http().TransportError

    def limit(request: Any) -> None:
        """Some calls ask for no limit in so many words. While another operation is under way the client asks
        for a new repository again and again, without a pause: once is enough.
        """
        limits = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {name: silence_s if limits.get(name) is None else limits[name]
                                         for name in ("connect", "read", "write", "pool")}
        traffic.creations += request.url.path.endswith("/api/repos/create")
        if traffic.creations > 1:
            raise TryAgain("another operation on it is under way")

    def refuse(response: Any) -> None:
        """What the client would wait for without a word becomes the error that it is."""
        HubState.down = False
        traffic.answers += 1
        if response.status_code in _BUSY:
            response.read()
            # It is public, though the list of names lacks it.
            utils.hf_raise_for_status(response)  # type: ignore[attr-defined]

    def send_once(request: Any, **arguments: Any) -> Any:
        """The client takes failures of the transport, and no others, for a reason to ask again."""
        try:
            return send(request, **arguments)
        except transport as error:
            raise Unreached(str(error)) from error

    hooks = session.event_hooks
    session.event_hooks = {"request": [*hooks.get("request", []), limit],
                           "response": [*hooks.get("response", []), refuse]}
    session.send = send_once
    return session


@contextmanager
def quiet_datasets() -> Iterator[Any]:
    """The library `datasets`, without progress bars and without counting downloads, which is telemetry."""
    import datasets

    datasets.disable_progress_bars()
    before, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, False
    try:
        yield datasets
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before


@contextmanager
def without_network(datasets: Any) -> Iterator[None]:
    """While it lasts, `datasets` looks at its cache alone, and asks no Hub that does not answer."""
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, datasets.logging.get_verbosity()
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    datasets.logging.set_verbosity_error()  # which copy is taken has been told
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, verbosity = before
        datasets.logging.set_verbosity(verbosity)
