"""Many token rows behind one small interface: a list of them, or a table on disk that is read row by row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from tunesmith.data.tokenize import TokenRow


class TokenRows(Sequence[TokenRow]):
    """Token rows that need not be in memory; what is asked of all of them at once comes as arrays."""

    @property
    @abstractmethod
    def lengths(self) -> np.ndarray:
        """The tokens of each row."""

    @property
    @abstractmethod
    def loss_tokens(self) -> np.ndarray:
        """How many tokens of each row bear loss."""

    @property
    @abstractmethod
    def largest(self) -> np.ndarray:
        """The largest token of each row."""

    @abstractmethod
    def take(self, indices: np.ndarray) -> TokenRows:
        """The rows of these numbers, in this order, not copied."""

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> TokenRows: ...
    @abstractmethod
    def __getitem__(self, index: int | slice) -> TokenRow | TokenRows:
        """A row, or some rows that are not copied."""


def lengths_of(rows: Sequence[TokenRow]) -> list[int]:
    """The tokens of each row."""
    if isinstance(rows, TokenRows):
        return [int(length) for length in rows.lengths]
    return [len(row.ids) for row in rows]


def loss_tokens_of(rows: Sequence[TokenRow]) -> np.ndarray:
    """How many tokens of each row bear loss."""
    if isinstance(rows, TokenRows):
        return rows.loss_tokens.astype(np.int64)
    return np.array([row.loss_tokens for row in rows])


def largest_of(rows: Sequence[TokenRow]) -> np.ndarray:
    """The largest token of each row."""
    if isinstance(rows, TokenRows):
        return rows.largest
    return np.array([max(row.ids, default=0) for row in rows], dtype=np.int64)


def taken(rows: Sequence[TokenRow], indices: Iterable[int]) -> Sequence[TokenRow]:
    """The rows of these numbers, in this order."""
    if isinstance(rows, TokenRows):
        return rows.take(np.fromiter(indices, dtype=np.int64))
    return [rows[i] for i in indices]
