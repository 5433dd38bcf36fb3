"""What the tests of GGUF share: random adapters, and the embedded base with published tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import native_bases as bases

from tunesmith import embedded
from tunesmith.model.files import BaseFiles

SPROUT = embedded.path_of(embedded.BASE_NAME)


def adapter_of(base: BaseFiles, folder: Path, **settings: Any) -> tuple[Path, Any]:
    """A random PEFT adapter that is as strong as the base, and its engine."""
    engine = bases.build(base, "hf", **settings)
    bases.randomise(engine)
    folder.mkdir()
    for name, content in engine.adapter_files().items():
        (folder / name).write_bytes(content)
    return folder, engine


def tokenizer_folder(folder: Path, change: Any, config: dict[str, Any] | None = None) -> Path:
    """The embedded base with its tokenizer.json changed."""
    shutil.copytree(SPROUT, folder, dirs_exist_ok=True)
    words = json.loads((SPROUT / "tokenizer.json").read_text())
    change(words)
    (folder / "tokenizer.json").write_text(json.dumps(words))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
         **(config or {})}))
    return folder


def split_words(pattern: str, whole: bool = False) -> Any:
    def change(words: dict[str, Any]) -> None:
        words["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}
        words["model"]["ignore_merges"] = whole
    return change


def digits(words: dict[str, Any]) -> None:
    words["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, words["pre_tokenizer"]]}


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
          r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
#: The pre-tokenizers of published models, by llama.cpp's name.
PUBLISHED = {"gpt-2": lambda words: None, "smollm": digits,
             "bloom": split_words(r" ?[^(\s|[.,!?…。，、।۔،])]+"),
             "qwen2": split_words(LLAMA3.replace("{1,3}", "")), "llama-bpe": split_words(LLAMA3, whole=True),
             "smaug-bpe": split_words(LLAMA3)}
