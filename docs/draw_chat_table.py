"""The table of docs/chat.md: what becomes of conversations under the chat templates that TRL ships.

    pip install --no-deps trl==1.16.0
    python docs/draw_chat_table.py

Writes the table between the marks in docs/chat.md. tests/unit/test_chat_answers.py checks what it says.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "unit"), str(ROOT / "tests")]

import chat_templates  # noqa: E402
from test_chat_answers import CHATS, encoder_of, row_of  # noqa: E402

from tunesmith.data.chat.messages import conversation_of  # noqa: E402
from tunesmith.errors import DataError  # noqa: E402

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def cell(name: str, kind: str) -> str:
    """How many rows a conversation becomes, or that it is refused."""
    try:
        rows = encoder_of(name).encode(conversation_of(row_of(CHATS[kind]), "messages"), "row")
    except DataError:
        return "refused"
    return str(len(rows))


def notes(name: str) -> str:
    """What is special about a template."""
    encoder = encoder_of(name)
    said = []
    for kind in ("three", "thoughts"):
        try:
            encoder.encode(conversation_of(row_of(CHATS[kind]), "messages"), "row")
        except DataError:
            continue
    remarks: Any = encoder.remarks
    if remarks.unread["reasoning_content"]:
        said.append("thoughts are not written: left out, with a message")
    if remarks.closed:
        said.append("opens a thought itself; an answer without one closes it at once")
    if remarks.thinking()[False]:
        said.append("answers without a thought are asked for with `enable_thinking: false`")
    return "; ".join(said)


def table() -> str:
    """The whole table."""
    kinds = ["two", "three", "thoughts", "tools", "thoughts and tools"]
    heads = ["template", "2 turns", "system, 3 turns", "2 turns with thoughts", "tool call, 2 turns",
             "thought and tool call", ""]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in chat_templates.names():
        lines.append(f"| {name} | " + " | ".join(cell(name, kind) for kind in kinds) + f" | {notes(name)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the table into the page."""
    path = ROOT / "docs" / "chat.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
