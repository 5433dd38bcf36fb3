"""What runs in a process that turns examples into tokens: chunks in, as JSON, Arrow record batches out.

Started by `token_workers` alone, with pipes to it. It has a tokenizer of its own, and a process of its own
that renders chat templates. Each message is one letter, its length and its content.
"""

from __future__ import annotations

import gc
import io
import json
import os
import struct
import sys
import traceback
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from tunesmith import errors
from tunesmith.data.cache import EXAMPLE
from tunesmith.data.chat.remarks import ChatRemarks
from tunesmith.data.examples import Example
from tunesmith.data.making import Loader
from tunesmith.data.store import batch_of
from tunesmith.data.tokenize import Encoder, Rules
from tunesmith.data.tokenized import Tokenized, tokenized
from tunesmith.errors import Kind, OutOfMemory, TunesmithError

_HEAD = struct.Struct("<cQ")
#: Messages: the worker is ready; a chunk of rows, or what became of it; an error of ours; a bug's traceback.
READY, CHUNK, FAILED, BUG = b"R", b"C", b"E", b"X"


@dataclass(frozen=True)
class ChunkOfTokens:
    """What became of a chunk of examples.

    rows: a record batch of token rows, as an Arrow stream. examples: an `EXAMPLE` of each example, as bytes.
    remarks: as JSON, what the examples' `remarks` are places in.
    """

    rows: bytes
    examples: bytes
    remarks: list[str]


def send(stream: IO[bytes], kind: bytes, content: bytes) -> None:
    """Write a message."""
    stream.write(_HEAD.pack(kind, len(content)))
    stream.write(content)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[bytes, bytes]:
    """Read a message. Raises EOFError where the other end is gone."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise EOFError
    kind, size = _HEAD.unpack(head)
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return kind, content


def packed(chunk: ChunkOfTokens) -> bytes:
    """As the content of a message: the small things, then rows and examples as they are."""
    small = json.dumps([len(chunk.rows), chunk.remarks]).encode()
    return b"".join((struct.pack("<Q", len(small)), small, chunk.rows, chunk.examples))


def unpacked(content: bytes) -> ChunkOfTokens:
    """The chunk in the content of a message."""
    at = 8 + struct.unpack_from("<Q", content)[0]
    size, remarks = json.loads(content[8:at])
    return ChunkOfTokens(content[at:at + size], content[at + size:], remarks)


def error_as_json(error: TunesmithError) -> bytes:
    """An expected failure, as the content of a message."""
    kind = error.kind.name if error.kind else None
    return json.dumps([type(error).__name__, error.problem, error.hint, error.setting, kind]).encode()


def error_from(content: bytes) -> TunesmithError:
    """The failure in the content of a message."""
    name, problem, hint, setting, kind = json.loads(content)
    made: TunesmithError = getattr(errors, name)(problem, hint, setting=setting, kind=kind and Kind[kind])
    return made


def _work(examples: list[Example], encoder: Encoder) -> ChunkOfTokens:
    """A chunk as tokens. Raises DataError, RecipeError."""
    remarks: dict[str, int] = {}
    about = np.zeros(len(examples), dtype=EXAMPLE)
    results = list(tokenized(examples, encoder))
    for number, (example, result) in enumerate(zip(examples, results, strict=True)):
        place = remarks.setdefault(_as_json(result.remarks), len(remarks))
        about[number] = _about(example, result, place)
    return ChunkOfTokens(_stream(results), about.tobytes(), list(remarks))


def _about(example: Example, result: Tokenized, remarks: int) -> tuple[Any, ...]:
    return (bytes.fromhex(example.content_hash), len(result.rows), result.truncated, result.dropped,
            result.special, remarks)


def _as_json(remarks: ChatRemarks) -> str:
    return json.dumps({name: value for name, value in vars(remarks).items() if value}, sort_keys=True)


def _stream(results: list[Tokenized]) -> bytes:
    batch = batch_of([row for result in results for row in result.rows])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def main() -> None:
    """Answer messages until there are no more."""
    answers, chunks = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # what a library prints is no message
    kind, answer = FAILED, b""
    try:
        loader, rules = json.loads(receive(chunks)[1])
        encoder = Encoder(Loader(**loader).load(), Rules(**rules | {"stop_ids": tuple(rules["stop_ids"])}))
        gc.freeze()
        gc.set_threshold(100_000)  # lists of tokens are no cycles: looking at them again and again takes time
        send(answers, READY, b"")
        while True:
            examples = [Example.from_json(line) for line in receive(chunks)[1].split(b"\n")]
            send(answers, CHUNK, packed(_work(examples, encoder)))
    except (EOFError, BrokenPipeError):  # whoever asked is gone, or has no more to ask
        return
    except TunesmithError as error:
        answer = error_as_json(error)
    except MemoryError:
        answer = error_as_json(OutOfMemory("this machine's memory is full", "Take shorter rows."))
    except Exception:
        kind, answer = BUG, traceback.format_exc().encode()
    send(answers, kind, answer)
