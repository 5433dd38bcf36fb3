"""What becomes of a row that cannot be read: the end of the run, or, where the recipe says so, it is
skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tunesmith.errors import DataError

#: With `data.bad_rows: skip`: more than this many bad rows, and more than this share of all, is an error.
MOST_SKIPPED, MOST_SKIPPED_SHARE = 100, 0.01
#: How many bad rows are kept by place and reason.
_KEPT = 10


@dataclass
class BadRows:
    """Counts the rows that were skipped. skip: `data.bad_rows` is skip. first: what was wrong, the first
    few.
    """

    skip: bool = False
    count: int = 0
    first: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Forget what was counted: the rows are read from their beginning."""
        self.count, self.first = 0, []

    def reject(self, error: DataError) -> None:
        """A row that cannot be used. Raises the error, unless bad rows are skipped."""
        if not self.skip:
            raise error
        self.count += 1
        if len(self.first) < _KEPT:
            self.first.append(error.message)

    def require_few(self, rows: int) -> None:
        """Raise DataError where too many were skipped beside so many good rows."""
        share = self.count / max(1, rows + self.count)
        if self.count > MOST_SKIPPED and share > MOST_SKIPPED_SHARE:
            raise DataError(f"{self.count:,} of {rows + self.count:,} rows cannot be used, which is more "
                            "than "
                            f"{MOST_SKIPPED} and more than {MOST_SKIPPED_SHARE:.0%}. The first: "
                            f"{self.first[0]}",
                            "So many are a fault of the file or of the recipe, not of single rows: correct "
                            "it.",
                            setting="data.bad_rows")

    def summary(self) -> str:
        """The skipped rows in a line; empty where there are none."""
        if not self.count:
            return ""
        more = f" (and {self.count - 3:,} more)" if self.count > 3 else ""
        return (f"{self.count:,} row{'s' if self.count > 1 else ''} skipped (data.bad_rows): "
                f"{'; '.join(self.first[:3])}{more}")
