"""What a run chooses, decided once, before rows are read and weights downloaded; the rest obeys it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.model.base_config import refuse_bidirectional, require_agreement, require_causal
from tunesmith.model.engines import choose_engine
from tunesmith.model.files import locate_config
from tunesmith.planning import (
    MicroBatchLimits,
    activation_budget_bytes,
    can_count,
    count_parameters,
    micro_batch_limits,
)
from tunesmith.recipe import Recipe
from tunesmith.recipe.schema import LoraSection
from tunesmith.verbs.show import Show

if TYPE_CHECKING:
    from tunesmith.model.placement import Placement


@dataclass(frozen=True)
class Counts:
    """trainable: the adapter's parameters; all: those and the base's; linear: values of the base that
    quantisation reaches; notes: what is to be said of where the adapter sits.
    """

    trainable: int
    all: int
    linear: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decisions:
    """base: its name. config: its config.json. activation_budget_bytes: for the activations of a step.

    micro_batch_size, gradient_checkpointing: as the recipe has them.
    """

    base: str
    revision: str | None
    config: dict[str, Any]
    placement: Placement
    counts: Counts
    activation_budget_bytes: float
    micro_batch_size: int | str
    gradient_checkpointing: bool | str

    def micro_batches(self, longest: int) -> MicroBatchLimits:
        """How steps are cut, by the rows' longest [tokens]."""
        return micro_batch_limits(
            self.config, engine=self.placement.engine, budget_bytes=self.activation_budget_bytes,
            value_bytes=self.placement.dtype.itemsize, longest=longest,
            on_gpu=self.placement.device.startswith("cuda"), micro_batch_size=self.micro_batch_size,
            gradient_checkpointing=self.gradient_checkpointing)


def decide(recipe: Recipe, show: Show, *, adapter: Path | None = None) -> Decisions:
    """Decide all that a recipe's run has to choose, from the base's config.json and this machine as it is.

    adapter: a saved one that is to be judged on the base, in place of a fresh one that is to be trained.
    Raises RecipeError, EnvironmentFault, NetworkError or IntegrityError.
    """
    model = recipe.model
    show.stage("looking at the base")
    _, config = locate_config(model.base, model.revision, show.note)
    refuse_bidirectional(config, model.base)
    require_agreement(config, model.base, model.quantization)
    matmul = recipe.train.matmul if adapter is None else "exact"
    engine, _ = choose_engine(recipe.train.engine, config, matmul)
    if engine == "hf":  # what a base cannot do is said before its weights are downloaded
        require_causal(config, model.base)
    lora = recipe.lora if adapter is None else LoraSection(r=1, target_modules="all-linear")
    counts = count(config, lora, arithmetic=engine == "native")
    show.stage("starting torch")
    from tunesmith.model.placement import place

    adapter_reason = None
    if adapter is not None:
        from tunesmith.model.lora import lora_config_of
        from tunesmith.model.native.adapter import why_not

        adapter_reason = why_not(lora_config_of(adapter), config)
    total = counts.all - counts.trainable
    placement = place(config, model.base, quantization=model.quantization, dtype=model.dtype,
                      device=model.device, base_bytes=2 * total, engine=recipe.train.engine, matmul=matmul,
                      adapter_reason=adapter_reason)
    return Decisions(model.base, model.revision, config, placement, counts, _budget_bytes(placement, counts),
                     recipe.train.micro_batch_size, recipe.train.gradient_checkpointing)


def count(config: dict[str, Any], lora: LoraSection, *, arithmetic: bool = True) -> Counts:
    """A base's parameters and its adapter's: by arithmetic where the family is known, else on the model that
    transformers builds without memory for it. Raises RecipeError.
    """
    if arithmetic and can_count(config, lora.target_modules):
        counted = count_parameters(config, r=lora.r, target_modules=lora.target_modules)
        return Counts(counted.trainable, counted.all, counted.linear)
    from tunesmith.model.hf.meta import count_on_meta
    from tunesmith.model.lora import LoraSettings

    built = count_on_meta(config, LoraSettings(lora.r, lora.alpha, lora.dropout, lora.target_modules))
    return Counts(built.trainable, built.all, built.quantisable, tuple(built.notes))


def _budget_bytes(placement: Placement, counts: Counts) -> float:
    import psutil
    import torch

    total = counts.all - counts.trainable
    return activation_budget_bytes(
        free_bytes=placement.free_bytes, host_bytes=psutil.virtual_memory().total,
        quantization=placement.quantization, value_bytes=placement.dtype.itemsize, linear=counts.linear,
        others=total - counts.linear, trainable=counts.trainable,
        gpus=max(1, torch.cuda.device_count()) if placement.spread else 1)
