"""A recipe as commented YAML: every setting, its value, and what the schema says of it."""

from __future__ import annotations

import re

from tunesmith.recipe.load import section_fields, write_yaml
from tunesmith.recipe.schema import Recipe

_TITLES = {"model": "the frozen base", "data": "the rows, and how each becomes text", "lora": "the adapter",
           "train": "the experiment", "judge": "did it help?", "share": "where the adapter goes"}


def _scalar(value: object) -> str:
    """A value as YAML on one line; text is quoted unless it is a plain word, a path or a name."""
    quoted = isinstance(value, str) and not re.fullmatch(r"[A-Za-z/][\w./-]*(:[\w.-]+)?", value, re.ASCII)
    text = write_yaml(value, default_flow_style=True, default_style='"' if quoted else None)
    return text.removesuffix("\n").removesuffix("\n...")


def render_commented(recipe: Recipe, header: str = "") -> str:
    """The recipe as YAML in which each setting stands with its meaning and unit."""
    lines = [f"# {line}".rstrip() for line in header.strip().splitlines()]
    for section, values in recipe.model_dump().items():
        lines += ["", f"{section}:  # {_TITLES[section]}"]
        if section == "data":
            others = {"prompt",
                      "completion"} if recipe.data.completion is None else {"messages", "tools", "chat"}
            values = {key: value for key, value in values.items() if key not in others
                      or value not in (None, "")}
        fields = section_fields(section)
        blocks = {key: _setting(key, value) for key, value in values.items()}
        column = min(48, max(len(block[0]) for block in blocks.values()) + 2)
        for key, (setting, *inside) in blocks.items():
            lines.append(f"{setting:<{column}}# {fields[key].description}")
            if len(setting) >= column:
                lines[-1] = f"{setting}  # {fields[key].description}"
            lines += inside
    return "\n".join(lines).lstrip("\n") + "\n"


def _setting(key: str, value: object) -> list[str]:
    """A setting on its line; one with settings of its own, such as `data.chat`, with these below it."""
    if not isinstance(value, dict) or not value:
        return [f"  {key}: {_scalar(value)}"]
    return [f"  {key}:", *(f"    {name}: {_scalar(inside)}" for name, inside in value.items()
                           if inside is not None)]
