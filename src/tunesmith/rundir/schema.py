"""What the schemas of a run's files share: strict models, bounded values, one way to read a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.errors import IntegrityError
from tunesmith.rundir.ordinary import MOST_JSON_BYTES, parse_json, read_ordinary

Count = Annotated[int, Field(ge=0, lt=1 << 62)]
#: A share of something, between none and all.
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
#: A name, a place or a sentence; never a text of the data's.
Short = Annotated[str, Field(max_length=4096)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Schema = TypeVar("Schema", bound=BaseModel)


class Strict(BaseModel):
    """A schema that takes only what this program writes: no unknown key, no value of another kind."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def as_json(value: BaseModel) -> str:
    """A file's content."""
    return value.model_dump_json(indent=2) + "\n"


def read_as(schema: type[Schema], path: Path, hint: str) -> Schema:
    """A JSON file of the run, by its schema.

    Raises IntegrityError naming the file, and the first key that is not as this program writes it; DiskError.
    """
    try:
        content = read_ordinary(path, MOST_JSON_BYTES)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing", hint) from None
    return parse_as(schema, content, str(path), hint)


def parse_as(schema: type[Schema], content: bytes, name: str, hint: str) -> Schema:
    """The same of a file's content. name: what errors call it."""
    try:
        parse_json(content, name, infinite=True)  # for its words on JSON that is none
    except IntegrityError as error:
        raise IntegrityError(error.message, hint) from None
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise IntegrityError(f"{name}: {where + ': ' if where else ''}not as this program writes it: "
                             f"{_lowered(first['msg'])}", hint) from None


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]
