"""The audit: what the model will see of a data set, and what is wrong with it. A new finding is one file
here.

Every check sees the rows one at a time and keeps at most a few numbers for each, so that memory does not grow
with the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.inspect.answer_cut import AnswerCut
from tunesmith.data.inspect.blank_before_answer import PromptEndsInBlank
from tunesmith.data.inspect.constant_answer import ConstantAnswer
from tunesmith.data.inspect.control_characters import ControlCharacters
from tunesmith.data.inspect.doubled_beginning import DoubledBeginning
from tunesmith.data.inspect.duplicates import Duplicates
from tunesmith.data.inspect.empty_answer import EmptyAnswer
from tunesmith.data.inspect.end_not_learnt import EndNotLearnt
from tunesmith.data.inspect.few_held_out import FewHeldOut
from tunesmith.data.inspect.finding import RANK, Check, Finding, Places
from tunesmith.data.inspect.held_out_languages import HeldOutLanguages
from tunesmith.data.inspect.held_out_lengths import HeldOutLengths
from tunesmith.data.inspect.label_noise import LabelNoise
from tunesmith.data.inspect.lengths import Lengths
from tunesmith.data.inspect.mojibake import Mojibake
from tunesmith.data.inspect.near_duplicates import NearDuplicates
from tunesmith.data.inspect.nothing_to_learn import NothingToLearn
from tunesmith.data.inspect.pieces import pieces
from tunesmith.data.inspect.prompt_too_long import PromptTooLong
from tunesmith.data.inspect.roles import Roles
from tunesmith.data.inspect.secrets_in_text import SecretsInText
from tunesmith.data.inspect.seen import Facts, SeenRow, SeenRows, seen_already
from tunesmith.data.inspect.special_tokens import SpecialTokensInText
from tunesmith.data.inspect.template_learnt import TemplateLearnt
from tunesmith.data.inspect.tool_arguments import ToolArguments
from tunesmith.data.inspect.unknown_tokens import UnknownTokens
from tunesmith.data.inspect.unknown_tools import UnknownTools
from tunesmith.data.inspect.unusable import Unusable, bad_rows

__all__ = [
    "CHECKS",
    "Audit",
    "Check",
    "Facts",
    "Finding",
    "SeenRow",
    "SeenRows",
    "audit",
    "bad_rows",
    "pieces",
    "seen_already",
    "worst_first",
]

CHECKS: tuple[type[Check], ...] = (
    NothingToLearn, Unusable, UnknownTokens, PromptTooLong, AnswerCut, EndNotLearnt, TemplateLearnt,
    DoubledBeginning, SpecialTokensInText, PromptEndsInBlank, EmptyAnswer, ConstantAnswer, Duplicates,
    NearDuplicates, LabelNoise, Mojibake, ControlCharacters, Roles, UnknownTools, ToolArguments,
    SecretsInText, FewHeldOut, HeldOutLengths, HeldOutLanguages,
)


@dataclass(frozen=True)
class Audit:
    """findings: worst first. counts: rows, tokens, lengths. shown: the first rows."""

    findings: list[Finding]
    counts: dict[str, Any]
    shown: list[SeenRow]


def audit(rows: Iterable[SeenRow], facts: Facts, *, checks: Sequence[type[Check]] = CHECKS,
          show_rows: int = 0, on_row: Callable[[int], None] = lambda done: None) -> Audit:
    """Let the checks see every row. show_rows: how many of the first rows that have tokens are kept. on_row:
    told how many rows were seen.
    """
    made, lengths, places = [check(facts) for check in checks], Lengths(), Places()
    shown: list[SeenRow] = []
    for done, row in enumerate(rows, start=1):
        lengths.see(row)
        places.append(row.place)
        for check in made:
            check.see(row)
        if row.tokens and len(shown) < show_rows:
            shown.append(row)
        on_row(done)
    findings = [finding for check in made for finding in check.findings(places)]
    return Audit(worst_first(findings), lengths.as_dict(), shown)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Errors before warnings before notes; of each those of most rows."""
    return sorted(findings, key=lambda finding: (RANK[finding.severity], -finding.count))
