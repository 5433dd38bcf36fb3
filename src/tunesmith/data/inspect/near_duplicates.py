"""Rows that say nearly the same: within each side, and across the held-out rows.

Candidates are found with MinHash (Broder 1997; datasketch) over pairs of words, for short rows over four
characters, and then compared word by word. What most rows share, such as an instruction, is left out first.
datasketch's own index keeps a Python object for each row and band, several GiB for a million rows; here the
bands are columns of an array in a file.
"""

from __future__ import annotations

import difflib
import re
import tempfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow

#: Two rows are nearly the same from this share of equal words on; words that differ in few letters are equal.
_SAME, _SAME_WORD = 0.9, 0.8
#: MinHash values that make a band, and bands: rows that share 70% of their parts share a band in 99.98% of
#: cases.
_VALUES, _BANDS = 4, 32
#: Rows of fewer words are compared by characters, rows of more than `_SHORT - _OVERLAP` by pairs of words.
_SHORT, _OVERLAP = 40, 10
#: Fewer own words than this tell nothing. Of longer rows only the beginning is compared [words].
_FEWEST, _LONGEST = 5, 400
#: Rows in which what they share is looked for; it is shared when it stands in this share of them, at least in
#: so many.
_FIRST, _SHARED_BY, _SHARED_ROWS = 1000, 0.02, 8
#: Rows of one band that a row is compared with.
_COMPARED = 3
#: Numbers and signs make a difference that few letters do not: rows that differ in them are not the same.
_EXACT = re.compile(r"\d+|[+*/=<>%^&|~\\$#@]|(?<=\s)-(?=\s)")
#: Words; of scripts that write without blanks, characters.
_WORD = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|\\w+")


class NearDuplicates(Check):
    """Rows that are equal word for word and sign for sign are left to `duplicates`."""

    cheap = False

    def __init__(self, facts: Facts) -> None:
        from datasketch import MinHash  # a second, with scipy: not at the start of every run

        super().__init__(facts)
        self._waiting: list[tuple[str, bool, int]] | None = []
        self._shared: frozenset[tuple[str, ...]] = frozenset()
        self._hash = MinHash(num_perm=_VALUES * _BANDS, hashfunc=int)
        self._words = _Texts()
        self._bands = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the check
        self._held_out, self._content = array("b"), array("Q")

    def see(self, row: SeenRow) -> None:  # noqa: D102
        entry = row.text, row.held_out, row.content_hash
        if self._waiting is None:
            self._take(*entry)
            return
        self._waiting.append(entry)
        if len(self._waiting) == _FIRST:
            self._take_waiting()

    def _take_waiting(self) -> None:
        waiting, self._waiting = self._waiting or [], None
        counts: Counter[tuple[str, ...]] = Counter()
        for text, _, _ in {entry[2]: entry for entry in waiting}.values():
            counts.update(set(_triples(_words(text))))
        least = max(_SHARED_ROWS, _SHARED_BY * len(waiting))
        self._shared = frozenset(triple for triple, count in counts.items() if count >= least)
        for entry in waiting:
            self._take(*entry)

    def _take(self, text: str, held_out: bool, content: int) -> None:
        every = _words(text)
        words = _own(every, self._shared)
        exact = zlib.crc32(" ".join(_EXACT.findall(text)).encode("utf-8", "surrogatepass"))
        self._words.append(" ".join(every))
        self._held_out.append(held_out)
        self._content.append(content)
        for long in (True, False):
            self._bands.write(self._band_values(words, exact, long).tobytes())

    def _band_values(self, words: list[str], exact: int, long: bool) -> npt.NDArray[np.uint32]:
        """One number for each band; zeros where the row has no such parts."""
        if len(words) < _FEWEST or (len(words) < _SHORT - _OVERLAP if long else len(words) >= _SHORT):
            return np.zeros(_BANDS, np.uint32)
        if long:
            parts = [zlib.crc32(f"{one} {two}".encode("utf-8", "surrogatepass"))
                     for one, two in pairwise(words)]
        else:
            text = " ".join(words)
            parts = [zlib.crc32(text[start:start + 4].encode("utf-8", "surrogatepass"))
                     for start in range(len(text) - 3)]
        minhash = self._hash.copy()
        minhash.update_batch([part ^ exact for part in set(parts)])
        bands = minhash.digest().astype(np.uint64).reshape(_BANDS, _VALUES)
        mixed = np.zeros(_BANDS, np.uint64)
        for column in bands.T:
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        return np.maximum((mixed >> np.uint64(32)).astype(np.uint32), 1)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        if self._waiting is not None:
            self._take_waiting()
        partner: dict[int, int] = {}
        across: dict[int, int] = {}
        for one, two in self._pairs():
            if self._held_out[one] != self._held_out[two]:
                held, train = (one, two) if self._held_out[one] else (two, one)
                across.setdefault(held, train)
            else:
                partner.setdefault(max(one, two), min(one, two))
        yield from self._described(
            "held_out_near_duplicates", across, places,
            ("is held out and says nearly the same as a training row",
             "are held out and say nearly the same as a training row"),
            "Move them to the training side, or remove them there: the verdict is better than it should be.")
        yield from self._described(
            "near_duplicates", partner, places,
            ("says nearly the same as an earlier row", "say nearly the same as an earlier row"),
            "Keep one of each, unless these rows are meant to weigh more.")

    def _described(self, kind: str, partners: dict[int, int], places: Places, phrase: tuple[str, str],
                   advice: str) -> list[Finding]:
        hits = places.hits(sorted(partners))
        example = f" ({hits.rows[0]}, and {places[partners[hits.indices[0]]]})" if hits.count else ""
        return self.found(kind, "warning", rows_phrase(hits.count, *phrase) + example, advice, hits)

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """Pairs of rows that say nearly, and not exactly, the same."""
        count = len(self._held_out)
        if not count:
            return
        self._bands.flush()
        bands = np.memmap(self._bands, np.uint32, "r", shape=(count, 2 * _BANDS))
        compared: set[tuple[int, int]] = set()
        for column in range(2 * _BANDS):
            values = np.array(bands[:, column])
            order = np.argsort(values, kind="stable")
            order = order[np.searchsorted(values[order], 1):]
            values = values[order]
            for ahead in range(1, _COMPARED + 1):
                for place in np.flatnonzero(values[ahead:] == values[:-ahead]):
                    pair = int(order[place]), int(order[place + ahead])
                    if pair in compared or self._content[pair[0]] == self._content[pair[1]]:
                        continue
                    compared.add(pair)
                    if self._same(*pair):
                        yield pair

    def _same(self, one: int, two: int) -> bool:
        """Whether two rows say nearly the same, also in what is their own."""
        texts = [self._words[index].split(" ") for index in (one, two)]
        return nearly_same(*texts) and (not self._shared
                                        or nearly_same(*(_own(words, self._shared) for words in texts)))


class _Texts:
    """Many texts in a file, read back one by one."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this
        self._ends = array("Q", [0])

    def append(self, text: str) -> None:
        content = text.encode("utf-8", "surrogatepass")
        self._file.seek(self._ends[-1])
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def __getitem__(self, index: int) -> str:
        self._file.seek(self._ends[index])
        return self._file.read(self._ends[index + 1] - self._ends[index]).decode("utf-8", "surrogatepass")


def nearly_same(first: list[str], second: list[str]) -> bool:
    """Whether two texts have nearly all words, in their order; a changed letter changes no word."""
    if min(len(first), len(second)) < _SAME * max(len(first), len(second)) - 1:
        return False
    same = 0
    for what, start, end, other_start, other_end in difflib.SequenceMatcher(
            None, first, second, autojunk=False).get_opcodes():
        if what == "equal":
            same += end - start
        elif what == "replace" and end - start == other_end - other_start:
            same += sum(_alike(a, b)
                        for a, b in zip(first[start:end], second[other_start:other_end], strict=True))
    return 2 * same >= _SAME * (len(first) + len(second))


def _alike(one: str, two: str) -> bool:
    return difflib.SequenceMatcher(None, one, two, autojunk=False).ratio() >= _SAME_WORD


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())[:_LONGEST]


def _triples(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(words, words[1:], words[2:], strict=False)


def _own(words: list[str], shared: frozenset[tuple[str, ...]]) -> list[str]:
    """The words that stand in no part that many rows share."""
    if not shared:
        return words
    kept = [True] * len(words)
    for start, triple in enumerate(_triples(words)):
        if triple in shared:
            kept[start:start + 3] = [False] * 3
    return [word for word, keep in zip(words, kept, strict=True) if keep]
