"""What a verdict says, in the words that terminal, report and card share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The verdicts, each with what was seen.
_SEEN = {
    "helps": "It helps: the loss fell, and the answers are better",
    "loss only": "The loss fell",
    "hurts": "It hurts: the loss rose",
    "no difference": "No difference that could be told from chance",
    "too few rows": "Too few different rows were held out to tell",
}


def loss_digits(found: Mapping[str, Any]) -> int:
    """Of losses: enough to show a small change."""
    return 3 if abs(found["loss_tuned"] - found["loss_base"]) >= 0.01 else 6


def verdict_sentence(found: Mapping[str, Any]) -> str:
    """The verdict in a sentence, without its full stop. found: `Judgement.summary()`, or what a note keeps of
    it.
    """
    said = _SEEN.get(found["verdict"], str(found["verdict"]))
    if found["verdict"] == "loss only":
        said += _of_answers(found)
    if found["verdict"] == "too few rows":
        return f"{said}: {found['rows']}, and at least {found.get('fewest_rows', 5)} are needed"
    if "rows_better" in found:
        said += f". The loss is lower on {found['rows_better']} of {found['rows']} held-out rows"
    if found.get("interval"):
        low, high = (f"{end:+.{loss_digits(found)}f}" for end in found["interval"])
        said += f" (change {low} to {high} nats a token, 95% interval)"
    return said


def _of_answers(found: Mapping[str, Any]) -> str:
    if not found.get("stop_rows"):
        return "; answers were not compared"
    if found.get("right_tuned") == 0 and not found.get("list_f1_tuned"):
        return ", but no answer is right yet"
    return ", but no better answers could be told from chance"
