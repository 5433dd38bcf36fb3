"""The chat templates that TRL ships, each with a tokenizer that knows its special tokens; for tests of
conversations.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

#: What these models stop on, as their own generation configs have it; the end token of the tokenizer as well.
STOPS = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|tool_response>",
         "<|return|>", "<|call|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<|eot|>",
         "<end_of_utterance>"]
#: And of these families alone.
STOPS_OF = {"glm4moe": ["<|user|>", "<|observation|>"], "phi3": ["<|end|>"], "phi3_5": ["<|end|>"]}
_SPECIAL = re.compile(
    r"<[|｜][^<>|｜\n]{1,40}[|｜]>|</?(?:start_of_turn|end_of_turn|end_of_utterance)>|<turn\|>|<\|turn>"
    r"|<\|channel>|<channel\|>|<\|tool_response>|<tool_response\|>|<\|tool_call>|<tool_call\|>"
)


@functools.cache
def folder() -> Path | None:
    """Where the templates are; None where TRL is not installed."""
    found = importlib.util.find_spec("trl")
    places = found.submodule_search_locations if found else None
    path = Path(places[0]) / "chat_templates" if places else None
    return path if path is not None and path.is_dir() else None


def names() -> list[str]:
    """The templates of published models; those that TRL wrote for training are not of them."""
    place = folder()
    return sorted(path.stem for path in place.glob("*.jinja") if "training" not in path.stem) if place else []


def source(name: str) -> str:
    place = folder()
    if place is None:
        pytest.skip("TRL's chat templates are not here: pip install --no-deps trl==1.16.0")
    return (place / f"{name}.jinja").read_text(encoding="utf-8")


def byte_tokenizer(template: str, special: list[str]) -> Any:
    """A tokenizer of bytes that knows these special tokens: small, and exact for any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<BOS>", eos_token="<EOS>",
                                        pad_token="<PAD>")
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    return tokenizer


@functools.cache
def tokenizer_of(name: str) -> Any:
    text = source(name)
    return byte_tokenizer(text, sorted(set(_SPECIAL.findall(text))))


def stop_ids(name: str, tokenizer: Any) -> tuple[int, ...]:
    known = tokenizer.get_vocab()
    texts = [text for text in [*STOPS, *STOPS_OF.get(name, [])] if text in known]
    return (*(known[text] for text in texts), tokenizer.eos_token_id)
