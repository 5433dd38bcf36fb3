"""What can go wrong on purpose: which request is hit, and what happens to it instead of a plain answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from .wire import Answer, Refusal

Make = Callable[[], Answer]
STATUSES: Final = (400, 401, 403, 404, 408, 409, 412, 413, 416, 422, 429, 500, 501, 502, 503, 504)
#: The options of each fault beside `match`, with what they are when they aren't given.
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    # fields: more JSON
    "status": {"retry_after": None, "code": None, "message": None, "headers": None, "fields": None},
    "reset": {"early": False},  # early: before the body of the request is read
    "hang": {"seconds": 600.0, "answer": False},  # answer: answer as usual after that, else close
    "truncate": {"keep": None},  # bytes of the body that are sent; half of it by default
    "flip": {"at": None},  # which byte; the middle one by default
    "applied-lost": {},
    "slow": {"seconds": 2.0, "pieces": 20},  # for the whole body
    "garbage": {},
}
GARBAGE: Final = Answer(200,
                        b"<!doctype html><html><body>Welcome! Please log in to this network.</body></html>\n",
                        {"Content-Type": "text/html; charset=utf-8"})


class Connection(Protocol):
    """What a fault can do to the connection that the request came in on."""

    closing: threading.Event

    def send(self, answer: Answer, body: bytes | None = None) -> None:
        """Send the head of an answer, then its body or these bytes instead."""

    def write(self, data: bytes) -> None:
        """Send more bytes of a body."""

    def close(self) -> None:
        """Close after what was sent."""

    def reset(self) -> None:
        """Cut the connection at once, with RST."""


@dataclass
class Fault:
    """A fault on one route: let `after` requests pass, then hit `times` of them (None: all)."""

    route: str
    kind: int | str
    times: int | None = 1
    after: int = 0
    match: str = ""  # only requests whose path has this in it
    options: dict[str, Any] = field(default_factory=dict)
    hits: int = 0

    @property
    def done(self) -> bool:
        """Whether it has hit as often as it was asked to; one without a number of times, once is enough."""
        return self.hits >= (1 if self.times is None else self.times)

    @property
    def spent(self) -> bool:
        """Whether it hits nothing any more."""
        return self.times is not None and self.hits >= self.times


class Faults:
    """The faults that wait, in the order in which they were added."""

    def __init__(self, routes: frozenset[str]) -> None:
        self._routes = routes
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        """Queue one; raises ValueError for a route, a fault or an option that does not exist."""
        name = "status" if isinstance(fault.kind, int) else fault.kind
        if fault.route not in self._routes and fault.route != "*":
            raise ValueError(f"no route {fault.route!r}; "
                             f"there are {', '.join(sorted(self._routes))} and * for all")
        if name not in OPTIONS or (name == "status" and fault.kind not in STATUSES):
            raise ValueError(f"no fault {fault.kind!r}; there are {', '.join(OPTIONS)} (status: "
                             f"{', '.join(map(str, STATUSES))})")
        if unknown := fault.options.keys() - OPTIONS[name].keys():
            raise ValueError(f"{fault.kind} has no option {', '.join(sorted(unknown))}")
        fault.options = {**OPTIONS[name], **fault.options}
        with self._lock:
            self._waiting.append(fault)
        return fault

    def take(self, route: str, path: str) -> Fault | None:
        """The fault that hits this request, if any; the first in its queue lets it pass or takes it."""
        with self._lock:
            for fault in self._waiting:
                if fault.route not in (route, "*") or fault.match not in path or fault.spent:
                    continue
                if fault.after > 0:
                    fault.after -= 1
                    return None
                fault.hits += 1
                return fault
        return None

    def left(self) -> list[Fault]:
        """Those that have not hit as often as they should have."""
        with self._lock:
            return [fault for fault in self._waiting if not fault.done]

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._waiting.clear()


def misbehave(fault: Fault, connection: Connection, make: Make) -> None:
    """Let the fault happen; `make`, which does the request's work and answers, is called where it is done."""
    if isinstance(fault.kind, int):
        connection.send(_status(fault.kind, fault.options))
    else:
        _ACTIONS[fault.kind](fault.options, connection, make)


def _status(status: int, options: dict[str, Any]) -> Answer:
    headers = dict(options["headers"] or {})
    if options["retry_after"] is not None:
        headers["Retry-After"] = str(options["retry_after"])
    answer = Refusal(status, options["message"] or f"Injected {status}", options["code"], headers).answer()
    return replace(answer, body=json.dumps({**json.loads(answer.body), **(options["fields"] or {})}).encode())


def _reset(options: dict[str, Any], connection: Connection, make: Make) -> None:
    connection.reset()


def _hang(options: dict[str, Any], connection: Connection, make: Make) -> None:
    if not connection.closing.wait(options["seconds"]) and options["answer"]:
        connection.send(make())
    else:
        connection.reset()


def _truncate(options: dict[str, Any], connection: Connection, make: Make) -> None:
    answer = make()
    keep = len(answer.body) // 2 if options["keep"] is None else options["keep"]
    connection.send(answer, answer.body[:keep])
    connection.close()


def _flip(options: dict[str, Any], connection: Connection, make: Make) -> None:
    answer = make()
    body = bytearray(answer.body)
    if body:
        body[len(body) // 2 if options["at"] is None else options["at"]] ^= 0x01
    connection.send(answer, bytes(body))


def _applied_lost(options: dict[str, Any], connection: Connection, make: Make) -> None:
    make()
    connection.reset()


def _slow(options: dict[str, Any], connection: Connection, make: Make) -> None:
    answer, pieces = make(), options["pieces"]
    size = max(1, -(-len(answer.body) // pieces))
    connection.send(answer, b"")
    for start in range(0, len(answer.body), size):
        if connection.closing.wait(options["seconds"] / pieces):
            return connection.reset()
        connection.write(answer.body[start:start + size])


def _garbage(options: dict[str, Any], connection: Connection, make: Make) -> None:
    connection.send(GARBAGE)


_ACTIONS: Final[dict[str, Callable[[dict[str, Any], Connection, Make], None]]] = {
    "reset": _reset, "hang": _hang, "truncate": _truncate, "flip": _flip, "applied-lost": _applied_lost,
    "slow": _slow, "garbage": _garbage,
}
