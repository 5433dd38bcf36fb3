"""What leaves: the card says what was measured; secrets, places of this machine and pickles do not go along."""

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

from tunesmith.errors import IntegrityError
from tunesmith.share.card import Card, render_card
from tunesmith.share.scan import problems, refuse_private

NOTE = {"base": "maker/base", "revision": "0" * 40, "quantization": "int8", "prompt": "{quote} ->: ", "messages": False}
JUDGEMENT = {"rows": 12, "verdict": "helps", "loss_base": 4.5, "loss_tuned": 3.25, "interval": [-1.4, -1.1],
             "stop_rate_base": 0.0, "stop_rate_tuned": 0.75}
RESULT = {"steps": 6, "trainable_parameters": 1234}


def front(card: Card) -> dict[str, Any]:
    return yaml.safe_load(render_card(card).split("---")[1])


def test_the_card_reads_as_the_hub_reads_it() -> None:
    from huggingface_hub import ModelCard

    text = render_card(Card(NOTE, RESULT, JUDGEMENT, {"data": {"source": "maker/quotes"}}, "me/mine", "mit"))
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
    for source in (str(tmp_path / "secret-project.jsonl"), "rows.jsonl", "data/rows.csv", "embedded:quotes", str(tmp_path)):
        text = render_card(Card(NOTE, RESULT, JUDGEMENT, {"data": {"source": source}}, "me/mine"))
        assert source not in text, source
        assert "datasets" not in front(Card(NOTE, RESULT, JUDGEMENT, {"data": {"source": source}}, "me/mine"))


def test_nothing_held_out_claims_nothing() -> None:
    card = Card(NOTE, RESULT, None, {}, "me/mine")
    assert "model-index" not in front(card)
    assert "nothing says whether it helped" in render_card(card)


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


@pytest.mark.parametrize("place", [str(Path.home()) + "/x", "/home/someone/models/base", "/Users/me/rows.csv", "C:\\Users\\me\\x",
                                   "file:///etc/x", "~/models/x"])
def test_a_place_on_a_disk_is_found(place: str) -> None:
    assert problems("adapter_config.json", json.dumps({"base_model_name_or_path": place}).replace("\\\\", "\\").encode())


def test_the_token_is_found_even_in_a_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_tiny")
    assert problems("tokenizer.json", b'{"x": "hf_tiny"}')
    assert not problems("tokenizer.json", b'{"x": "/home/user/y"}'), "a vocabulary is full of words"


def test_pickles_by_any_name() -> None:
    zipped = io.BytesIO()
    torch.save({"a": torch.ones(2)}, zipped)
    for name, content in (("adapter_model.bin", b""), ("weights", pickle.dumps({"a": 1})), ("README.md", zipped.getvalue())):
        assert any("pickle" in problem for problem in problems(name, content)), name


def test_metadata_of_weights_is_looked_at() -> None:
    clean = safetensors.torch.save({"a": torch.ones(2)}, metadata={"format": "pt"})
    assert not problems("adapter_model.safetensors", clean)
    assert problems("adapter_model.safetensors", safetensors.torch.save({"a": torch.ones(2)}, metadata={"from": SECRETS[0]}))
    assert problems("adapter_model.safetensors", clean[:7])
