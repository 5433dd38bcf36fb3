"""What is to be said of the conversations of a run: counted as they become tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: The variable by which templates are asked not to begin an answer with a thought.
THINKING = "enable_thinking"


@dataclass
class ChatRemarks:
    """What is to be said of all conversations together.

    split: conversations that became several rows; extra_rows: how many more than one each; split_by_end:
    those of them where the end token, which the template does not write, is why. unread: messages by the key
    that neither Tunesmith nor the template reads. unwritten: messages by role whose text the template leaves
    out. unused: rows by the column that nothing reads. opened: answers that nothing comes before, so that the
    template cannot ask for them. settings: answers by the template's settings for them, as JSON. closed:
    answers without a thought where the template opens one that it cannot leave out. thoughts_off: thoughts
    that the template knows and that its settings keep it from writing. cut_thoughts: answers with `</think>`
    that do not begin with `<think>`: what stands before is taken for a thought. decided: answers for which
    `enable_thinking` was set here, by its value. marked_otherwise: of the first answers, those of which the
    template marks other text than is learnt. refused: rows, of chats or not, that were skipped because they
    cannot be trained on, by what is wrong.
    """

    split: int = 0
    extra_rows: int = 0
    split_by_end: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    unwritten: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    opened: int = 0
    settings: Counter[str] = field(default_factory=Counter)
    closed: int = 0
    thoughts_off: int = 0
    cut_thoughts: int = 0
    decided: Counter[str] = field(default_factory=Counter)
    marked_otherwise: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def add(self, more: Mapping[str, Any], times: int = 1) -> None:
        """Count in what was said of other conversations, by name, so many times."""
        for name, value in more.items():
            if isinstance(value, Mapping):
                counts = getattr(self, name)
                for key, count in value.items():
                    counts[key] += count * times
            else:
                setattr(self, name, getattr(self, name) + value * times)

    def thinking(self) -> Counter[bool | None]:
        """Answers by the template's `enable_thinking` for them; None where it was left to the template."""
        counts: Counter[bool | None] = Counter()
        for settings, count in self.settings.items():
            counts[json.loads(settings).get(THINKING)] += count
        return counts

    def generation_kwargs(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The template's variables with which to ask what was trained. kwargs: the recipe's."""
        thinking = list(self.thinking())
        if len(thinking) == 1 and thinking[0] is not None:
            return {**kwargs, THINKING: thinking[0]}
        return dict(kwargs)
