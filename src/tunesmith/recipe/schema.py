"""The recipe's schema: each setting's type, default, unit and meaning. Defaults stand here, nowhere else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunesmith.model.quantization import WAYS

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
if TYPE_CHECKING:
    Quantization = str
else:  # one of the names in the registry, so that a new one is added there alone
    Quantization = Literal[tuple(WAYS)]
_KINDS = " | ".join(f"{way.name} ({way.about})" if way.about else way.name for way in WAYS.values())


class Section(BaseModel):
    """A section of the recipe: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelSection(Section):
    """The frozen base."""

    base: str = Field(
        min_length=1, description="the base model: a Hub id, a local folder with safetensors weights, "
        "or embedded:sprout (a toy)")
    revision: str | None = Field(
        None, description="branch, tag or commit of a base on the Hub; null: its main branch")
    quantization: Quantization = Field("int8", description=f"how the frozen weights are kept: {_KINDS}")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="what is computed in: auto (float32 on CPU, bfloat16 on a GPU that has it, else float16)"
        " | float32 | bfloat16 | float16")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda|cuda:\d+)$",
        description="auto | cpu | cuda | cuda:N; auto spreads a base that one GPU cannot hold")


class ChatSection(Section):
    """A chat of one turn, made of columns."""

    system: str | None = Field(None, description="columns in braces; left out where it is empty")
    user: str = Field(min_length=1, description="what is asked, columns in braces")
    assistant: str = Field(min_length=1, description="what is answered, columns in braces")


class DataSection(Section):
    """The rows, and how each becomes text."""

    source: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] = Field(
        description="a Hub id, or a file (.jsonl .json .csv .tsv .parquet .arrow .xlsx .txt), folder or "
                    "glob; or a list of these")
    weights: list[float] | None = Field(
        None,
        description="with a list of sources: the share of the rows that each gives; null: all rows of all")
    name: str | None = Field(
        None, min_length=1, description="the configuration of a Hub data set, or the sheet of a spreadsheet")
    split: str = Field(
        "train", min_length=1, description="which split, slices (train[:5%]) and sums (train+test) included")
    bad_rows: Literal["error", "skip"] = Field(
        "error",
        description="what becomes of a row that cannot be read or used: error | skip (a few; counted)")
    prompt: str = Field(
        "", description="what the model is given, columns in braces ({{ and }} for braces themselves)")
    completion: str | None = Field(None, description="what it should answer, columns in braces")
    messages: str | None = Field(
        None,
        description="instead of prompt and completion: the column with a chat, as role/content or from/value")
    tools: str | None = Field(
        None, min_length=1,
        description="with messages: the column with what a row may call; null: `tools` if there is one")
    chat: ChatSection | None = Field(
        None,
        description="instead of prompt and completion: templates for system, user and assistant, made a chat "
                    "by "
                          "the base's chat template")
    template_kwargs: dict[str, bool | int | float | str | None] = Field(
        default_factory=dict, description="variables for the chat template, such as {enable_thinking: false}")
    answers: Literal["all", "last"] = Field(
        "all", description="which of a chat's answers are learnt: all | last")
    loss_on: Literal["all", "completion"] = Field(
        "completion",
        description="which tokens bear loss: completion (the answer alone) | all (as the notebook)")
    append_eos: bool = Field(
        True, description="teach the model to stop; false reproduces the notebook, which never does")
    max_length: Annotated[int, Field(ge=2)] = Field(2048, description="longest row [tokens]")
    overlong: Literal["error", "truncate", "drop", "split"] = Field(
        "drop",
        description="what becomes of a longer row: drop | truncate | split (into windows) | error; always "
                    "counted")
    stride: Annotated[int, Field(ge=0)] = Field(
        0, description="with `overlong: split`: by how much a window overlaps the one before [tokens]")
    special_tokens: bool = Field(
        False,
        description="whether special tokens in the text of rows, such as </s>, are tokens; else they are "
                    "text")
    validation: float | int | str | list[str] = Field(
        0.05,
        description="held out: a share below 1, a count of rows, split:NAME (of the same data set), or a "
                    "source (or list of them) of its own; 0 holds nothing out")

    @property
    def source_name(self) -> str:
        """What the source is called in messages."""
        return self.source if isinstance(self.source, str) else ", ".join(self.source)

    @model_validator(mode="after")
    def _sources(self) -> DataSection:
        for key in ("source", "validation"):
            value = getattr(self, key)
            if isinstance(value, list) and not all(value):
                raise ValueError(f"`{key}` has an empty name in its list")
        if isinstance(self.validation, list | str) and self.validation in ([], "", "split:"):
            raise ValueError(f"`validation` is {self.validation!r}: name a split (split:test) or a source")
        if self.weights is not None:
            count = len(self.source) if isinstance(self.source, list) else 1
            if count == 1 or len(self.weights) != count:
                raise ValueError(f"`weights` has {len(self.weights)} numbers, `source` names {count}: one "
                                 "for each of several sources")
            if not all(0 < weight < float("inf") for weight in self.weights):
                raise ValueError(f"`weights` is {self.weights}: numbers above 0")
        return self

    @model_validator(mode="after")
    def _one_form(self) -> DataSection:
        forms = [name for name in ("completion", "messages", "chat") if getattr(self, name) is not None]
        if len(forms) != 1:
            raise ValueError("give one of `completion` (with `prompt`), `messages` and `chat`, not "
                             + (" and ".join(f"`{name}`" for name in forms) or "none"))
        if self.completion is None and self.prompt:
            raise ValueError(f"`prompt` goes with `completion`; `{forms[0]}` brings its own prompts")
        if self.stride and self.stride >= self.max_length:
            raise ValueError(f"`stride` is {self.stride}: less than `max_length`, {self.max_length}")
        validation = self.validation
        if isinstance(validation, bool) or (isinstance(validation, int | float) and not validation >= 0):
            raise ValueError(f"`validation` is {validation}: a share below 1, a count of rows, or a source")
        if isinstance(validation, float) and validation >= 1 and not validation.is_integer():
            raise ValueError(f"`validation` is {validation}: a share is below 1, a count is a whole number")
        if isinstance(validation, float) and validation == float("inf"):
            raise ValueError("`validation` is infinite: a share below 1, a count of rows, or a source")
        return self


class LoraSection(Section):
    """The adapter (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    r: PositiveInt = Field(16, description="rank of the update")
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        32.0, description="the update is scaled by alpha / r")
    dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(
        0.05, description="dropout before the adapter [probability]")
    target_modules: str | list[str] = Field(
        "auto", description="auto (PEFT's own table) | all-linear | a list of module names")

    @model_validator(mode="after")
    def _named(self) -> LoraSection:
        if not self.target_modules or (isinstance(self.target_modules, list)
                                       and not all(self.target_modules)):
            raise ValueError("`target_modules` is empty: auto, all-linear or a list of module names")
        return self


class TrainSection(Section):
    """The experiment, and how it is run."""

    max_steps: PositiveInt | None = Field(
        None, description="length of the run [optimiser steps]; or num_epochs")
    num_epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="length of the run [passes over the training rows]; or max_steps")
    batch_size: PositiveInt = Field(16, description="samples per optimiser step: the experiment")
    micro_batch_size: Literal["auto"] | PositiveInt = Field(
        "auto", description="samples computed at once: auto | a number; cuts a step to fit, never changes it")
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        2.0e-4, description="peak learning rate")
    lr_scheduler: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="after the warm-up: linear (to 0) | cosine (to 0) | constant")
    warmup_steps: NonNegativeInt = Field(
        100, description="the learning rate climbs from 0 over this many [steps]")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="AdamW's decoupled weight decay")
    max_grad_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0, description="gradients are clipped to this norm; 0 does not clip")
    gradient_checkpointing: Literal["auto"] | bool = Field(
        "auto", description="recompute activations to save memory: auto (only when needed) | true | false")
    engine: Literal["auto", "hf", "native"] = Field(
        "auto", description="auto (native where it knows the base) | hf (transformers + peft) | native")
    matmul: Literal["exact", "fp8", "int8"] = Field(
        "exact",
        description="products with the frozen weights: "
                    "exact | fp8 (rounds the backward pass) | int8 (rounds both)")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="seed of shuffling, initialisation and dropout")
    save_steps: PositiveInt = Field(50, description="a checkpoint every so many [steps]")
    save_total_limit: Annotated[int, Field(ge=1)] = Field(3, description="how many checkpoints are kept")
    eval_steps: NonNegativeInt = Field(
        50, description="held-out loss every so many [steps]; 0: only before and after")

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        if self.max_steps is not None and self.num_epochs is not None:
            raise ValueError("give either `max_steps` or `num_epochs`, not both")
        if self.max_steps is None and self.num_epochs is None:
            object.__setattr__(self, "max_steps", 200)
        return self


class JudgeSection(Section):
    """How it is found out whether the adapter helped."""

    max_new_tokens: PositiveInt = Field(64, description="an answer that is longer has not stopped [tokens]")
    samples: NonNegativeInt = Field(
        5, description="held-out prompts whose answers are shown before and after [rows]")
    stop_rows: NonNegativeInt = Field(
        128, description="held-out prompts answered, for verdict and stop rate, at most [rows]")
    matters: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="a smaller change of the held-out loss is none [nats a token]")


class ShareSection(Section):
    """Where the adapter goes afterwards."""

    repo: str | None = Field(None, description="Hub repository to push to, as user/name; null: stay here")
    private: bool = Field(True, description="create that repository private")
    message: str | None = Field(None, description="commit message of the push")

    @model_validator(mode="after")
    def _repository(self) -> ShareSection:
        if self.repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            raise ValueError(f"`repo` is {self.repo!r}: a repository is written user/name")
        return self


class Recipe(Section):
    """A whole recipe."""

    model: ModelSection
    data: DataSection
    lora: LoraSection = Field(default_factory=LoraSection)
    train: TrainSection = Field(default_factory=TrainSection)
    judge: JudgeSection = Field(default_factory=JudgeSection)
    share: ShareSection = Field(default_factory=ShareSection)
