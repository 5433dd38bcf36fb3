"""What is to be said of a run's data before it is trained on: what was left out, cut or changed, in a line
each.
"""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.data.chat.remarks import ChatRemarks
from tunesmith.data.sets import Dataset, Texts
from tunesmith.data.template import LITERAL
from tunesmith.recipe.schema import DataSection


def remarks_on(settings: DataSection, text: Texts, data: Dataset) -> Iterator[str]:
    """The lines, each a sentence."""
    counts, longest = data.counts, settings.max_length
    if counts["truncated"]:
        yield (f"{_rows(counts['truncated'])} cut at data.max_length, {longest} tokens; a cut row has no end "
               "token.")
    if counts["dropped"]:
        yield f"{_rows(counts['dropped'])} dropped: longer than data.max_length, {longest} tokens."
    if counts["repeated"]:
        yield f"{_rows(counts['repeated'])} left out: they also stand in data.validation."
    if refused := data.remarks.refused:
        more = f" (and {len(refused) - 3:,} more)" if len(refused) > 3 else ""
        yield f"{_rows(sum(refused.values()))} skipped (data.bad_rows): {'; '.join([*refused][:3])}{more}."
    for key, template in (("data.prompt", settings.prompt), ("data.completion", settings.completion or "")):
        if "\\n" in template or "\\t" in template:
            yield (f"{key} has a backslash and a letter (\\n or \\t), which is learnt as these two "
                   "characters. YAML makes a line "
                   'break of \\n within double quotes alone: "...\\n...".')
    for (column, form), count in sorted(text.written.items()):
        if form == LITERAL:
            yield (f'"{{{{{column}}}}}" is learnt as the text {{{column}}}, not as the column. Write '
                   f'{{{column}}}; Jinja '
                   f"has blanks within its braces: {{{{ {column} }}}}.")
        else:
            yield (f'The column "{column}" is no text in {_rows(count)}: written {form}. {{{column}|json}} '
                   'and the '
                   "like choose.")
    if data.special:
        yield (f"{_rows(data.special)} with the text of special tokens, such as an end token: they are taken "
               "as text. data.special_tokens: true takes them as tokens.")
    yield from _on_chats(data)


def _on_chats(data: Dataset) -> Iterator[str]:
    remarks = data.remarks
    for key, count in sorted(remarks.unread.items()):
        yield (f'"{key}" of {_messages(count)} is read by nothing: the chat template '
               'of this base does not '
               "know it, so it is left out.")
    if remarks.unused:
        columns = ", ".join(f"{name} ({_rows(count)})" for name, count in sorted(remarks.unused.items())[:10])
        yield f"Columns that nothing reads: {columns}{', ...' if len(remarks.unused) > 10 else ''}."
    for role, count in sorted(remarks.unwritten.items()):
        if count:
            yield (f"The text of {_messages(count)} of the {role} is not written by the chat template as it "
                   "is, or left out. tunesmith inspect shows what the model sees.")
    if remarks.thoughts_off:
        yield (f"{remarks.thoughts_off} thoughts (reasoning_content) are left out: with these settings of "
               "the chat template (enable_thinking) it writes none.")
    if remarks.cut_thoughts:
        yield (f"{remarks.cut_thoughts} answers have </think> and no <think> before it: what stands before "
               "it is learnt as a thought.")
    yield from _on_splits(remarks)
    if remarks.opened:
        yield (f"{remarks.opened} answer{'s' if remarks.opened > 1 else ''} that open a conversation are not "
               "learnt: the chat template cannot ask for them.")
    if remarks.marked_otherwise:
        yield ("The chat template marks other text as the answer ({% generation %}) than the model will have "
               "to write: what it will have to write is learnt.")
    if remarks.closed:
        yield (f"The chat template opens a thought before every answer: {remarks.closed} answers without one "
               "learn to close it at once.")
    for mode, thought in (("False", "without a thought"), ("True", "with a thought")):
        if count := remarks.decided[mode]:
            yield (f"{count} answers {thought} are asked for with enable_thinking: {mode.lower()}. "
                   "data.template_kwargs decides otherwise.")


def _on_splits(remarks: ChatRemarks) -> Iterator[str]:
    if not remarks.split:
        return
    why = "the chat template writes earlier turns differently once others follow"
    if remarks.split_by_end == remarks.split:
        why = ("the chat template ends an answer with no token on which generation stops, so the end token "
               "is put behind it")
    elif remarks.split_by_end:
        why += (f" (in {remarks.split_by_end} of them an end token is put behind an answer, which it does "
                "not write)")
    yield (f"{remarks.split} conversation{'s' if remarks.split > 1 else ''} became "
           f"{remarks.split + remarks.extra_rows} rows: {why}. So each answer is learnt in the form in which "
           "it is asked for; what they share is computed for each.")


def _messages(count: int) -> str:
    return f"{count} message{'s' if count != 1 else ''}"


def _rows(count: int) -> str:
    return f"{count} row{'s' if count != 1 else ''}"
