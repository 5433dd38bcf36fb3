"""Arguments of tool calls that are no JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tunesmith.data.inspect.finding import Check, Finding, Places, rows_phrase
from tunesmith.data.inspect.seen import SeenRow


def is_json_object(arguments: Any) -> bool:
    """Whether a call's arguments are an object, or JSON text of one."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return False
    return isinstance(arguments, Mapping)


class ToolArguments(Check):
    """The model would learn to write what no reader of tool calls takes."""

    def see(self, row: SeenRow) -> None:  # noqa: D102
        if any(not is_json_object(call.arguments) for turn in row.turns or () for call in turn.calls):
            self.hits.add(row)

    def findings(self, places: Places) -> Iterable[Finding]:  # noqa: D102
        return self.found("tool_arguments_not_json", "error",
                          f"{rows_phrase(self.hits.count, 'has a tool call', 'have tool calls')} whose "
                          "arguments are no JSON object", "Mend the arguments, or remove these rows.")
