"""The model card: what an adapter is, how it was trained, what was measured, and how stock PEFT loads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tunesmith import embedded
from tunesmith.hub import parse_hub_id

_LOADING = {
    "int8": ("quantization_config=BitsAndBytesConfig(load_in_8bit=True)", ", BitsAndBytesConfig"),
    "nf4": ('quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            "bnb_4bit_use_double_quant=True)", ", BitsAndBytesConfig"),
    "none": ('dtype="auto"', ""),
}


@dataclass(frozen=True)
class Card:
    """What a card tells. note: `tunesmith.json`; result: the run's result.json, judgement within it; recipe: its sections.

    repo: where it is published, None for a folder. license: of the adapter, None where nobody said.
    """

    note: dict[str, Any]
    result: dict[str, Any] | None = None
    judgement: dict[str, Any] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    repo: str | None = None
    license: str | None = None

    @property
    def on_hub(self) -> bool:
        """Whether the base is named by a Hub id."""
        return embedded.path_of(self.note["base"]) is None and parse_hub_id(self.note["base"]) is not None

    @property
    def dataset(self) -> str | None:
        """The data set's Hub id; None for rows that came from anywhere else, whose name is nobody's business."""
        source = str(self.recipe.get("data", {}).get("source") or "")
        found = parse_hub_id(source)
        local = embedded.path_of(source) is not None or Path(source).suffix or Path(source).exists()
        return source if found and "/" in found.repo and not local else None


def render_card(card: Card) -> str:
    """The card as Markdown behind YAML, as the Hub reads it (https://huggingface.co/docs/hub/model-cards)."""
    return "---\n" + yaml.safe_dump(_front(card), sort_keys=False, allow_unicode=True) + "---\n\n" + _text(card)


def _front(card: Card) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "tunesmith"]}
    if card.on_hub:
        front |= {"base_model": card.note["base"], "base_model_relation": "adapter"}
    if card.license:
        front["license"] = card.license
    if card.dataset:
        front["datasets"] = [card.dataset]
    if card.repo and card.judgement:
        front["model-index"] = [{"name": card.repo.rpartition("/")[2], "results": [_measured(card, card.judgement)]}]
    return front


def _measured(card: Card, judgement: dict[str, Any]) -> dict[str, Any]:
    metrics = [{"type": "loss", "name": "held-out loss [nats a token]", "value": round(judgement["loss_tuned"], 4)},
               {"type": "loss", "name": "held-out loss of the bare base [nats a token]",
                "value": round(judgement["loss_base"], 4)}]
    if judgement.get("stop_rate_tuned") is not None:
        metrics.append({"type": "stop_rate", "name": "answers that end by themselves [share]",
                        "value": round(judgement["stop_rate_tuned"], 4)})
    dataset = {"name": card.dataset or "rows held out of the training data", "type": card.dataset or "local"}
    return {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}


def _text(card: Card) -> str:
    note, lines = card.note, [f"# A LoRA adapter for {card.note['base']}", ""]
    at = f" at revision `{note['revision']}`" if note.get("revision") else ""
    trained = f"Trained on the base{at}, kept in {note['quantization']}"
    if card.result:
        trained += f", for {card.result['steps']} steps; {card.result['trainable_parameters']:,} parameters"
    lines += [trained + ".", "", _verdict(card), ""]
    if card.recipe:
        lines += _experiment(card)
    if note.get("prompt"):
        lines += [f"Its prompts are written `{note['prompt']}`.", ""]
    if note.get("messages"):
        lines += ["It was trained on chats, written by the tokenizer's chat template.", ""]
    return "\n".join(lines + _loading(card)) + "\n"


def _verdict(card: Card) -> str:
    judgement = card.judgement
    if not judgement:
        return "Nothing was held out, so nothing says whether it helped."
    text = (f"On {judgement['rows']} rows that it never saw: **{judgement['verdict']}**. Loss "
            f"{judgement['loss_base']:.3f} -> {judgement['loss_tuned']:.3f} nats a token")
    low, high = judgement.get("interval") or (None, None)
    if low is not None and high is not None:
        text += f" (change {low:+.3f} to {high:+.3f}, 95%)"
    if judgement.get("stop_rate_tuned") is not None:
        text += (f"; answers that end by themselves {100 * judgement['stop_rate_base']:.0f}% -> "
                 f"{100 * judgement['stop_rate_tuned']:.0f}%")
    return text + "."


def _experiment(card: Card) -> list[str]:
    data, lora, train = (card.recipe.get(section, {}) for section in ("data", "lora", "train"))
    told = {"data": card.dataset or "rows of one's own", "loss on": data.get("loss_on"),
            "end token": "learnt" if data.get("append_eos") else "not learnt",
            "LoRA": f"r {lora.get('r')}, alpha {lora.get('alpha')}, dropout {lora.get('dropout')}",
            "samples a step": train.get("batch_size"), "learning rate": f"{train.get('learning_rate')}, "
            f"{train.get('lr_scheduler')}, {train.get('warmup_steps')} steps of warm-up", "seed": train.get("seed")}
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in told.items()), ""]


def _loading(card: Card) -> list[str]:
    words, more = _LOADING.get(card.note["quantization"], _LOADING["none"])
    where = f'"{card.note["base"]}"'
    imports = ["from peft import PeftModel", f"from transformers import AutoModelForCausalLM{more}"]
    if embedded.path_of(card.note["base"]):
        where = f"tunesmith.embedded.path_of({where})"
        imports.append("import tunesmith.embedded")
    elif card.note.get("revision"):
        where += f', revision="{card.note["revision"]}"'
    return ["```python", *imports, f"base = AutoModelForCausalLM.from_pretrained({where}, {words})",
            f'model = PeftModel.from_pretrained(base, "{card.repo or "THIS-FOLDER"}")', "```"]
