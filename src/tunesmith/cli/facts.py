"""What a run is, in words, before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tunesmith.model.quantization import WAYS

if TYPE_CHECKING:
    from tunesmith.verbs.show import RunFacts


def run_facts(facts: RunFacts) -> dict[str, str]:
    """What a run is, as names and values."""
    everything = facts.base_parameters + facts.trainable_parameters
    where = facts.gpu or f"{facts.threads} CPU cores"
    return {
        "base": f"{facts.base} ({facts.base_parameters / 1e6:,.1f} M parameters), "
                + described(facts.kept, facts.quantization),
        "data": f"{facts.train_rows + facts.validation_rows:,} rows · {facts.train_rows:,} to learn from, "
                f"{facts.validation_rows:,} held out",
        "adapter": f"LoRA r={facts.rank} on {', '.join(facts.targets)} · {facts.trainable_parameters:,} of "
                   f"{everything / 1e6:,.1f} M parameters train "
                   f"({100 * facts.trainable_parameters / everything:.2g}%)",
        "engine": f"{facts.engine} on {where}, {facts.dtype}"
                  + ("" if facts.matmul == "exact" else f", products in {facts.matmul}"),
        "steps": f"{facts.steps} of {facts.batch_size} samples",
    }


def described(kept: Mapping[str, int], quantization: str) -> str:
    """In words: all of it in the wanted way but little, or what share is not."""
    everything = sum(kept.values()) or 1
    rest = {kind: count for kind, count in kept.items() if kind != quantization}
    if not WAYS[quantization].quantised:
        return "not quantised"
    share = kept.get(quantization, 0) / everything
    by_size = sorted(rest.items(), key=lambda item: -item[1])
    others = ", ".join(f"{100 * count / everything:.0f}% in {kind}" for kind, count in by_size
                       if count / everything >= 0.005)
    return f"{100 * share:.0f}% of its values in {quantization}" + (f", {others}" if others else "")
