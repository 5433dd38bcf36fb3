"""An adapter's note, `tunesmith.json` beside PEFT's files: its base, how prompts are written, its training, its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from tunesmith import embedded
from tunesmith.data.rows import Row
from tunesmith.data.template import Template
from tunesmith.errors import IntegrityError, RecipeError
from tunesmith.hub import parse_hub_id

NOTE_NAME = "tunesmith.json"


class Trained(BaseModel):
    """How it was trained. dataset: the Hub id of the rows; None for rows that came from anywhere else. kept: the base's values
    by how they were kept."""

    model_config = ConfigDict(extra="ignore")

    steps: int
    trainable_parameters: int
    dataset: str | None
    loss_on: str
    append_eos: bool
    r: int
    alpha: float
    dropout: float
    batch_size: int
    learning_rate: float
    lr_scheduler: str
    warmup_steps: int
    seed: int
    kept: dict[str, int] | None = None


class Measured(BaseModel):
    """What the judge found, as in the run's verdict.json."""

    model_config = ConfigDict(extra="allow")

    verdict: str
    rows: int
    loss_base: float
    loss_tuned: float
    interval: tuple[float, float] | None = None
    stop_rate_base: float | None = None
    stop_rate_tuned: float | None = None


class AdapterNote(BaseModel):
    """The whole note. judgement: None where nothing was held out; absent where nothing is known.

    base_weights: hashes of the base's files of weights, by which another base of the same shapes is told apart.
    """

    model_config = ConfigDict(extra="ignore")

    base: str | None = None
    revision: str | None = None
    quantization: str = "none"
    dtype: str | None = None
    prompt: str = ""
    messages: bool = False
    base_weights: dict[str, str] | None = None
    trained: Trained | None = None
    judgement: Measured | None = None

    @field_validator("prompt")
    @classmethod
    def _readable(cls, prompt: str) -> str:
        try:
            Template(prompt, "prompt")
        except RecipeError as error:
            raise ValueError(error.message) from None
        return prompt


def read_note(folder: Path) -> dict[str, Any]:
    """The note in an adapter's folder, what is not said left out; empty for an adapter that others made.

    Raises IntegrityError for a note that this program did not write so.
    """
    path = folder / NOTE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        raise IntegrityError(f"{path}: cannot be read") from None
    try:
        return AdapterNote.model_validate_json(text).model_dump(mode="json", exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        raise IntegrityError(f"{path}: {where or 'the note'}: {first['msg']}",
                             "Without this file the adapter is taken as one that others made.") from None


def training_facts(recipe: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """`Trained` of a run. recipe: its sections; result: its result.json."""
    data, lora, train = (recipe[section] for section in ("data", "lora", "train"))
    known = {"kept": None, **data, **lora, **train, **result, "dataset": _dataset(str(data["source"]))}
    return Trained(**{name: known[name] for name in Trained.model_fields}).model_dump(mode="json")


def _dataset(source: str) -> str | None:
    """The Hub id behind a source of rows; the name of any other is nobody's business."""
    found = parse_hub_id(source)
    local = embedded.path_of(source) is not None or Path(source).suffix or Path(source).exists()
    return source if found and "/" in found.repo and not local else None


def example_prompt(note: dict[str, Any]) -> str:
    """A prompt with each column's name, in capitals, where its text goes; for chats a greeting; `...` if unknown."""
    if note.get("messages"):
        return "Hello!"
    if not note.get("prompt"):
        return "..."
    template = Template(note["prompt"], "prompt")
    return template.fill(Row({column: column.upper() for column in template.columns}, "the note"))
