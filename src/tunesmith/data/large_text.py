"""The texts of a data set that is too large for memory: read again whenever they are asked for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from typing import Any, overload

import numpy as np

from tunesmith.data.examples import Example, ExampleMaker
from tunesmith.data.sets import TextSet, form_of
from tunesmith.data.sources import Source
from tunesmith.data.split import HASH, held_out_by, stands_in
from tunesmith.errors import DataError
from tunesmith.recipe.schema import DataSection


@dataclass(frozen=True)
class Contents:
    """What is known of a source's examples once all were read.

    hashes: of the content of each. written: how columns that are no text were written. skipped: bad rows.
    """

    hashes: np.ndarray
    written: Mapping[tuple[str, str], int]
    skipped: int


@dataclass(frozen=True)
class Sides:
    """Of each example of a source whether it is trained on, and of each of the source that is held out from
    whether it is judged on. contents: of these sources; they may be one.
    """

    train: np.ndarray
    validation: np.ndarray
    contents: tuple[Contents, ...]

    @classmethod
    def of(cls, contents: tuple[Contents, ...], amount: Any) -> Sides:
        """The sides of one source, with `data.validation` as an amount, or of two. Raises DataError."""
        hashes = contents[0].hashes
        if len(contents) == 1:
            held_out = held_out_by(hashes, amount)
            return cls(~held_out, held_out, contents)
        train = ~stands_in(hashes, contents[1].hashes)
        if not train.any():
            raise all_repeated()
        return cls(train, np.ones(len(contents[1].hashes), dtype=np.bool_), contents)

    @property
    def repeated(self) -> int:
        """How many examples are in both sources."""
        return int((~self.train).sum()) if len(self.contents) == 2 else 0

    @property
    def content_hash(self) -> str:
        """As that of the same examples in memory."""
        digest = hashlib.sha256()
        for contents, side in ((self.contents[0], self.train), (self.contents[-1], self.validation)):
            hashes = contents.hashes[side]
            digest.update(str(len(hashes)).encode())
            for start in range(0, len(hashes), 1 << 16):
                digest.update(hashes[start:start + (1 << 16)].tobytes().hex().encode())
        return digest.hexdigest()


def all_repeated() -> DataError:
    """The error for training rows that are all held out."""
    return DataError("every row also stands in data.validation, so none is left to learn from",
                     setting="data.source")


class LargeText:
    """Training and validation examples that are read from their sources one at a time.

    What has to be known of all of them is found out by reading them once, unless it is known from the cache
    of their tokens.
    """

    def __init__(self, settings: DataSection, sources: tuple[Source, ...]) -> None:
        self.settings, self.sources, self.form = settings, sources, form_of(settings)
        self._sides: Sides | None = None

    @property
    def files(self) -> list[str]:
        """What was taken of data.source."""
        return self.sources[0].files

    @property
    def validation_files(self) -> list[str]:
        """What was taken of data.validation."""
        return self.sources[1].files if len(self.sources) > 1 else []

    @property
    def sides(self) -> Sides:
        """Which examples are trained on, and which are held out. Raises DataError."""
        if self._sides is None:
            self.know(tuple(self._contents(source) for source in self.sources))
        assert self._sides is not None
        return self._sides

    def know(self, contents: tuple[Contents, ...]) -> None:
        """Take what is known of the sources. Raises DataError where nothing is left to learn from."""
        self._sides = Sides.of(contents, self.settings.validation)

    def _contents(self, source: Source) -> Contents:
        maker, hashes = ExampleMaker(self.form), bytearray()
        for example in maker.make_all(source.rows(), source.skipped.reject):
            hashes += bytes.fromhex(example.content_hash)
        return Contents(np.frombuffer(bytes(hashes), dtype=HASH), maker.written, source.skipped.count)

    @property
    def train(self) -> Sequence[Example]:
        """The examples to learn from."""
        return _Side(self, self.sources[0], self.sides.train)

    @property
    def validation(self) -> Sequence[Example]:
        """The examples that are held out."""
        return _Side(self, self.sources[-1], self.sides.validation)

    @property
    def repeated(self) -> int:
        """How many training examples were left out, as they are held out, too."""
        return self.sides.repeated

    @property
    def written(self) -> Mapping[tuple[str, str], int]:
        """How columns that are no text were written."""
        return sum((Counter(each.written) for each in self.sides.contents), Counter())

    @property
    def skipped(self) -> int:
        """Rows that were left out as they are bad."""
        return sum(each.skipped for each in self.sides.contents)

    @property
    def skipped_first(self) -> Sequence[str]:
        """What was wrong with the first of these; nothing where their number is known from the cache."""
        return [reason for source in self.sources for reason in source.skipped.first]

    @property
    def content_hash(self) -> str:
        """SHA-256 over the content of every example, in order."""
        return self.sides.content_hash

    def beginning(self, most: int) -> TextSet:
        """The sides as far as the first examples of each source go."""
        first = [list(islice(self.examples(source), most)) for source in self.sources]
        sides = self.sides
        return TextSet(list(compress(first[0], sides.train)), list(compress(first[-1], sides.validation)),
                       sides.repeated, self.written, self.files, self.validation_files, self.skipped)

    def examples(self, source: Source) -> Iterator[Example]:
        """All examples of a source; bad rows are skipped as they were when they were counted and told."""
        source.skipped.begin()
        return ExampleMaker(self.form).make_all(source.read(), source.skipped.reject)


class _Side(Sequence[Example]):
    """Some examples of a source, read from its beginning each time."""

    def __init__(self, text: LargeText, source: Source, wanted: np.ndarray) -> None:
        self._text, self._source, self._wanted = text, source, wanted
        self._count = int(wanted.sum())

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Example]:
        return compress(self._text.examples(self._source), self._wanted)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        """One example, or some as a list: the rows before it are read, too."""
        numbers = range(self._count)[index]
        if isinstance(numbers, int):
            return next(islice(iter(self), numbers, None))
        wanted = dict.fromkeys(numbers)
        found = {n: each for n, each in zip(range(max(numbers, default=-1) + 1), self, strict=False)
                 if n in wanted}
        return [found[n] for n in numbers]
