"""The model card: what an adapter is, how it was trained, what was measured, and how stock PEFT loads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from tunesmith import embedded
from tunesmith.hub import parse_hub_id
from tunesmith.model.quantization import AS_THEY_ARE, WAYS
from tunesmith.rundir.verdict import loss_digits, verdict_sentence
from tunesmith.share.markdown import code, literal, plain
from tunesmith.share.metadata import example_prompt
from tunesmith.visible import on_one_line


@dataclass(frozen=True)
class Card:
    """What a card tells. metadata: as `read_metadata` gives it, base in it.

    repo: where it is published, None for a folder. license: of the adapter, None where nobody said. origin:
    the repository and commit that it is a copy of. files: names of the files beside the card.
    """

    metadata: dict[str, Any]
    repo: str | None = None
    license: str | None = None
    origin: str | None = None
    files: frozenset[str] = frozenset()

    @property
    def on_hub(self) -> bool:
        """Whether the base is named by a Hub id."""
        base = self.metadata["base"]
        return embedded.path_of(base) is None and parse_hub_id(base) is not None

    @property
    def trained(self) -> dict[str, Any]:
        """How it was trained; empty where that is not known."""
        return self.metadata.get("trained") or {}

    @property
    def judgement(self) -> dict[str, Any]:
        """What was measured; empty where nothing was held out or nothing is known."""
        return self.metadata.get("judgement") or {}


def render_card(card: Card) -> str:
    """The card as Markdown behind YAML, as the Hub reads it (https://huggingface.co/docs/hub/model-cards)."""
    front_matter = yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True)
    return f"---\n{front_matter}---\n\n{_text(card)}"


def _front_matter(card: Card) -> dict[str, Any]:
    tags = ["lora", *(["tunesmith"] if card.trained else [])]
    front_matter: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation", "tags": tags}
    if card.on_hub:
        front_matter |= {"base_model": card.metadata["base"], "base_model_relation": "adapter"}
    if card.license:
        front_matter["license"] = on_one_line(card.license)
    dataset = card.trained.get("dataset")
    if dataset and parse_hub_id(dataset):
        front_matter["datasets"] = [dataset]
    if card.repo and card.judgement:
        front_matter["model-index"] = [{"name": card.repo.rpartition("/")[2], "results": [_measured(card)]}]
    return front_matter


def _measured(card: Card) -> dict[str, Any]:
    judgement, rows = card.judgement, card.trained.get("dataset")
    metrics = [{"type": "loss", "name": "held-out loss [nats a token]",
                "value": round(judgement["loss_tuned"], 6)},
               {"type": "loss", "name": "held-out loss of the bare base [nats a token]",
                "value": round(judgement["loss_base"], 6)}]
    if judgement.get("stop_rate_tuned") is not None:
        metrics.append({"type": "stop_rate", "name": "answers that end by themselves [share]",
                        "value": round(judgement["stop_rate_tuned"], 4)})
    named = on_one_line(rows) if rows else None
    dataset = {"name": named or "rows held out of the training data", "type": named or "local"}
    return {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}


def _text(card: Card) -> str:
    metadata, lines = card.metadata, [f"# A LoRA adapter for {plain(card.metadata['base'])}", ""]
    at = f" at revision {code(metadata['revision'])}" if metadata.get("revision") else ""
    quantization = metadata.get("quantization")
    kept = {None: "", AS_THEY_ARE: ", not quantised"}.get(quantization,
                                                          f", kept in {plain(str(quantization))}")
    base = f"Trained on the base{at}{kept}"
    if card.trained:
        base += f", for {card.trained['steps']} steps; {card.trained['trainable_parameters']:,} parameters"
    lines += [base + ".", "", _verdict(card), ""]
    if card.origin:
        lines += [f"A copy of {plain(card.origin)}.", ""]
    if card.trained:
        lines += _experiment(card.trained)
    return "\n".join(lines + prompts(metadata) + _loading(card)) + "\n"


def prompts(metadata: dict[str, Any]) -> list[str]:
    """How prompts are written, as a paragraph; nothing where that is not known."""
    if metadata.get("messages"):
        settings = ", ".join(f"{name}={value!r}" for name, value in _template_kwargs(metadata).items())
        return ["It was trained on chats, written by the tokenizer's chat template"
                + (f" with {code(settings)}" if settings else "") + ".", ""]
    return [f"Its prompts are written {code(metadata['prompt'])}.", ""] if metadata.get("prompt") else []


def _verdict(card: Card) -> str:
    judgement = card.judgement
    if not judgement:
        return ("Nothing was held out, so nothing says whether it helped." if "judgement" in card.metadata
                else "How it was measured, if it was, is not known.")
    digits = loss_digits(judgement)
    text = (f"On {judgement['rows']} rows that it never saw: **{plain(judgement['verdict'].strip())}**. "
            f"{plain(verdict_sentence(judgement))}. Loss "
            f"{judgement['loss_base']:.{digits}f} -> {judgement['loss_tuned']:.{digits}f} nats a token")
    if judgement.get("stop_rate_tuned") is not None and judgement.get("stop_rate_base") is not None:
        text += (f"; answers that end by themselves {100 * judgement['stop_rate_base']:.0f}% -> "
                 f"{100 * judgement['stop_rate_tuned']:.0f}%")
    return text + "."


def _experiment(trained: dict[str, Any]) -> list[str]:
    table = {"data": trained["dataset"] or "rows of one's own", "loss on": trained["loss_on"],
             "end token": "learnt" if trained["append_eos"] else "not learnt",
             "LoRA": f"r {trained['r']}, alpha {trained['alpha']}, dropout {trained['dropout']}",
             **_kept(trained.get("kept")), "samples a step": trained["batch_size"],
             "learning rate": f"{trained['learning_rate']}, {trained['lr_scheduler']}, "
             f"{trained['warmup_steps']} steps of warm-up", "seed": trained["seed"]}
    return ["| | |", "|---|---|", *(f"| {name} | {plain(str(value))} |" for name, value in table.items()), ""]


def _kept(kept: dict[str, int] | None) -> dict[str, str]:
    """How the base's values were kept while it was trained."""
    whole = sum((kept or {}).values())
    if not kept or not whole:
        return {}
    return {"the base's values": ", ".join(f"{100 * count / whole:.0f}% in {kind}"
                                           for kind, count in kept.items())}


def _loading(card: Card) -> list[str]:
    """Three lines that load it in stock PEFT, and three that ask it something."""
    way = WAYS.get(card.metadata.get("quantization", AS_THEY_ARE), WAYS[AS_THEY_ARE])
    base, adapter = literal(card.metadata["base"]), literal(card.repo or "THIS-FOLDER")
    settings = "generation_config.json" in card.files
    more = f", {way.loading_import}" if way.loading_import else ""
    more += ", GenerationConfig" if settings else ""
    imports = ["from peft import PeftModel",
               f"from transformers import AutoModelForCausalLM, AutoTokenizer{more}"]
    revision = ""
    if embedded.path_of(card.metadata["base"]):
        base = f"tunesmith.embedded.path_of({base})"
        imports.append("import tunesmith.embedded")
    elif card.metadata.get("revision"):
        revision = f", revision={literal(card.metadata['revision'])}"
    tokenizer = adapter if "tokenizer_config.json" in card.files else base + revision
    length = "max_new_tokens=64"
    if settings:
        length = f"generation_config=GenerationConfig.from_pretrained({adapter}, {length})"
    return ["```python", *imports,
            f"base = AutoModelForCausalLM.from_pretrained({base}{revision}, {way.loading_code})",
            f"model = PeftModel.from_pretrained(base, {adapter})", "",
            f"tokenizer = AutoTokenizer.from_pretrained({tokenizer})",
            f"tokens = {_asking(card.metadata)}.to(model.device)",
            f"print(tokenizer.decode(model.generate(**tokens, {length})[0]))", "```"]


def _asking(metadata: dict[str, Any]) -> str:
    """A prompt as tokens, in code."""
    if metadata.get("messages"):
        settings = "".join(f", {name}={value!r}" for name, value in _template_kwargs(metadata).items())
        return ('tokenizer.apply_chat_template([{"role": "user", "content": "..."}], '
                f'add_generation_prompt=True, return_dict=True, return_tensors="pt"{settings})')
    return f'tokenizer({literal(example_prompt(metadata))}, return_tensors="pt")'


def _template_kwargs(metadata: dict[str, Any]) -> dict[str, Any]:
    """The chat template's variables of which the names can stand in code."""
    return {name: value for name, value in metadata.get("template_kwargs", {}).items() if name.isidentifier()}
