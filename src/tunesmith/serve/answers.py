"""Greedy answers as text, for prompts that are text or tokens already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.chat.plain import PlainTokens
from tunesmith.data.chat.profile import TemplateProfile
from tunesmith.data.chat.render import TemplateRefused, TemplateRenderer, TemplateUnbounded
from tunesmith.data.tokenize import Encoder, Rules
from tunesmith.errors import DataError, UsageError
from tunesmith.model.engine import Engine


@dataclass(frozen=True)
class TextAnswer:
    """One answer: its text, its length in tokens, and whether it ended by itself."""

    text: str
    tokens: int
    stopped: bool


def encode_prompt(engine: Engine, prompt: str, *, chat: Mapping[str, Any] | None = None,
                  special_tokens: bool = False) -> list[int]:
    """The tokens of a prompt, exactly as training saw them.

    chat: the variables for the tokenizer's chat template, which then wraps the prompt. special_tokens:
    whether special tokens in its text are tokens.

    Raises UsageError when there are none, DataError where the chat template gives none.
    """
    if chat is not None:
        plain = PlainTokens(engine.tokenizer, special_tokens=special_tokens)
        renderer = TemplateRenderer(engine.tokenizer)
        try:
            turn = TemplateProfile(renderer).as_read({"role": "user", "content": plain.marked(prompt)})
            text = renderer.render([turn], generation_prompt=True, kwargs=chat)
        except (TemplateRefused, TemplateUnbounded) as error:
            what = "refuses this prompt: " if isinstance(error, TemplateRefused) else ""
            raise DataError(f"the chat template of {engine.base.name} {what}{error}",
                            "The template came with the base: take another copy of it, or another "
                            "base.") from None
        return plain.rendered_ids(text)
    rules = Rules(loss_on="completion", append_eos=False, max_length=2, overlong="error",
                  special_tokens=special_tokens)
    ids = Encoder(engine.tokenizer, rules).prompt_ids(prompt)
    if not ids:
        raise UsageError("the prompt is empty")
    return ids


def answer_prompts(engine: Engine, prompts: Sequence[list[int]], max_new_tokens: int) -> list[TextAnswer]:
    """Answer token prompts greedily, in their order."""
    answers = engine.generate(prompts, max_new_tokens)
    return [TextAnswer(engine.tokenizer.decode(answer.ids, skip_special_tokens=True), len(answer.ids),
                       answer.stopped)
            for answer in answers]
