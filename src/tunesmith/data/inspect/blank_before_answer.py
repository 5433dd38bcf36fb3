"""Prompts that end in a blank, where the tokenizer joins a blank to the word that follows.

The base has seen " word" as one token. With the blank at the prompt's end it gets a lone blank, which it has
seldom seen, and then has to say the word without its blank.
"""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import Facts, SeenRow
from tunesmith.secrets import secrets_in

#: Rows on which the tokenizer is tried; what most of them show holds for the rest.
_TRIED = 500
#: Characters on each side of the seam that are tokenized.
_AROUND = 40


class PromptEndsInBlank(Check):
    """Looks only at prompts and completions: a chat template writes its own seam."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tried = self.joined = 0

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if row.turns is not None or not row.question.endswith(" ") or not row.answer.strip():
            return
        if self.tried < _TRIED:
            self.tried += 1
            if not self._joins(row.question[-_AROUND:], row.answer[:_AROUND]):
                return
            self.joined += 1
        elif 2 * self.joined < self.tried:
            return
        self.hits.add(row)

    def _joins(self, before: str, after: str) -> bool:
        """Whether the tokenizer would take the blank and what follows as one token."""
        apart = self._ids(before)
        return self._ids(before + after)[:len(apart)] != apart

    def _ids(self, text: str) -> list[int]:
        return list(self.facts.tokenizer(text, add_special_tokens=False)["input_ids"])

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        prompt, completion = self.facts.prompt_template, self.facts.completion_template
        if secrets_in(prompt + completion):  # a secret is shown nowhere
            advice = "Take the blank off the end of data.prompt, and begin data.completion with it."
        elif prompt.endswith(" "):
            blanks = prompt[len(prompt.rstrip(" ")):]
            advice = f'Write prompt: "{prompt.rstrip(" ")}" and completion: "{blanks}{completion}".'
        else:
            advice = "Take the blank off the prompts' column, and begin data.completion with it."
        if self.facts.has_chat_template:
            advice += (" Better still for this base, which has a chat template: ask through it "
                       "(data.messages, or data.chat).")
        return self.found(
            "prompt_ends_in_blank", "warning",
            f"{rows_phrase(self.hits.count, 'has a prompt that ends', 'have prompts that end')} in a blank, "
            "which "
            "this tokenizer joins to the word that follows: the answer begins with a token that the base "
            "would not say there", advice)
