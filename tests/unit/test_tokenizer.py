"""Loading a tokenizer without AutoTokenizer, held to AutoTokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tunesmith import embedded
from tunesmith.errors import RecipeError
from tunesmith.model.files import locate_base
from tunesmith.model.tokenizer import _PLAIN, _is_plain, load_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded base."""
    return Path(shutil.copytree(embedded.path_of(embedded.BASE_NAME), tmp_path / "base"))


def rewrite(path: Path, **words: Any) -> None:
    before = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (before | words).items() if value is not None}))


@pytest.mark.parametrize("name", [*_PLAIN, "no file", "GPT2Tokenizer", "GPT2TokenizerFast"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_bloom_tokenizer_is_the_one_of_autotokenizer(folder: Path, name: str | None, file: str) -> None:
    rewrite(folder / "tokenizer_config.json", tokenizer_class=None)
    if name == "no file":
        (folder / "tokenizer_config.json").unlink()
    else:
        rewrite(folder / file, tokenizer_class=name)
    base = locate_base(str(folder), None)
    assert _is_plain(base) == (name in (*_PLAIN, "no file"))
    ours, theirs = load_tokenizer(base), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ours.init_kwargs | {"name_or_path": ""} == theirs.init_kwargs | {"name_or_path": ""}
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map
    text = "“Be</s> yourself” ->: <s> ['a', 'b']  \n"
    assert ours(text) == theirs(text)
    assert ours.decode(ours(text)["input_ids"]) == theirs.decode(theirs(text)["input_ids"])


@pytest.mark.parametrize("damage", ["missing", "broken", "broken config"])
def test_no_usable_tokenizer(folder: Path, damage: str) -> None:
    if damage == "missing":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / ("tokenizer.json" if damage == "broken" else "tokenizer_config.json")).write_text("{")
    with pytest.raises(RecipeError, match="has no usable tokenizer: "):
        load_tokenizer(locate_base(str(folder), None))
