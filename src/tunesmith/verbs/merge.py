"""`tunesmith merge`: base and adapter in one plain model, measured against the live adapter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.model.quantization import AS_THEY_ARE
from tunesmith.paths import expanded
from tunesmith.recipe import load_recipe
from tunesmith.rundir import require_free
from tunesmith.verbs.adapters import (
    AdapterFiles,
    adapter_base,
    base_option,
    find_adapter,
    require_base,
    require_choices,
)
from tunesmith.verbs.show import Show, Silent

if TYPE_CHECKING:
    from tunesmith.data.tokenize import TokenRow
    from tunesmith.model.engine import Engine
    from tunesmith.model.files import BaseFiles

#: Rows to measure on at most, and prompts to answer.
_ROWS, _PROMPTS, _NEW_TOKENS = 64, 20, 32


def merge(adapter: str | os.PathLike[str], out: str | os.PathLike[str], *,
          recipe: str | os.PathLike[str] | None = None, base: str | None = None,
          quantization: str | None = None, device: str = "auto", show: Show | None = None) -> dict[str, Any]:
    """Merge an adapter into its base, as a plain transformers checkpoint in the base's dtype.

    adapter: a run, an adapter folder or a Hub id. out: a folder that does not exist yet. An adapter that was
    trained on a quantised base is merged onto the base's own weights and onto those that training saw; both
    are measured against the live adapter, and the nearer one is kept. recipe: names held-out rows to measure
    on; by default those of the run that the adapter stands in, else the embedded quotes. Returns out, taken,
    candidates and bare (KL [nats a token], top-1, greedy, loss, by name), untied, files, bytes. Raises
    UsageError, IntegrityError (the adapter does not fit, or every merge has lost it), DiskError,
    NetworkError.
    """
    show = show or Silent()
    require_choices(quantization=quantization, device=device)
    adapter_files = find_adapter(os.fspath(adapter), show)
    base_spec = adapter_base(adapter_files, base=base, quantization=quantization)
    require_free(expanded(out))
    show.stage("starting torch")
    from tunesmith.model.build import build_with_adapter, build_without_adapter
    from tunesmith.model.files import locate_base
    from tunesmith.model.placement import place_base
    from tunesmith.model.tokenizer import load_tokenizer
    from tunesmith.share.merge import merge_adapter

    with base_option(adapter_files.folder, named=base is not None):
        files = locate_base(base_spec["base"], base_spec["revision"], show.note)
    require_base(adapter_files, files, show, named=base is not None)
    tokenizer = load_tokenizer(files)
    rows, measured_on = _rows(adapter_files, files, tokenizer, recipe, show)

    def live() -> Engine:
        placement = place_base(files, quantization=base_spec["quantization"], device=device,
                               adapter=adapter_files.folder)
        built = build_with_adapter(files, tokenizer, adapter_files.folder, placement)
        for note in built.notes:
            show.note(note)
        return built

    def merged(folder: Path) -> Engine:
        plain = locate_base(str(folder), None)
        placement = place_base(plain, quantization=AS_THEY_ARE, device=device)
        return build_without_adapter(plain, tokenizer, placement)

    result = merge_adapter(files, adapter_files.folder, Path(out), quantization=base_spec["quantization"],
                           load_live=live, load_merged=merged, rows=rows, prompts=_prompts(rows, files),
                           max_new_tokens=_NEW_TOKENS, on_stage=show.stage,
                           progress=lambda done, whole: show.progress("merging", done, whole))
    return {"base": base_spec["base"], "quantization": base_spec["quantization"],
            "measured_on": measured_on, **result}


def _prompts(rows: Sequence[TokenRow], base: BaseFiles) -> list[list[int]]:
    """Prompts that leave room for an answer in the base's positions."""
    return [row.prompt_ids for row in rows
            if base.positions is None or len(row.prompt_ids) + _NEW_TOKENS <= base.positions][:_PROMPTS]


def _rows(adapter_files: AdapterFiles, base: BaseFiles, tokenizer: Any, recipe: str | os.PathLike[str] | None,
          show: Show) -> tuple[list[TokenRow], str]:
    """(rows to measure on, what they are called): held out by the recipe, else the embedded quotes."""
    from tunesmith.data import read_text, tokenize_text
    from tunesmith.data.tokenize import Rules, rules_of
    from tunesmith.model.files import stop_ids
    from tunesmith.recipe import parse_recipe

    path = recipe or adapter_files.recipe
    longest = min(base.positions or 512, 512)
    if path is not None:
        chosen = load_recipe(os.fspath(path))
        if chosen.data.validation:
            show.stage("reading held-out rows")
            # By the run's own rules, which its rows have passed; of these, the ones short enough to measure.
            most = min(chosen.data.max_length, base.positions or chosen.data.max_length)
            rules = replace(rules_of(chosen.data, stop_ids(base, tokenizer)), max_length=most)
            validation = tokenize_text(read_text(chosen.data, show.note), tokenizer, rules,
                                       training=False).validation
            cut = (replace(row, ids=row.ids[:longest], loss_mask=row.loss_mask[:longest])
                   for row in validation)
            whole = [row for row in validation if len(row.ids) <= longest]
            rows = (whole or [row for row in cut if any(row.loss_mask)])[:_ROWS]
            if rows:
                return rows, f"{len(rows)} held-out rows"
    plain = parse_recipe('data: {source: "embedded:quotes", prompt: "{quote}", '
                         'completion: " ({author})", validation: 64}\n'
                         'model: {base: "embedded:sprout"}\n', name="the embedded quotes")
    quotes = tokenize_text(read_text(plain.data), tokenizer, Rules("all", False, longest, "truncate"),
                           training=False)
    rows = list(quotes.validation[:_ROWS])
    show.note("No held-out rows of this adapter are known: the merge is measured on the embedded quotes. "
              "--recipe names rows.")
    return rows, "the embedded quotes"
