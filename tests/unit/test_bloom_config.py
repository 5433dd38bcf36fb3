"""BLOOM's config.json as the native engine completes it, held to transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tunesmith.errors import RecipeError
from tunesmith.model.families.bloom import completed
from tunesmith.model.files import BaseFiles, read_config
from tunesmith.model.native.engine import architecture_and_config

READ = ("vocab_size", "hidden_size", "n_layer", "n_head", "layer_norm_epsilon", "tie_word_embeddings")


def as_transformers(config: dict[str, Any]) -> dict[str, Any]:
    whole = AutoConfig.for_model(**{"model_type": "bloom", **config}).to_dict()
    return {name: whole[name] for name in READ}


@pytest.mark.parametrize("config", [
    {}, {"vocab_size": 7, "hidden_size": 48, "n_layer": 3, "n_head": 6, "layer_norm_epsilon": 1e-3,
         "tie_word_embeddings": False},
    {"n_embed": 32}, {"n_embed": 32, "hidden_size": 48}, {"n_embed": None, "hidden_size": 48},
    {"num_hidden_layers": 5, "num_attention_heads": 4},
    {"num_hidden_layers": 5, "n_layer": 5, "dtype": "float16"},
])
def test_what_a_config_leaves_out(config: dict[str, Any]) -> None:
    assert completed(config) == as_transformers(config)


def test_the_real_configs(assets: Path) -> None:
    for name in ("bloom-560m", "bloom-7b1"):
        config = read_config(assets / name)
        assert completed(config) == as_transformers({key: value for key, value in config.items()
                                                     if key != "model_type"})


@pytest.mark.parametrize("change", [{"n_layer": "two"}, {"hidden_size": None}, {"n_head": 2.0},
                                    {"tie_word_embeddings": "yes"}, {"n_embed": "x"},
                                    {"layer_norm_epsilon": "1e-5"}])
def test_a_value_of_another_type(change: dict[str, Any]) -> None:
    config = {"model_type": "bloom", "vocab_size": 7, **change}
    with pytest.raises(Exception, match=next(iter(change)).replace("n_embed", "hidden_size")):
        as_transformers(change)
    with pytest.raises(RecipeError, match="config.json is not usable: "
                       + next(iter(change)).replace("n_embed", "hidden_size")):
        architecture_and_config(BaseFiles("a base", None, Path(), config))
