"""What a verdict says, in the words that terminal, report and card share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The verdicts, each with what was seen.
_OBSERVATIONS = {
    "helps": "It helps: the loss fell, and the answers are better",
    "loss only": "The loss fell",
    "hurts": "It hurts: the loss rose",
    "no difference": "No difference that could be told from chance",
    "too few rows": "Too few different rows were held out to tell",
}


def loss_digits(judgement: Mapping[str, Any]) -> int:
    """Of losses: enough to show a small change."""
    return 3 if abs(judgement["loss_tuned"] - judgement["loss_base"]) >= 0.01 else 6


def verdict_sentence(judgement: Mapping[str, Any]) -> str:
    """The verdict as a sentence without full stop, of a `Judgement.summary()` or what is kept of one."""
    sentence = _OBSERVATIONS.get(judgement["verdict"], str(judgement["verdict"]))
    if judgement["verdict"] == "loss only":
        sentence += _about_answers(judgement)
    if judgement["verdict"] == "too few rows":
        return f"{sentence}: {judgement['rows']}, and at least {judgement.get('fewest_rows', 5)} are needed"
    if "rows_better" in judgement:
        sentence += f". The loss is lower on {judgement['rows_better']} of {judgement['rows']} held-out rows"
    if judgement.get("interval"):
        low, high = (f"{end:+.{loss_digits(judgement)}f}" for end in judgement["interval"])
        sentence += f" (change {low} to {high} nats a token, 95% interval)"
    return sentence


def _about_answers(judgement: Mapping[str, Any]) -> str:
    if not judgement.get("stop_rows"):
        return "; answers were not compared"
    if judgement.get("right_tuned") == 0 and not judgement.get("list_f1_tuned"):
        return ", but no answer is right yet"
    return ", but no better answers could be told from chance"
