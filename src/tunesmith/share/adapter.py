"""The adapter's folder: PEFT's two files, the stop tokens, what it was trained on, and a card that says what it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith import embedded
from tunesmith.model.engine import Engine
from tunesmith.rundir import write_sealed_folder

#: Our own note beside PEFT's files: how the base was kept and how prompts are written.
NOTE_NAME = "tunesmith.json"


def write_adapter_folder(folder: Path, engine: Engine, *, base_name: str, revision: str | None, prompt: str,
                         messages: bool, judgement: dict[str, Any] | None, result: dict[str, Any]) -> None:
    """Write the folder, whole or not at all, sealed. Raises DiskError.

    prompt: the recipe's template. judgement: what the judge measured, if anything was held out.
    """
    note = {"base": base_name, "revision": revision, "quantization": engine.quantization,
            "dtype": str(engine.dtype).removeprefix("torch."), "prompt": prompt, "messages": messages}
    generation = {"eos_token_id": engine.stop_ids, "pad_token_id": engine.pad_id, "do_sample": False}
    files = engine.adapter_files()
    files["generation_config.json"] = _json(generation)
    files[NOTE_NAME] = _json(note)
    files["README.md"] = _card(note, judgement, result).encode()
    write_sealed_folder(folder, files)


def read_note(folder: Path) -> dict[str, Any]:
    """Our note in an adapter folder; empty for an adapter that others made."""
    try:
        value = json.loads((folder / NOTE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


_LOADING = {
    "int8": "quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
    "nf4": 'quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
           "bnb_4bit_use_double_quant=True)",
    "none": 'dtype="auto"',
}


def _card(note: dict[str, Any], judgement: dict[str, Any] | None, result: dict[str, Any]) -> str:
    lines = ["---", "library_name: peft", "tags: [lora, tunesmith]", "---", "", f"# A LoRA adapter for {note['base']}", "",
             f"Trained for {result['steps']} steps on the base in {note['quantization']}; "
             f"{result['trainable_parameters']:,} parameters.", ""]
    if judgement:
        change = f"{judgement['loss_base']:.3f} -> {judgement['loss_tuned']:.3f}"
        lines += [f"On {judgement['rows']} rows that it never saw: **{judgement['verdict']}**. Loss {change} nats a token"]
        if judgement["stop_rate_tuned"] is not None:
            lines[-1] += (f"; answers that end by themselves {100 * judgement['stop_rate_base']:.0f}% -> "
                          f"{100 * judgement['stop_rate_tuned']:.0f}%")
        lines[-1] += "."
    else:
        lines += ["Nothing was held out, so nothing says whether it helped."]
    where = f'"{note["base"]}"'
    if embedded.path_of(note["base"]):
        where = f"tunesmith.embedded.path_of({where})"
    if note["prompt"]:
        lines += ["", f"Its prompts are written `{note['prompt']}`."]
    lines += ["", "```python", "from peft import PeftModel",
              "from transformers import AutoModelForCausalLM, BitsAndBytesConfig",
              *(["import tunesmith.embedded"] if where.startswith("tunesmith") else []),
              f"base = AutoModelForCausalLM.from_pretrained({where}, {_LOADING[note['quantization']]})",
              'model = PeftModel.from_pretrained(base, "THIS-FOLDER")', "```", ""]
    return "\n".join(lines)
