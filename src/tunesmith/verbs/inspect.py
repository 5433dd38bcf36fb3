"""`tunesmith inspect`: the data as the model will see it, and what is wrong with it, before weights are
loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.dataset import read_text
from tunesmith.data.remarks import remarks_on
from tunesmith.data.sets import Dataset
from tunesmith.errors import UsageError
from tunesmith.model.files import BaseFiles, locate_tokenizer, read_config
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.verbs.audit import facts_of
from tunesmith.verbs.show import Show, Silent

if TYPE_CHECKING:
    from tunesmith.data.inspect import SeenRow, SeenRows

#: Rows on the page: the first ones, and then those that findings name; and between two words of progress.
_PAGE_ROWS, _PAGE_MOST, _TOLD_EVERY = 200, 500, 5000


def inspect(recipe: str | os.PathLike[str], html: str | os.PathLike[str] | None = None, rows: int = 0,
            overrides: Sequence[str] = (), show: Show | None = None) -> dict[str, Any]:
    """Audit a recipe's data with the base's tokenizer; weights are not needed.

    html: a file to write a page to that shows hundreds of rows. rows: how many of the first rows are returned
    as the model will see them. Returns rows (all of them), held_out (how many of these), tokens, loss_tokens,
    lengths (quantiles, before anything is cut), remarks (sentences on how the rows became text and tokens),
    lost_tokens (what data.max_length costs), histogram, findings (worst first: kind, severity, count, rows,
    message, advice), examples (where rows > 0: place, held_out, ids, pieces, loss_mask), and html (the page's
    path). Raises RecipeError, DataError (a source that cannot be read), NetworkError, IntegrityError,
    DiskError.
    """
    show = show or Silent()
    chosen = load_recipe(os.fspath(recipe), overrides)
    page = None if html is None else _page_path(html)
    show.stage("reading the data")
    text = read_text(chosen.data.model_copy(update={"bad_rows": "skip"}), show.note)
    base = _tokenizer_files(chosen, show)
    from tunesmith.data.inspect import SeenRows, audit, bad_rows, worst_first
    from tunesmith.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(base)
    facts = facts_of(chosen, base, tokenizer, repeated=text.repeated)
    seen = SeenRows(text, tokenizer, facts.rules)

    def on_row(done: int) -> None:
        if done % _TOLD_EVERY == 0:
            show.stage(f"looking at the rows: {done:,} of {len(seen):,}")

    show.stage("looking at the rows")
    found = audit(seen, facts, show_rows=max(rows, _PAGE_ROWS if page else 0), on_row=on_row)
    said = Dataset([], [], dict.fromkeys(("truncated", "dropped", "repeated"), 0), seen.remarks)
    found.counts["rows"] += text.skipped
    bad = bad_rows(text.skipped, text.skipped_first, facts.refused)
    result = {**found.counts, "max_length": facts.rules.max_length,
              "remarks": list(remarks_on(chosen.data, text, said)),
              "findings": [finding.as_dict() for finding in worst_first([*bad, *found.findings])]}
    if rows:
        result["examples"] = _examples(found.shown[:rows], tokenizer)
    if page is not None:
        show.stage("writing the page")
        _write_page(page, chosen, result, found.shown, _named_rows(seen, found.findings, found.shown),
                    tokenizer)
        result["html"] = str(page)
    return result


def _page_path(html: str | os.PathLike[str]) -> Path:
    path = Path(html)
    if path.is_dir():
        raise UsageError(f"--html: {path} is a folder", f"Name a file: --html {path / 'inspect.html'}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--html: {path.parent}: no such folder", f"Make it first: mkdir -p {path.parent}")
    if path.exists() and not path.read_bytes()[:200].lstrip().lower().startswith(b"<!doctype html"):
        raise UsageError(f"--html: {path} is there and is no page", "Name another file: --html inspect.html")
    return path


def _tokenizer_files(recipe: Recipe, show: Show) -> BaseFiles:
    """The base without its weights."""
    base = recipe.model
    folder = locate_tokenizer(base.base, base.revision, show.note)
    return BaseFiles(base.base, base.revision, folder, read_config(folder))


def _examples(shown: Sequence[SeenRow], tokenizer: Any) -> list[dict[str, Any]]:
    from tunesmith.data.inspect import pieces

    return [{"place": row.place, "held_out": row.held_out, "ids": list(tokens.ids),
             "pieces": pieces(tokenizer, tokens.ids), "loss_mask": list(tokens.loss_mask)}
            for row in shown for tokens in row.tokens]


def _named_rows(seen: SeenRows, findings: Sequence[Any], shown: Sequence[SeenRow]) -> list[SeenRow]:
    """The rows that findings name and that are not among those that are shown anyway."""
    have = {row.index for row in shown}
    wanted = [index for finding in findings for index in finding.indices if index not in have]
    return list(seen.at(wanted[:_PAGE_MOST - len(have)]))


def _write_page(path: Path, recipe: Recipe, result: dict[str, Any], shown: Sequence[SeenRow],
                named: Sequence[SeenRow], tokenizer: Any) -> None:
    from tunesmith.data.inspect.page import render_page
    from tunesmith.rundir import write_atomically

    write_atomically(path, render_page(
        {"base": recipe.model.base, "source": recipe.data.source_name, "loss_on": recipe.data.loss_on},
        result, [*named, *shown], tokenizer))
