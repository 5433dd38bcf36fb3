"""Columns of tables whose values are JSON (Arrow's type `arrow.json`): what they say, not their text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tunesmith.data.sources.reading import unique_keys

Decode = Callable[[Any], Any]


def decoder(kind: Any) -> Decode | None:
    """What decodes values of an Arrow type, lists and objects of JSON included; None where nothing in it is
    JSON. It raises ValueError or RecursionError for what is none.
    """
    import pyarrow

    types = pyarrow.types
    if isinstance(kind, pyarrow.JsonType):
        return lambda text: None if text is None else json.loads(text, object_pairs_hook=unique_keys)
    if types.is_map(kind) and (item := decoder(kind.item_type)) is not None:
        inside = item
        return lambda value: value and {key: inside(each) for key, each in value.items()}
    if types.is_struct(kind):
        fields = {each.name: found for each in kind if (found := decoder(each.type)) is not None}
        return (lambda value: value and {name: fields[name](each) if name in fields else each
                                         for name, each in value.items()}) if fields else None
    if types.is_nested(kind) and hasattr(kind, "value_type") and (
            item := decoder(kind.value_type)) is not None:
        inside = item
        return lambda value: value and [inside(each) for each in value]
    return None
