"""The text of each token, so that all of them together are the text of the row."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

#: Tokens before the one that is looked at that are decoded with it, and most that make one character.
_BEFORE = 8


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """For each token what it adds to the text. Of a character that several tokens make, the last has it."""
    found: list[str] = []
    whole = deque([0], maxlen=_BEFORE)  # ends of tokens at which a character ends, too
    for end in range(1, len(ids) + 1):
        start, done = whole[0], whole[-1]  # of what is decoded, and of what was given out
        before, now = _decode(tokenizer, ids[start:done]), _decode(tokenizer, ids[start:end])
        if now.endswith("�") and end < len(ids) and end - done < _BEFORE:
            found.append("")
            continue
        found.append(now[len(before):] if now.startswith(before) else now)
        whole.append(end)
    return found


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
