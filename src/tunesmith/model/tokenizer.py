"""A base's tokenizer, through transformers, if possible without its model classes: they take seconds."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from tunesmith.errors import IntegrityError, RecipeError, TunesmithError
from tunesmith.model.files import BaseFiles, read_config, small_files
from tunesmith.model.libraries import quiet_libraries
from tunesmith.rundir.ordinary import read_json_object

#: What a BLOOM base may call its tokenizer, if anything, for AutoTokenizer to come to the plain class.
_PLAIN = (None, "BloomTokenizer", "BloomTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer_in(name: str, folder: str) -> Any:
    """The tokenizer in a folder, for another process. name: of the base. Raises as `load_tokenizer`."""
    path = Path(folder)
    return load_tokenizer(BaseFiles(name, None, path, read_config(path)))


def load_tokenizer(base: BaseFiles) -> Any:
    """The base's tokenizer. Raises RecipeError when its files are missing or unusable."""
    quiet_libraries()
    try:
        if _is_plain(base):
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(base.folder)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(base.folder, trust_remote_code=False)
    except TunesmithError:  # a signal of the user's, raised wherever it fell
        raise
    except Exception as error:  # transformers raises whatever its parser meets
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"{base.name} has no usable tokenizer: {reason}",
                          "The folder needs tokenizer.json (and tokenizer_config.json).",
                          setting="model.base") from None


def tokenizer_fingerprint(base: BaseFiles, tokenizer: Any) -> str:
    """A hash of all that a base's tokenizer and its chat template are made of; for a template that writes
    the date, of today's as well.
    """
    digest = hashlib.sha256()
    for path in [*small_files(base), *sorted(base.folder.glob("additional_chat_templates/*"))]:
        digest.update(f"{path.name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    if "strftime" in str(getattr(tokenizer, "chat_template", None)):
        digest.update(time.strftime("%Y-%m-%d").encode())
    return digest.hexdigest()


def _is_plain(base: BaseFiles) -> bool:
    """Whether AutoTokenizer would take the plain class; some transformers (5.17) import seconds of code."""
    path = base.folder / "tokenizer_config.json"
    if base.architecture != "bloom" or not (base.folder / "tokenizer.json").exists():
        return False
    try:
        tokenizer_config = read_json_object(path, infinite=True) if path.exists() else {}
    except IntegrityError as error:
        raise RecipeError(f"{base.name} has no usable tokenizer: {error.message}",
                          "The folder needs tokenizer.json (and tokenizer_config.json).",
                          setting="model.base") from None
    named = tokenizer_config.get("tokenizer_class") or base.config.get("tokenizer_class")
    return "auto_map" not in tokenizer_config and named in _PLAIN
