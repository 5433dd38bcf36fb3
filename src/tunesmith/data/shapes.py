"""Recognises what the rows of a file are, by the names of their columns and by what these hold.

A shape is one function here. It looks at the columns and says which one is asked and which one is the answer,
or None. The first function that returns a shape decides, so the surest ones come first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.chat.messages import ROLES, messages_in
from tunesmith.data.columns import Column, Holds, columns_of_rows, described
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.visible import on_one_line

#: So many rows are looked at to recognise what they are.
LOOKED_AT = 1000

_PROMPTS = ("prompt", "question", "query", "problem", "input", "inputs", "source", "article", "document",
            "dialogue", "user", "human", "request")
_ANSWERS = ("completion", "answer", "response", "output", "outputs", "target", "targets", "summary",
            "highlights", "solution", "assistant", "bot", "gpt", "reply", "answers", "chosen")
_QUESTIONS, _SUMMARIES = ("question", "query", "problem"), ("summary", "highlights")
_INSTRUCTIONS = ("instruction", "instructions")
_INPUTS = ("input", "inputs", "context", "passage", "paragraph", "background")
_CONTEXTS = _INPUTS[2:]
_SYSTEMS = ("system", "system_prompt", "system_message")
_CONVERSATIONS = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns")
_TOOLS = ("tools", "functions")
_TEXTS = ("text", "content", "body", "document", "article", "story", "passage", "code", "sentence", "review",
          "message", "comment", "tweet", "utterance", "description", "title")
#: Of these the first alone say that there is nothing else in the row to learn.
_SURE_TEXTS = _TEXTS[:8]
_LABELS = ("label", "labels", "label_text", "category", "class", "intent", "sentiment", "topic", "target",
           "genre", "emotion", "type", "tag", "queue", "rating", "stars", "score", "priority")
_TITLES = ("title", "subject", "headline", "heading")
_TWO_TEXTS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"),
              ("question1", "question2"), ("text1", "text2"), ("text_a", "text_b"))
_LISTS = ("tags", "labels", "keywords", "categories", "topics", "genres", "keyphrases", "entities")
#: No label is longer [characters]; there are no more of them; each stands in so many rows on average where
#: the column's name says nothing, and in so many where it does.
_LONGEST_LABEL, _MOST_LABELS, _ROWS_A_LABEL, _ROWS_A_NAMED_LABEL = 60, 200, 4, 1.5

_ANY_ANSWER = (Holds.TEXT, Holds.NUMBER, Holds.TRUTH, Holds.OBJECT, Holds.TEXTS, Holds.MIXED)


@dataclass(frozen=True)
class Shape:
    """What rows are.

    name: in words. parts: which column is what: messages, tools; or system, input (what goes with the prompt
    and may be empty), prompt, completion. why: what it was recognised by. notes: what of it the user may not
    expect. labels: all answers, where they are few. unused: columns that are no part.
    """

    name: str
    parts: dict[str, Column]
    why: str
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def column(self, part: str) -> str | None:
        """The name of the column that is this part."""
        column = self.parts.get(part)
        return column.name if column else None


class _Columns:
    """The columns of some rows, found by what they are called."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.all = columns_of_rows(rows)
        #: A name with a brace cannot stand in a template.
        self.usable = [column for column in self.all
                       if column.name.strip() and not set("{}") & set(column.name)]

    def find(self, names: Sequence[str], *kinds: Holds) -> Column | None:
        """The first column called one of these, as these stand, that holds one of the kinds."""
        by_name = {_plain(column.name): column for column in reversed(self.usable) if column.holds in kinds}
        return next((by_name[name] for name in names if name in by_name), None)

    def holding(self, *kinds: Holds) -> list[Column]:
        """All columns that hold one of the kinds."""
        return [column for column in self.usable if column.holds in kinds]


def recognise(rows: Sequence[Row], source: str) -> Shape:
    """What the rows are. source: their file, for errors. Raises DataError for none of the shapes that are
    known, with the columns, and for preferences of which nothing can be learnt as an answer.
    """
    columns = _Columns(rows)
    for recognise_one in _SHAPES:
        shape = recognise_one(columns, source)
        if shape is not None:
            used = {column.name for column in shape.parts.values()}
            unused = tuple(column.name for column in columns.all
                           if column.name not in used and column.holds is not Holds.NOTHING)
            notes = (*shape.notes, *_object_notes(shape), *_empty_notes(shape))
            return replace(shape, notes=notes, unused=unused)
    first, second, *_ = [*_template_names(columns.usable), "QUESTION", "ANSWER"]
    raise DataError(
        f"{source}: it is not clear which column is asked and which is the answer. "
        f"Its columns: {described(columns.all)}",
        "Write the two templates yourself: tunesmith init without --data, then set data.source in the recipe "
        f"and, for example, data.prompt: {_template(first)} and data.completion: {_template(second)}.\n"
        "  Recognised by their columns are conversations, instruction/input/output, prompt/completion, "
        "question/answer, a text with a label, and text.")


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _template_names(columns: Sequence[Column]) -> list[str]:
    """What a template may name: columns, and the keys of objects in them."""
    return [name for column in columns for name in (
        [f"{column.name}.{key}" for key in column.shown_keys()] if column.keys else [column.name])]


def _template(name: str) -> str:
    return '"{' + on_one_line(name, 60) + '}"'


def _parts(**columns: Column | None) -> dict[str, Column]:
    return {part: column for part, column in columns.items() if column is not None}


def _object_notes(shape: Shape) -> list[str]:
    """How objects that are answers are written, and what else there is."""
    answer = shape.parts.get("completion")
    if answer is None or answer.holds is not Holds.OBJECT or not answer.keys:
        return []
    name, keys = on_one_line(answer.name, 60), answer.shown_keys()
    return [f"{name} holds objects of {', '.join(keys)}, which are learnt as JSON. To learn one alone, "
            f"write it in the recipe: {{{name}.{keys[0]}}}"]


def _empty_notes(shape: Shape) -> list[str]:
    """What must be there and is not in some rows: they would end the run, or teach an empty answer."""
    needed = [column for part, column in shape.parts.items()
              if part in ("messages", "prompt", "completion") and column.holds is not Holds.TEXTS]
    return [f"{column.empty:,} of the {column.rows:,} rows that were looked at have nothing in "
            f"{on_one_line(column.name, 60)} (the first: {column.first_empty}). Fill them in or remove them."
            for column in needed if column.empty]


def _conversations(columns: _Columns, source: str) -> Shape | None:
    chats = columns.holding(Holds.MESSAGES)
    if not chats or columns.find(("rejected",), Holds.MESSAGES):
        return None
    prompt, answer = columns.find(_PROMPTS, Holds.MESSAGES), columns.find(_ANSWERS, Holds.MESSAGES)
    if prompt and answer:
        return Shape("conversations in two columns", {"prompt": prompt, "completion": answer},
                     f"{prompt.name} and {answer.name} hold messages: what is given, and what is answered")
    chat = columns.find(_CONVERSATIONS, Holds.MESSAGES) or chats[0]
    tools = columns.find(_TOOLS, Holds.OBJECT, Holds.TEXT, Holds.TEXTS)
    notes = _conversation_notes(columns.rows, chat.name)
    if system := columns.find(_SYSTEMS, Holds.TEXT):
        notes.append(f"{system.name} is not used: a system turn belongs in the conversation itself.")
    return Shape("conversations", _parts(messages=chat, tools=tools),
                 f"{chat.name} holds messages ({_form(columns.rows, chat.name)})", tuple(notes))


def _form(rows: Sequence[Row], column: str) -> str:
    messages = next(filter(None, (messages_in(row.values.get(column)) for row in rows)))
    return "role and content" if "role" in messages[0] else "from and value"


def _conversation_notes(rows: Sequence[Row], column: str) -> list[str]:
    """Rows in which nobody answers: there is nothing to learn in them."""
    def answers(message: Mapping[str, Any]) -> bool:
        speaker = str(message.get("role", message.get("from")))
        return ROLES.get(speaker.strip().lower()) == "assistant"

    silent = [row.place for row in rows if (messages := messages_in(row.values.get(column)))
              and not any(map(answers, messages))]
    return [f"In {len(silent):,} of the {len(rows):,} rows that were looked at the assistant says nothing "
            f"(the first: {silent[0]}). Remove them."] if silent else []


def _preferences(columns: _Columns, source: str) -> Shape | None:
    chosen = columns.find(("chosen",), Holds.MESSAGES, Holds.TEXT)
    if chosen is None or columns.find(("rejected",), Holds.MESSAGES, Holds.TEXT) is None:
        return None
    name, why = "preferences", "chosen and rejected are two answers to one prompt"
    note = ("This is preference data (as for DPO). Tunesmith trains on answers alone: chosen is learnt, "
            "rejected is not used.")
    prompt = columns.find(_PROMPTS, chosen.holds)
    if chosen.holds is Holds.MESSAGES:
        messages = next(filter(None, (messages_in(row.values.get(chosen.name)) for row in columns.rows)))
        if len(messages) > 1:
            notes = _conversation_notes(columns.rows, chosen.name)
            return Shape(name, {"messages": chosen}, why, (note, *notes))
    if prompt is not None:
        return Shape(name, {"prompt": prompt, "completion": chosen}, why, (note,))
    raise DataError(f"{source}: this is preference data (chosen and rejected, as for DPO). Only answers are "
                    "trained on, and nothing says where in chosen the answer begins",
                    "Give the prompt a column of its own (then prompt and chosen are learnt as prompt and "
                    "answer), or make chosen a conversation: a list of role and content.")


def _instructions(columns: _Columns, source: str) -> Shape | None:
    instruction, answer = columns.find(_INSTRUCTIONS, Holds.TEXT), columns.find(_ANSWERS, *_ANY_ANSWER)
    if instruction is None or answer is None:
        return None
    given = columns.find(_INPUTS, Holds.TEXT)
    history = columns.find(("history",), Holds.OBJECT)
    notes = [f"{history.name} holds earlier turns and is not used. To learn from them, make each row a "
             "conversation."] if history else []
    parts = _parts(system=columns.find(_SYSTEMS, Holds.TEXT), input=given, prompt=instruction,
                   completion=answer)
    names = ", ".join(column.name for column in (instruction, given, answer) if column)
    return Shape("instructions", parts, f"{names}: the form of Alpaca", tuple(notes))


def _pairs(columns: _Columns, source: str) -> Shape | None:
    prompt, answer = columns.find(_PROMPTS, Holds.TEXT), columns.find(_ANSWERS, *_ANY_ANSWER)
    summary = columns.find(_SUMMARIES, Holds.TEXT)
    if prompt is None and summary is not None:
        prompt, answer = columns.find(_TEXTS, Holds.TEXT), summary
    if prompt is None or answer is None or (prompt.is_constant and prompt.rows > 1):
        return None
    given, notes = None, []
    asked = _plain(prompt.name)
    if asked in _QUESTIONS:
        name, given = "questions and answers", columns.find(_CONTEXTS, Holds.TEXT)
    else:
        name = "documents and summaries" if answer is summary else "prompts and completions"
    if tools := columns.find(_TOOLS, Holds.TEXT, Holds.TEXTS, Holds.OBJECT):
        notes.append(f"{tools.name} is not used: to learn calls of tools, make each row a conversation with "
                     "tool_calls.")
    wanted = columns.find(("label",), Holds.TRUTH)
    if wanted is not None and not wanted.is_constant:
        notes.append(f"{wanted.name} is true or false: in preference data (as for KTO) it marks answers that "
                     "are not wanted. All are learnt here. Remove those that should not be.")
    return Shape(name, _parts(system=columns.find(_SYSTEMS, Holds.TEXT), input=given, prompt=prompt,
                              completion=answer),
                 f"{prompt.name} and {answer.name}, by their names", tuple(notes))


def _lists(columns: _Columns, source: str) -> Shape | None:
    answer = columns.find(_LISTS, Holds.TEXTS)
    text = _text(columns, answer) if answer else None
    if answer is None or text is None:
        return None
    return Shape("texts with a list", {"prompt": text, "completion": answer},
                 f"{answer.name} is a list of words for each {text.name}")


def _labelled(columns: _Columns, source: str) -> Shape | None:
    kinds = (Holds.TEXT, Holds.NUMBER, Holds.TRUTH)
    label = next((column for name in _LABELS if (column := columns.find((name,), *kinds))
                  and _is_label(column, _ROWS_A_NAMED_LABEL)), None)
    why = "has few values and is called so"
    if label is None:
        candidates = [column for column in columns.holding(*kinds) if _is_label(column, _ROWS_A_LABEL)]
        if len(candidates) != 1:
            return None
        label, why = candidates[0], "is the only column with few values"
    text = _text(columns, label)
    if text is None:
        return None
    label = _in_words(columns, label)
    given = _before(columns, text)
    labels = tuple(value for value, _ in label.values.most_common())
    notes = ["The labels are numbers, of which a model knows nothing. Words in the file are learnt sooner."
             ] if all(_is_number(value) for value in labels) else []
    why = f"{label.name} {why} ({len(labels)}: {_some(labels)}), {text.name} is the text"
    return Shape("texts with a label", _parts(input=given, prompt=text, completion=label), why, tuple(notes),
                 labels)


def _in_words(columns: _Columns, label: Column) -> Column:
    """The column that says in words what a label says as a number, if there is one."""
    if not all(map(_is_number, label.values)):
        return label
    for column in columns.holding(Holds.TEXT):
        pairs = {(str(row.values.get(label.name)), str(row.values.get(column.name))) for row in columns.rows}
        if (len(column.values) == len(label.values) == len(pairs) and column.longest <= _LONGEST_LABEL
                and not all(map(_is_number, column.values))):
            return column
    return label


def _before(columns: _Columns, text: Column) -> Column | None:
    """A second text that belongs before the text: the first of two, or a title."""
    first = next((first for first, second in _TWO_TEXTS if _plain(text.name) == second), None)
    title = columns.find((first,) if first else _TITLES, Holds.TEXT)
    return title if title is not text else None


def _is_label(column: Column, rows_a_label: float) -> bool:
    return (1 < len(column.values) <= _MOST_LABELS and column.longest <= _LONGEST_LABEL
            and column.filled >= rows_a_label * len(column.values))


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdecimal()


def _some(labels: Sequence[str], most: int = 6) -> str:
    shown = [on_one_line(label, 40) for label in labels[:most]]
    return ", ".join(shown + (["..."] if len(labels) > most else []))


def _text(columns: _Columns, but: Column) -> Column | None:
    """The column that is the row's text: called so, or else the longest."""
    texts = [column for column in columns.holding(Holds.TEXT) if column is not but and not column.is_constant]
    for first, second in _TWO_TEXTS:
        two = columns.find((first,), Holds.TEXT), columns.find((second,), Holds.TEXT)
        if two[0] in texts and two[1] in texts:
            return two[1]
    named = columns.find(_TEXTS, Holds.TEXT)
    if named in texts:
        return named
    return max(texts, key=lambda column: column.mean_characters, default=None)


def _texts(columns: _Columns, source: str) -> Shape | None:
    texts, text = columns.holding(Holds.TEXT), columns.find(_SURE_TEXTS, Holds.TEXT)
    if text is None and len(texts) == 1 and (len(columns.usable) == 1 or columns.find(_TEXTS, Holds.TEXT)):
        text = texts[0]
    if text is None:
        return None
    return Shape("texts", {"completion": text}, f"{text.name} is the text, and no column is an answer to it")


_SHAPES: tuple[Callable[[_Columns, str], Shape | None], ...] = (
    _conversations, _preferences, _instructions, _pairs, _lists, _labelled, _texts)
