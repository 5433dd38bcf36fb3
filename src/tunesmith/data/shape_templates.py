"""The data settings of a recipe for rows of a shape: a column of messages, a chat made of columns, or texts.

A chat model is asked in its own template (`data.chat`); any other base gets a plain text that says where the
answer begins. Prompts never end in a blank: most tokenizers join a blank to the word after it.
"""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.columns import Column, Holds
from tunesmith.data.shapes import Shape

#: More labels than this are not listed in the prompt.
_LISTED_LABELS = 20


@dataclass(frozen=True)
class _Filled:
    """A column with the text around it; all of it is left out of rows where the column is empty.

    trimmed: without the blanks at its ends.
    """

    column: Column
    before: str = ""
    after: str = ""
    trimmed: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is the same in every row."""
        return not self.column.empty and not self.trimmed


_Piece = str | Column | _Filled


def data_settings(shape: Shape, *, chat: bool, system_turn: bool = True) -> dict[str, Any]:
    """The settings of the recipe's data section that make text of the rows.

    chat: whether the base has a chat template. system_turn: whether that takes a system turn; without one
    what the system column says begins the user's turn.
    """
    messages, prompt = shape.parts.get("messages"), shape.parts.get("prompt")
    if messages is not None:
        tools = shape.column("tools")  # a column of just that name is found without being named
        return {"messages": messages.name} | ({"tools": tools} if tools not in (None, "tools") else {})
    completion = shape.parts["completion"]
    if prompt is None or prompt.holds is Holds.MESSAGES:
        return {"prompt": _written([prompt] if prompt else []), "completion": _written([completion])}
    if not chat:
        asked, answer = _as_text(shape, prompt, completion)
        return {"prompt": _written(asked), "completion": _written(answer)}
    system, user, turns = shape.parts.get("system"), _asked(shape, prompt), {}
    if system is not None and system_turn:
        turns["system"] = _written([_Filled(system)])
    elif system is not None:
        user = [_Filled(system, "", "\n\n"), *user]
    # generation begins after the template's own blanks, so an answer brings none
    blanks = completion.begins_blank > 0 and completion.holds is Holds.TEXT
    answered: _Piece = _Filled(completion, trimmed=True) if blanks else completion
    return {"chat": {**turns, "user": _written(user), "assistant": _written([answered])}}


def plain_settings(shape: Shape) -> dict[str, Any]:
    """The same for rows whose text has its special tokens written out: columns with nothing between."""
    before = [shape.parts[part] for part in ("system", "input", "prompt") if part in shape.parts]
    return {"prompt": _written([_Filled(column) for column in before]),
            "completion": _written([shape.parts["completion"]])}


def needs_chat_template(shape: Shape) -> bool:
    """Whether its rows are conversations already, which only a base with a chat template can be given."""
    return any(column.holds is Holds.MESSAGES for column in shape.parts.values())


def _asked(shape: Shape, prompt: Column) -> list[_Piece]:
    """The user's turn of a chat."""
    given, answer = shape.parts.get("input"), _word(shape.parts["completion"])
    text: list[_Piece] = [_Filled(given, "", "\n\n"), prompt] if given else [prompt]
    if shape.name == "texts with a label":
        listed = _listed(shape.labels)
        return [*text, f"\n\nAnswer with its {answer} alone{listed and f', one of: {listed}'}."]
    if shape.name == "texts with a list":
        return [prompt, f"\n\nGive its {answer} as a list."]
    if shape.name == "documents and summaries":
        return [prompt, "\n\nSummarize this text."]
    if shape.name == "instructions" and given is not None:
        return [prompt, _Filled(given, "\n")]
    return text


def _as_text(shape: Shape, prompt: Column, completion: Column) -> tuple[list[_Piece], list[_Piece]]:
    """Prompt and completion for a base that knows no chats."""
    given, system = shape.parts.get("input"), shape.parts.get("system")
    blank = "" if completion.begins_blank > completion.filled / 2 else " "
    before: list[_Piece] = [_Filled(given, "", "\n\n")] if given else []
    asked: list[_Piece]
    if shape.name == "instructions":  # Alpaca's own wording
        asked, blank = ["### Instruction:\n", prompt, "\n\n### Response:\n"], ""
        if given is not None:
            asked[2:] = ["\n\n", _Filled(given, "### Input:\n", "\n\n"), "### Response:\n"]
    elif shape.name == "questions and answers":
        asked = [*before, "Question: ", prompt, "\nAnswer:"]
    elif shape.name == "documents and summaries":
        asked = [prompt, "\n\nSummary:"]
    elif shape.name in ("texts with a label", "texts with a list"):
        asked = [*before, prompt, f"\n\n{_word(completion).capitalize()}:"]
    elif not blank or prompt.ends_blank > prompt.filled / 2:
        asked, blank = [prompt], ""  # the file says itself how they are joined
    else:
        asked, blank = [prompt, "\n"], ""
    if system is not None:
        asked = [_Filled(system, "", "\n\n"), *asked]
    return asked, [*([blank] if blank else []), completion]


def _written(pieces: Sequence[_Piece]) -> str:
    """As a template: columns in braces, or in Jinja where a part is to be left out of some rows."""
    columns = [piece.column if isinstance(piece, _Filled) else piece for piece in pieces
               if not isinstance(piece, str)]
    jinja = (any(isinstance(piece, _Filled) and not piece.is_plain for piece in pieces)
             and all(_is_variable(column.name) for column in columns))
    return "".join(_piece(piece, jinja) for piece in pieces)


def _is_variable(name: str) -> bool:
    """Whether Jinja can name a column."""
    return name.isidentifier() and not keyword.iskeyword(name.capitalize()) and not keyword.iskeyword(name)


def _piece(piece: _Piece, jinja: bool) -> str:
    if isinstance(piece, str):
        return piece
    if isinstance(piece, Column):
        return f"{{{{ {piece.name} }}}}" if jinja else f"{{{piece.name}}}"
    if not jinja or piece.is_plain:
        return f"{piece.before}{_piece(piece.column, jinja)}{piece.after}"
    name = piece.column.name
    text = f"{piece.before}{{{{ {name}{' | trim' if piece.trimmed else ''} }}}}{piece.after}"
    if text == f"{{{{ {name} }}}}" and not piece.column.missing:
        return text  # Jinja writes nothing for null
    there = f"{name} is defined and {name}" if piece.column.missing else name
    return f"{{% if {there} %}}{text}{{% endif %}}" if piece.column.empty else text


def _listed(labels: tuple[str, ...]) -> str:
    """The labels as a list; nothing where they are too many, or would not be read as text."""
    if not 1 < len(labels) <= _LISTED_LABELS or any(set("{}\n") & set(label) for label in labels):
        return ""
    return ", ".join(sorted(labels))


def _word(column: Column) -> str:
    return column.name.strip().replace("_", " ").lower().removesuffix(" text")
