"""How many parameters a base has, and how many of them a LoRA adapter adds and trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.model.families import FAMILIES, describe, peft_targets


@dataclass(frozen=True)
class ParameterCounts:
    """trainable: the adapter's parameters; all: those and the base's; modules: linear modules that carry an
    adapter; linear: values of the base's linear modules, which quantisation reaches.
    """

    trainable: int
    all: int
    modules: int
    linear: int

    @property
    def trainable_percent(self) -> float:
        """The share that trains, in percent."""
        return 100 * self.trainable / self.all


def can_count(config: dict[str, Any], target_modules: str | list[str]) -> bool:
    """Whether `count_parameters` knows this family and the targets, plain module names (no layer paths)."""
    names = [target_modules] if isinstance(target_modules, str) else target_modules
    return config.get("model_type") in FAMILIES and not any("." in name for name in names)


def count_parameters(config: dict[str, Any], *, r: int, target_modules: str | list[str]) -> ParameterCounts:
    """Count a base and its LoRA adapter of rank r from its config alone.

    A linear module of n inputs and m outputs gets r * (n + m) parameters (Hu et al. 2021, section 4.1).
    Raises RecipeError for a target that names no module, or a config that lacks a width.
    """
    try:
        architecture = describe(config)
        if architecture is None:
            raise KeyError("model_type")
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, IndexError) as error:
        raise RecipeError(f"its config.json has no usable {error}",
                          "Copy the base's config.json again.", setting="model.base") from None
    #: Every linear module of the layers: its last name, inputs, outputs.
    modules = [(name.rpartition(".")[2], projection.inputs, outputs)
               for projection in architecture.projections() for name, outputs in projection.outputs.items()]
    names = {name for name, _, _ in modules}
    wanted = [target_modules] if isinstance(target_modules, str) else target_modules
    if target_modules == "auto":
        wanted = list(peft_targets(architecture.model_type) or names)
    elif target_modules == "all-linear":
        wanted = list(names)
    for target in wanted:
        if target not in names:
            raise RecipeError(f"no linear module of this base is called {target!r}",
                              f"This base has: {', '.join(sorted(names))}.", setting="lora.target_modules")
    chosen = [(inputs, outputs) for name, inputs, outputs in modules if name in wanted]
    widest = max((max(each) for each in chosen), default=0)
    if chosen and r > widest:
        raise RecipeError(f"lora.r is {r:,}: no module of this base is wider than {widest:,}",
                          "Usual ranks are 4 to 256.")
    trainable = sum(r * (inputs + outputs) for inputs, outputs in chosen)
    base = architecture.other_parameters + sum(each.parameters for each in architecture.projections())
    return ParameterCounts(trainable, base + trainable, len(chosen),
                           sum(inputs * outputs for _, inputs, outputs in modules))
