"""What is shared: the card says what was measured; secrets, local paths and pickles do not go along."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from run_files import result

from tunesmith.errors import IntegrityError
from tunesmith.recipe import parse_recipe
from tunesmith.share.card import Card, render_card
from tunesmith.share.metadata import read_metadata, training_facts
from tunesmith.share.scan import problems, refuse_private

JUDGEMENT = {"rows": 12, "verdict": "helps", "loss_base": 4.5, "loss_tuned": 3.25, "interval": [-1.4, -1.1],
             "stop_rate_base": 0.0, "stop_rate_tuned": 0.75}
TRAINED = {"steps": 6, "trainable_parameters": 1234, "dataset": "maker/quotes", "loss_on": "completion",
           "append_eos": True, "r": 8, "alpha": 16.0, "dropout": 0.0, "batch_size": 4, "learning_rate": 1e-3,
           "lr_scheduler": "linear", "warmup_steps": 1, "seed": 0}
METADATA = {"base": "maker/base", "revision": "0" * 40, "quantization": "int8", "prompt": "{quote} ->: ",
            "messages": False, "trained": TRAINED, "judgement": JUDGEMENT}


def front(card: Card) -> dict[str, Any]:
    return yaml.safe_load(render_card(card).split("---")[1])


def test_the_card_reads_as_the_hub_reads_it() -> None:
    from huggingface_hub import ModelCard

    text = render_card(Card(METADATA, "me/mine", "mit"))
    read = ModelCard(text).data
    assert read.base_model == "maker/base"
    assert read.license == "mit"
    assert read.datasets == ["maker/quotes"]
    losses = {result.metric_name: result.metric_value for result in read.eval_results}
    assert losses["held-out loss [nats a token]"] == 3.25
    assert losses["answers that end by themselves [share]"] == 0.75
    assert "**helps**" in text
    assert f'revision="{"0" * 40}"' in text


def test_rows_of_one_s_own_are_not_named(tmp_path: Path) -> None:
    recipe = parse_recipe('model: {base: b}\ndata: {source: s, completion: "{a}"}\n').model_dump(mode="json")
    for source in (str(tmp_path / "secret-project.jsonl"), "rows.jsonl", "data/rows.csv", "embedded:quotes",
                   str(tmp_path)):
        facts = training_facts(recipe | {"data": recipe["data"] | {"source": source}}, result())
        card = Card(METADATA | {"trained": facts}, "me/mine")
        assert source not in render_card(card), source
        assert "datasets" not in front(card)
    assert training_facts(recipe | {"data": recipe["data"] | {"source": "maker/quotes"}},
                          result())["dataset"] == "maker/quotes"


def test_nothing_held_out_claims_nothing() -> None:
    card = Card(METADATA | {"judgement": None}, "me/mine")
    assert "model-index" not in front(card)
    assert "nothing says whether it helped" in render_card(card)


def test_what_is_not_known_is_not_claimed() -> None:
    """Of an adapter that others made, or without its run, the card says nothing of measurements."""
    card = Card({"base": "maker/base", "quantization": "none"}, "me/mine")
    text = render_card(card)
    assert "is not known" in text
    assert "held out" not in text
    assert "model-index" not in front(card)


def test_a_small_change_is_still_one() -> None:
    small = JUDGEMENT | {"loss_base": 3.00012, "loss_tuned": 3.00001, "interval": [-0.00015, -0.00007]}
    text = render_card(Card(METADATA | {"judgement": small}))
    assert "3.000120 -> 3.000010" in text
    assert "-0.000150 to -0.000070" in text


@pytest.mark.parametrize("change", [{"prompt": "{"}, {"trained": {"steps": 1}}, {"judgement": {"verdict": 3}},
                                    {"messages": "x"}, {"base_weights": [1]}, "not an object", b"\xff\xfe"])
def test_metadata_that_was_not_written_so_is_refused(tmp_path: Path, change: Any) -> None:
    changed = METADATA | change if isinstance(change, dict) else change
    content = change if isinstance(change, bytes) else json.dumps(changed).encode()
    (tmp_path / "tunesmith.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"tunesmith\.json"):
        read_metadata(tmp_path)


@given(st.fixed_dictionaries({}, optional={"base": st.text(),
                                           "prompt": st.sampled_from(["", "{a} b", "x {{y}}"]), "messages":
                             st.booleans(), "judgement": st.sampled_from([None, JUDGEMENT]),
                                           "trained": st.sampled_from([None, TRAINED])}))
def test_metadata_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory,
                                               metadata: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("metadata")
    (folder / "tunesmith.json").write_text(json.dumps(metadata))
    assert read_metadata(folder) == metadata
    render_card(Card({"base": "maker/base", "quantization": "none"} | read_metadata(folder)))


SECRETS = ["hf_" + "aB3" * 11, "sk-" + "proj-" + "x1" * 20, "ghp_" + "a1" * 18, "AKIA" + "ABCDEFGH12345678",
           "-----BEGIN RSA PRIVATE KEY-----", "xoxb-" + "1234567890-abc", "api_key: " + "k9" * 12]


@pytest.mark.parametrize("secret", SECRETS)
@given(before=st.text(max_size=40), after=st.text(max_size=40))
def test_a_secret_is_found_wherever_it_stands_and_not_repeated(secret: str, before: str, after: str) -> None:
    content = (before + " " + secret + " " + after).encode("utf-8", "ignore")
    assert problems("README.md", content)
    with pytest.raises(IntegrityError) as error:
        refuse_private({"README.md": content})
    assert secret not in str(error.value)


@pytest.mark.parametrize("place", [str(Path.home()) + "/x", "/home/someone/models/base", "/Users/me/rows.csv",
                                   "C:\\Users\\me\\x", "file:///etc/x", "~/models/x"])
def test_a_place_on_a_disk_is_found(place: str) -> None:
    assert problems("adapter_config.json",
                    json.dumps({"base_model_name_or_path": place}).replace("\\\\", "\\").encode())


def test_the_token_is_found_even_in_a_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_tiny")
    assert problems("tokenizer.json", b'{"x": "hf_tiny"}')
    assert not problems("tokenizer.json", b'{"x": "/home/user/y"}'), "a vocabulary is full of words"


def test_pickles_by_any_name() -> None:
    zipped = io.BytesIO()
    torch.save({"a": torch.ones(2)}, zipped)
    for name, content in (("adapter_model.bin", b""), ("weights", pickle.dumps({"a": 1})),
                          ("README.md", zipped.getvalue())):
        assert any("pickle" in problem for problem in problems(name, content)), name


def test_metadata_of_weights_is_looked_at() -> None:
    clean = safetensors.torch.save({"a": torch.ones(2)}, metadata={"format": "pt"})
    assert not problems("adapter_model.safetensors", clean)
    assert problems("adapter_model.safetensors",
                    safetensors.torch.save({"a": torch.ones(2)}, metadata={"from": SECRETS[0]}))
    assert problems("adapter_model.safetensors", clean[:7])


def test_a_chat_adapter_is_asked_as_it_was_trained() -> None:
    """Here without a thought: whoever loads it elsewhere has to ask in the same way."""
    kwargs = {"enable_thinking": False, "x y": "`"}
    text = render_card(Card(METADATA | {"messages": True, "template_kwargs": kwargs}))
    assert "`enable_thinking=False`" in text
    assert 'return_tensors="pt", enable_thinking=False)' in text
    assert "x y" not in text
    plain = render_card(Card(METADATA | {"messages": True}))
    assert "by the tokenizer's chat template." in plain
