"""Greedy answers as text, for prompts that are text or tokens already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.tokenize import Encoder, Rules
from tunesmith.errors import UsageError
from tunesmith.model.engine import Engine


@dataclass(frozen=True)
class TextAnswer:
    """One answer: its text, its length in tokens, and whether it ended by itself."""

    text: str
    tokens: int
    stopped: bool


def encode_prompt(engine: Engine, prompt: str, *, chat: bool = False) -> list[int]:
    """The tokens of a prompt, exactly as training saw them; a chat's is wrapped by the tokenizer's template.

    Raises UsageError when there are none.
    """
    if chat:
        turns = [{"role": "user", "content": prompt}]
        text = engine.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(engine.tokenizer(text, add_special_tokens=False)["input_ids"])
    rules = Rules(loss_on="completion", append_eos=False, max_length=2, overlong="error")
    ids = Encoder(engine.tokenizer, rules).prompt_ids(prompt)
    if not ids:
        raise UsageError("the prompt is empty")
    return ids


def answer_prompts(engine: Engine, prompts: Sequence[list[int]], max_new_tokens: int) -> list[TextAnswer]:
    """Answer token prompts greedily, in their order."""
    answers = engine.generate(prompts, max_new_tokens)
    return [TextAnswer(engine.tokenizer.decode(answer.ids, skip_special_tokens=True), len(answer.ids), answer.stopped)
            for answer in answers]
