"""The audit of the data as verbs make it: what the checks know besides the rows, and what a training run
says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.data.sets import Dataset, Texts
from tunesmith.data.tokenize import rules_of
from tunesmith.model.files import BaseFiles, stop_ids
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from tunesmith.data.inspect import Facts

#: Rows that a training run looks at.
_ROWS = 20_000
#: Said by `prepare` and by the verdict already.
_SAID = ("too_long", "answer_cut", "prompt_too_long", "few_held_out", "special_tokens_in_text")


def facts_of(recipe: Recipe, base: BaseFiles, tokenizer: Any, *, repeated: int = 0) -> Facts:
    """What the checks know besides the rows."""
    from tunesmith.data.inspect import Facts

    data = recipe.data
    rules = rules_of(data, stop_ids(base, tokenizer))
    config = base.config.get("text_config") if isinstance(base.config.get("text_config"),
                                                          dict) else base.config
    vocabulary = config.get("vocab_size") if isinstance(config, dict) else None
    return Facts(tokenizer=tokenizer, rules=rules, prompt_template=data.prompt,
                 completion_template=data.completion or "", conversations=data.completion is None,
                 stop_ids=frozenset(rules.stop_ids),
                 embedding_rows=vocabulary if isinstance(vocabulary, int) else None, half_width=_half_width,
                 repeated=repeated)


def _half_width(count: int) -> float | None:
    """The judge's, which brings torch along: imported where few rows are held out, and so asked for."""
    from tunesmith.judge.interval import half_width

    return half_width(count)


def cheap_findings(recipe: Recipe, base: BaseFiles, tokenizer: Any, text: Texts,
                   data: Dataset) -> list[str]:
    """What matters of the first rows, in at most two lines; by the checks that cost little."""
    from tunesmith.data.inspect import CHECKS, audit, seen_already

    checks = [check for check in CHECKS if check.cheap]
    found = audit(seen_already(text, data, _ROWS), facts_of(recipe, base, tokenizer), checks=checks)
    findings = [finding for finding in found.findings
                if finding.severity != "note" and finding.kind not in _SAID]
    if not findings:
        return []
    worst, others = findings[0], findings[1:]
    lines = [f"{worst.message[:1].upper()}{worst.message[1:]}. {worst.advice}"]
    if others:
        named = ", ".join(f"{finding.kind} ({finding.count:,})" for finding in others)
        lines.append(f"Also found in the data: {named}. tunesmith inspect shows the rows and what to do.")
    return lines
