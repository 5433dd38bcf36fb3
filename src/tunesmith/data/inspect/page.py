"""The page of `inspect --html`: one file, nothing from the network, and no text of the data is ever HTML."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from tunesmith.data.inspect.pieces import pieces
from tunesmith.data.inspect.seen import SeenRow
from tunesmith.visible import visible

#: Tokens that are shown of one row, and on the whole page, so that a browser opens it.
_OF_A_ROW, _OF_THE_PAGE = 1500, 150_000


def render_page(recipe: Mapping[str, Any], result: Mapping[str, Any], rows: Sequence[SeenRow],
                tokenizer: Any) -> str:
    """The page as text. result: as `inspect --json` has it. rows: those that are shown, in order."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined,
                                     finalize=_visible_value, trim_blocks=True, lstrip_blocks=True)
    package = resources.files(__package__)
    script = (package / "page.js").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    left, shown = _OF_THE_PAGE, []
    for row in rows:
        if left <= 0:
            break
        shown.append(_row(row, tokenizer, min(left, _OF_A_ROW)))
        left -= sum(len(part["tokens"]) for part in shown[-1]["parts"]) or 20
    return environment.from_string((package / "page.html.jinja").read_text(encoding="utf-8")).render(
        recipe=recipe, result=result, rows=shown,
        most=max((bar["rows"] for bar in result["histogram"]), default=1), script=Markup(script),
        script_hash=digest)  # the script is ours


def _row(row: SeenRow, tokenizer: Any, most: int) -> dict[str, Any]:
    parts = []
    for tokens in row.tokens:
        ids = tokens.ids[:most]
        parts.append({"tokens": list(zip(ids, pieces(tokenizer, ids), tokens.loss_mask, strict=False)),
                      "rest": len(tokens.ids) - len(ids), "loss_tokens": tokens.loss_tokens,
                      "length": len(tokens.ids)})
    return {"place": row.place, "held_out": row.held_out, "parts": parts, "text": row.text[:2000],
            "why": row.refusal or (f"left out: {row.longest:,} tokens" if row.overlong else "")}


def _visible_value(value: Any) -> Any:
    """Text of others' making is escaped by autoescape; this shows what it holds besides."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
