"""Text of others' making, shown so that nothing in it acts: no escape sequences, no turned direction.

The one place for it; terminal, report and card use it, each with its own escaping on top.
"""

from __future__ import annotations

import re

#: Control characters but tab and newline (C0, DEL, C1), marks and overrides of the writing direction,
#: separators that some programs take for line ends, characters without width, the byte order mark, tags, and
#: halves of surrogate pairs.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_LINE = re.compile(f"{_UNSEEN.pattern[:-1]}\t\n]")


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return {9: r"\t", 10: r"\n", 13: r"\r"}.get(code) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def visible(text: str) -> str:
    """The text with every such character written as Python escapes it; lines stay lines."""
    return _UNSEEN.sub(_shown, text)


def on_one_line(text: str, most: int = 200) -> str:
    """The same on one line, for a name, a column or a key; cut at `most` characters."""
    shown = _LINE.sub(_shown, text)
    return shown if len(shown) <= most else shown[:most - 3] + "..."


def json_visible(text: str) -> str:
    """JSON whose strings hold no such character: each is escaped as JSON does."""
    def escaped(match: re.Match[str]) -> str:
        units = match[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[i:i + 2].hex()}" for i in range(0, len(units), 2))

    return _UNSEEN.sub(escaped, text)
