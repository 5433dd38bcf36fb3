"""An adapter's metadata, `tunesmith.json` beside PEFT's files: its base, prompts, training and verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tunesmith import embedded
from tunesmith.data.rows import Row
from tunesmith.data.template import text_of
from tunesmith.errors import IntegrityError, RecipeError
from tunesmith.hub import parse_hub_id
from tunesmith.model.quantization import AS_THEY_ARE
from tunesmith.rundir.ordinary import MOST_JSON_BYTES, read_ordinary
from tunesmith.rundir.result import Finite, Measured, RunResult
from tunesmith.rundir.schema import Count, Short

METADATA_NAME = "tunesmith.json"



class Trained(BaseModel):
    """How it was trained. dataset: the Hub id of the rows; None for rows that came from anywhere else. kept:
    the base's values by how they were kept.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    steps: Count
    trainable_parameters: Count
    dataset: Short | None
    loss_on: Short
    append_eos: bool
    r: Count
    alpha: Finite
    dropout: Finite
    batch_size: Count
    learning_rate: Finite
    lr_scheduler: Short
    warmup_steps: Count
    seed: Annotated[int, Field(ge=-(1 << 64), le=1 << 64)]
    kept: dict[Short, Count] | None = None

    @field_validator("dataset")
    @classmethod
    def _of_the_hub(cls, dataset: str | None) -> str | None:
        if dataset is not None and parse_hub_id(dataset) is None:
            raise ValueError("not a Hub id")
        return dataset


class AdapterMetadata(BaseModel):
    """All of it. judgement: None where nothing was held out; absent where nothing is known.

    messages: whether it is asked through the base's chat template; template_kwargs: with which of its
    variables. special_tokens: whether special tokens in a prompt's text are tokens. base_weights: hashes of
    the base's files of weights, by which another base of the same shapes is told apart.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    base: Short | None = None
    revision: Short | None = None
    quantization: Short = AS_THEY_ARE
    dtype: Short | None = None
    prompt: Annotated[str, Field(max_length=1 << 20)] = ""
    messages: bool = False
    template_kwargs: dict[Short, bool | int | float | Short | None] = {}
    special_tokens: bool = False
    base_weights: Annotated[dict[Short, Short], Field(max_length=10_000)] | None = None
    trained: Trained | None = None
    judgement: Measured | None = None

    @field_validator("prompt")
    @classmethod
    def _readable(cls, prompt: str) -> str:
        try:
            text_of(prompt, "prompt")
        except RecipeError as error:
            raise ValueError(error.message) from None
        return prompt


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata in an adapter's folder, without what is not set; empty for an adapter that others made.

    Raises IntegrityError for a file that this program did not write so.
    """
    path = folder / METADATA_NAME
    try:
        content = read_ordinary(path, MOST_JSON_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return AdapterMetadata.model_validate_json(content).model_dump(mode="json", exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        raise IntegrityError(f"{path}: {where or 'the metadata'}: {first['msg']}",
                             "Without this file the adapter is taken as one that others made.") from None


def training_facts(recipe: dict[str, Any], result: RunResult) -> dict[str, Any]:
    """`Trained` of a run. recipe: its sections."""
    data, lora, train = (recipe[section] for section in ("data", "lora", "train"))
    known = {**data, **lora, **train, **result.model_dump(), "dataset": _dataset(str(data["source"]))}
    return Trained(**{name: known[name] for name in Trained.model_fields}).model_dump(mode="json")


def _dataset(source: str) -> str | None:
    """The Hub id behind a source of rows; the name of any other is nobody's business."""
    hub_id = parse_hub_id(source)
    local = embedded.path_of(source) is not None or Path(source).suffix or Path(source).exists()
    return source if hub_id and "/" in hub_id.repo and not local else None


def example_prompt(metadata: dict[str, Any]) -> str:
    """A prompt with each column's name in capitals for its text; for chats a greeting; `...` if unknown."""
    if metadata.get("messages"):
        return "Hello!"
    if not metadata.get("prompt"):
        return "..."
    template = text_of(metadata["prompt"], "prompt")
    names = {column: column.upper() for column in template.columns}
    return template.fill(Row(names, f"the adapter's metadata ({METADATA_NAME})"))
