"""Text of others' making in a card: as Markdown that only shows it, and as Python that only holds it."""

from __future__ import annotations

import json
import re

from tunesmith.visible import on_one_line, visible

#: What Markdown, or HTML within it, would act on; an underscore inside a word is none.
_ACTIVE = re.compile(r"[\\`*\[\]<>&|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def plain(text: str) -> str:
    """The text on one line, every character that Markdown acts on escaped."""
    return _ACTIVE.sub(lambda match: "\\" + match[0], on_one_line(text, 2000))


def code(text: str) -> str:
    """The text as inline code, fenced by more backticks than it has in a row (CommonMark, section 6.1)."""
    shown = on_one_line(text, 2000)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    # A blank at each end is taken off by Markdown; a backtick there would belong to the fence.
    space = " " if not shown or shown[0] == "`" or shown[-1] == "`" or (shown[0] == shown[-1] == " ") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def literal(text: str) -> str:
    """The text as a Python string on one line, which evaluates to the same text and cannot end early."""
    return visible(json.dumps(text, ensure_ascii=False))
