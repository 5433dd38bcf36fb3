"""What goes over the wire: requests, answers, refusals as the Hub words them, and byte ranges."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Literal

Origin = Literal["hub", "lfs"]


@dataclass(frozen=True)
class Request:
    """A request; `path` is quoted, without query; `arguments` are the unquoted parts that the route found."""

    method: str
    path: str
    origin: Origin
    query: dict[str, list[str]]
    headers: Message
    body: bytes
    arguments: dict[str, str]

    def first(self, key: str, default: str = "") -> str:
        """The first value of a key of the query."""
        return self.query.get(key, [default])[0]

    def json(self) -> dict[str, Any]:
        """The body, which must be one JSON object."""
        try:
            value = json.loads(self.body)
        except ValueError as error:
            raise Refusal(400, f"The body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise Refusal(400, "The body is not a JSON object")
        return value


@dataclass(frozen=True)
class Answer:
    """One response; Content-Length is always that of `body`, also where only a part of it is sent."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """The server says no: a status, a message, and the Hub's error code where it has one."""

    def __init__(self, status: int, message: str, code: str | None = None,
                 headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})

    def answer(self) -> Answer:
        """The Hub's shape of an error: the message in a header and in the body, the code in a header."""
        headers = {"X-Error-Message": self.message.replace("\n", " ").encode("ascii", "replace").decode(),
                   **self.headers}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return json_answer({"error": self.message}, self.status, headers)


def json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer whose body is JSON."""
    return Answer(status, json.dumps(value).encode(),
                  {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def content_answer(request: Request, data: bytes, headers: Mapping[str, str]) -> Answer:
    """The bytes of a file, or the one range of them that was asked for."""
    common = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    asked = request.headers.get("Range")
    if asked is None or request.method == "HEAD":
        return Answer(200, data, common)
    span = byte_range(asked, len(data))
    if span is None:
        raise Refusal(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{len(data)}"})
    start, end = span
    return Answer(206, data[start:end], {**common, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})


def byte_range(asked: str, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of `bytes=a-b`, `bytes=a-` or `bytes=-n`; None when outside the file."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        return (max(0, size - int(last)), size) if int(last) > 0 < size else None
    start, end = int(first), min(size, int(last) + 1) if last else size
    return (start, end) if start < end else None
