"""What the Hub says about a card's metadata: the rules that people break most, in its words."""

from __future__ import annotations

import re
from typing import Any

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
EMPTY = "empty or missing yaml metadata in repo card"
LISTS = ("tags", "widget", "model-index", "configs")
TEXTS = ("license_name", "license_link", "library_name", "pipeline_tag", "thumbnail")
#: Fields that hold one text or a list, with the shape that each must have and what the Hub says otherwise.
SHAPES = {
    "language": (r"[a-z]{2,3}|code|multilingual",
                 "It must be an ISO 639-1, 639-2 or 639-3 code (two/three letters), or a "
                                                  'special value like "code", "multilingual".'),
    "license": (r"[a-z0-9][a-z0-9.+-]*",
                "Use a license id from https://hf.co/docs/hub/repositories-licenses."),
    "base_model": (r"\w[\w.-]*(/[\w.-]+)?", "Use a model id from https://hf.co/models."),
    "datasets": (r"\w[\w.-]*(/[\w.-]+)?", "If possible, use a dataset id from https://hf.co/datasets."),
    "metrics": (r".+", "Use a metric id from https://hf.co/metrics."),
}


def metadata(content: str) -> dict[str, Any] | None:
    """The YAML between two lines of dashes; None where there is none. Raises ValueError (no mapping)."""
    import yaml

    match = FRONT_MATTER.match(content)
    if match is None:
        return None
    try:
        value = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        raise ValueError(f"YAML Metadata Error: {error}") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError("YAML Metadata Error: the metadata must be a mapping")
    return value


def judge(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a card."""
    try:
        found = metadata(content)
    except ValueError as error:
        return [str(error)], []
    if not found:
        return [], [EMPTY]
    return [*_kinds(found), *_shapes(found)], []


def _kinds(found: dict[str, Any]) -> list[str]:
    wrong = [f'"{key}" must be an array' for key in LISTS if key in found
             and not isinstance(found[key], list)]
    wrong += [f'"{key}" must be a string' for key in TEXTS if key in found
              and not isinstance(found[key], str)]
    return wrong + [f'"tags[{at}]" must be a string' for at, tag in enumerate(_many(found.get("tags")))
                    if not isinstance(tag, str)]


def _shapes(found: dict[str, Any]) -> list[str]:
    wrong = []
    for key, (shape, hint) in SHAPES.items():
        for at, value in enumerate(_many(found.get(key))):
            name = f"{key}[{at}]" if isinstance(found[key], list) else key
            if not isinstance(value, str):
                wrong.append(f'"{name}" must be a string')
            elif not re.fullmatch(shape, value):
                wrong.append(f'"{name}" with value "{value}" is not valid. {hint}')
    return list(dict.fromkeys(wrong))


def _many(value: object) -> list[object]:
    return [] if value is None else value if isinstance(value, list) else [value]
