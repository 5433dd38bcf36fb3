"""The tokens of a data set that is too large for memory: made once on all cores, kept in the cache, read row
by row.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from tunesmith.data.cache import EXAMPLE, Damaged, Entry, EntryWriter, new_entry, open_entry
from tunesmith.data.chat.remarks import ChatRemarks
from tunesmith.data.examples import ExampleMaker
from tunesmith.data.large_text import Contents, LargeText
from tunesmith.data.making import Making
from tunesmith.data.sets import Dataset
from tunesmith.data.sources import Source
from tunesmith.data.token_worker import ChunkOfTokens
from tunesmith.data.token_workers import TokenWorkers
from tunesmith.data.tokenize import Rules
from tunesmith.data.tokenized import none_left
from tunesmith.errors import IntegrityError

#: Of the code that makes tokens of rows: another number, and all is tokenized again.
_TOKENIZATION = 1
#: Files of which the rows are counted by their lines.
_BY_LINES = (".jsonl", ".ndjson", ".csv", ".tsv")
_LIBRARIES = ("transformers", "tokenizers")


def large_dataset(text: LargeText, rules: Rules, making: Making, *, training: bool = True) -> Dataset:
    """The token rows of large texts, from the cache, or made and put there. As `tokenize_text`.

    `text` knows its sides afterwards. Raises also EnvironmentFault, and DiskError where the cache cannot be
    written.
    """
    entries = tuple(_entry(text, source, rules, making) for source in text.sources)
    text.know(tuple(Contents(each.examples["hash"], each.written, each.skipped) for each in entries))
    sides = text.sides
    both = ((entries[0], sides.train, training), (entries[-1], sides.validation, True))
    rows = [entry.rows.take(np.flatnonzero(np.repeat(side & wanted, entry.examples["rows"])))
            for entry, side, wanted in both]
    examples = [entry.examples[side] for entry, side, wanted in both if wanted]
    counts = {name: sum(int(each[name].sum()) for each in examples) for name in ("truncated", "dropped")}
    counts |= {"repeated": text.repeated, "train": len(rows[0]), "validation": len(rows[1]),
               "tokens": int(rows[0].lengths.sum())}
    remarks = ChatRemarks()
    for entry, side, wanted in both:
        numbers = np.bincount(entry.examples["remarks"][side & wanted], minlength=len(entry.remarks))
        for place in np.flatnonzero(numbers).tolist():
            remarks.add(json.loads(entry.remarks[place]), int(numbers[place]))
    for side, made, wanted in ((sides.train, rows[0], training), (sides.validation, rows[1], True)):
        if wanted and side.any() and not len(made):
            raise none_left(int(side.sum()), rules, remarks.refused, held_out=made is rows[1])
    return Dataset(rows[0], rows[1], counts, remarks, sum(int(each["special"].sum()) for each in examples))


def _entry(text: LargeText, source: Source, rules: Rules, making: Making) -> Entry:
    key = _key(text, source, rules, making)
    damage = None
    try:
        found = open_entry(key)
    except Damaged as error:
        found, damage = None, error
    if found is not None:
        making.tell(f"{source.key}: the tokens of {len(found.examples):,} rows are taken from {found.path}.")
        for line in found.said:
            source.say(line)
        return found
    if damage is not None:
        making.tell(f"The kept tokens of {source.name} are damaged ({damage}): they are made again.")
    started = time.monotonic()
    with new_entry(key) as writer:
        count = _make(text, source, rules, making, writer)
    try:
        made = open_entry(key)
    except Damaged as error:
        raise IntegrityError(f"the tokens of {source.name} were damaged as they were written: {error}",
                             "Run the same command again.") from None
    if made is None:
        raise IntegrityError(f"the tokens of {source.name} were removed as they were written",
                             "Run the same command again.")
    making.tell(f"{source.key}: {count:,} rows tokenized in {time.monotonic() - started:.0f} s and kept for "
                f"other runs: {made.path} ({made.bytes / 2**20:,.0f} MiB).")
    return made


def _make(text: LargeText, source: Source, rules: Rules, making: Making, writer: EntryWriter) -> int:
    """Tokenize a source; returns how many examples it has."""
    whole, count, maker = _expected_rows(source), 0, ExampleMaker(text.form)
    said, tell = [], source.tell

    def remember(line: str) -> None:
        said.append(line)
        tell(line)

    source.tell = remember
    source.skipped.begin()
    try:
        with TokenWorkers(making.loader, rules) as workers:
            for chunk in workers.run(maker.make_all(source.read(), source.skipped.reject)):
                count += _add(chunk, writer)
                making.progress(min(count + source.skipped.count, whole), whole)
        source.end(count)
    finally:
        source.tell = tell
    making.progress(whole, whole)
    writer.finish({"written": [[*key, times] for key, times in maker.written.items()], "said": said,
                   "skipped": source.skipped.count})
    return count


def _add(chunk: ChunkOfTokens, writer: EntryWriter) -> int:
    """Put a chunk into an entry; returns how many examples it has."""
    examples = np.frombuffer(chunk.examples, dtype=EXAMPLE)
    if len(examples):
        with pa.ipc.open_stream(chunk.rows) as stream:
            writer.add(stream.read_next_batch(), examples, chunk.remarks)
    return len(examples)


def _key(text: LargeText, source: Source, rules: Rules, making: Making) -> str:
    """The name of the tokens of a source: a hash of all that they are made of."""
    settings = text.settings
    made_of = [[str(part), _file_hash(part) if isinstance(part, Path) else ""] for part in source.made_of]
    held_out = settings.validation if source.key == "data.validation" else None
    content = [_TOKENIZATION, [importlib.metadata.version(name) for name in _LIBRARIES], made_of, source.name,
               settings.split, settings.name, settings.weights, settings.bad_rows, held_out,
               asdict(text.form), asdict(rules), making.tokenizer]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _expected_rows(source: Source) -> int:
    """About how many rows a source has, for a progress bar; 0 where that is not known."""
    rows = 0
    for part in source.made_of:
        if not isinstance(part, Path) or part.suffix.lower() not in (*_BY_LINES, ".parquet"):
            return 0
        if part.suffix.lower() == ".parquet":
            from pyarrow import parquet

            rows += parquet.read_metadata(part).num_rows
        else:
            with open(part, "rb", buffering=0) as file:
                while block := file.read(1 << 20):
                    rows += block.count(b"\n")
    return rows
