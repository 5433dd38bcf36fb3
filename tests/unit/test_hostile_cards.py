"""Whatever an adapter's metadata says, a card keeps its structure and its snippet its calls, without HTML."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tunesmith.errors import IntegrityError
from tunesmith.share.card import Card, render_card
from tunesmith.share.markdown import code as code_span
from tunesmith.share.markdown import literal
from tunesmith.share.markdown import plain as text
from tunesmith.share.metadata import AdapterMetadata, read_metadata
from tunesmith.visible import on_one_line, visible

TRAINED = {"steps": 6, "trainable_parameters": 1234, "dataset": "maker/quotes", "loss_on": "completion",
           "append_eos": True, "r": 8, "alpha": 16.0, "dropout": 0.0, "batch_size": 4, "learning_rate": 1e-3,
           "lr_scheduler": "linear", "warmup_steps": 1, "seed": 0}
JUDGEMENT = {"rows": 12, "verdict": "helps", "loss_base": 4.5, "loss_tuned": 3.25, "interval": [-1.4, -1.1],
             "stop_rate_base": 0.0, "stop_rate_tuned": 0.75}
METADATA = {"base": "maker/base", "revision": "0" * 40, "quantization": "int8", "prompt": "{quote} ->: ",
            "messages": False, "trained": TRAINED, "judgement": JUDGEMENT}
ATTACKS = ["<img src=x onerror=alert(1)>", "`" * 5, "```\n", "~~~\n<script>", '"); import os; os.system("x',
           "'\"\\", "\n\n# heading\n\n",
           "\n---\n", "\x1b[31m\x07", "[a](javascript:x)", "![a](http://evil/x.png)", "|a|b|\n|---|---|",
           "&lt;b&gt;", "<!--", "-->", "\r", "\u2028", "\u202e", "\\", "    code\n", "\n> quote\n",
           "\n- item\n", "1. x\n", "http://evil", "www.evil.example", "a@b.c", "\x85", "**", "_a_", "$x$",
           "\0", " ", "x", "<a href=\"", "</code></pre>", "]: x", "***", "\n```python\nimport evil\n```\n",
           "\U0001f600"]
HOSTILE = st.lists(st.sampled_from(ATTACKS) | st.text(max_size=6), min_size=1,
                   max_size=5).map("".join).filter(str.strip)
MARKDOWN = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table")


def structure(card: str) -> tuple[list[str], list[str]]:
    """(the kinds of all blocks, those of all spans but text and code) of a card's Markdown."""
    _, front, body = card.split("---\n", 2)
    assert isinstance(yaml.safe_load(front), dict)
    tokens = MARKDOWN.parse(body)
    inner = [child for token in tokens for child in token.children or []]
    return [token.type for token in tokens], [child.type for child in inner
                                              if child.type not in ("text", "text_special", "softbreak")]


def snippet(card: str) -> str:
    """The code of the card with every text in it left out."""
    _, _, body = card.split("---\n", 2)
    fences = [token for token in MARKDOWN.parse(body) if token.type == "fence"]
    assert len(fences) == 1
    tree = ast.parse(fences[0].content)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.unparse(tree)


FIELDS = ["base", "revision", "quantization", "prompt", "loss_on", "lr_scheduler", "verdict", "origin",
          "license"]


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(FIELDS), HOSTILE, min_size=1))
def test_hostile_words_change_no_structure(words: dict[str, str]) -> None:
    prompt = words.get("prompt", "x").replace("{", "{{").replace("}", "}}")

    def card(new: dict[str, str], prompt: str) -> str:
        get = {"base": "no hub id", "revision": "r", "quantization": "q", "loss_on": "l", "lr_scheduler": "s",
               "verdict": "v", "origin": "o", "license": "n/a"} | new
        metadata = METADATA | {key: get[key] for key in ("base", "revision", "quantization")}
        metadata |= {"prompt": prompt, "judgement": JUDGEMENT | {"verdict": get["verdict"]},
                     "trained": TRAINED | {key: get[key] for key in ("loss_on", "lr_scheduler")}}
        return render_card(Card(metadata, "me/mine", get["license"], get["origin"],
                                frozenset({"generation_config.json"})))

    plain, hostile = card({}, "x"), card(words, prompt)
    blocks, spans = structure(hostile)
    assert "html_block" not in blocks
    assert "html_inline" not in spans
    assert blocks == structure(plain)[0]
    assert ([each for each in spans if each != "code_inline"]
            == [each for each in structure(plain)[1] if each != "code_inline"])
    assert spans.count("code_inline") == structure(plain)[1].count("code_inline")
    assert snippet(hostile) == snippet(plain)
    assert visible(hostile) == hostile


@given(HOSTILE)
def test_a_literal_is_the_words(words: str) -> None:
    assert ast.literal_eval(literal(words)) == words
    assert on_one_line(literal(words), 10**6) == literal(words)


@given(HOSTILE)
def test_text_is_read_as_it_was_written(words: str) -> None:
    inline = MARKDOWN.parseInline("x " + text(words) + " x")[0].children or []
    assert {child.type for child in inline} <= {"text", "text_special"}
    assert "".join(child.content for child in inline) == f"x {on_one_line(words, 2000)} x"


@given(st.text(alphabet="` ax*<{", min_size=1).filter(str.strip))
def test_a_span_of_code_is_read_as_it_was_written(words: str) -> None:
    (span,) = MARKDOWN.parseInline(code_span(words))[0].children or []
    assert (span.type, span.content) == ("code_inline", words)


def test_half_of_a_measurement_is_not_told() -> None:
    for name in ("stop_rate_base", "stop_rate_tuned"):
        half = METADATA | {"judgement": JUDGEMENT | {name: None}}
        assert "end by themselves" not in render_card(Card(half))
    assert "end by themselves" in render_card(Card(METADATA))


@settings(max_examples=30)
@given(HOSTILE)
def test_a_merged_model_s_card_is_no_better_a_place(tmp_path_factory: pytest.TempPathFactory,
                                                    words: str) -> None:
    from tunesmith import embedded
    from tunesmith.model.files import locate_base
    from tunesmith.share.merge import _finish

    def card(name: str) -> str:
        folder = tmp_path_factory.mktemp("merged")
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / file).write_bytes(b"")
        result = {"taken": name, "quantization": name, "bare": {"positions": 1, "prompts": 1}}
        _finish(folder, dataclasses.replace(base, name=name), folder, result, [f"merged onto {name}"])
        return (folder / "README.md").read_text()

    base = locate_base(embedded.BASE_NAME, None)
    assert structure(card(words)) == structure(card("plain"))
    assert yaml.safe_load(card("maker/base").split("---\n")[1])["base_model"] == "maker/base"


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats()
                    | st.text(max_size=9), lambda inner:
                    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
                    max_leaves=8)


@given(st.sampled_from([(None, name) for name in AdapterMetadata.model_fields]
                       + [("trained", name) for name in TRAINED]
                       + [("judgement", name) for name in JUDGEMENT]), JSON)
def test_any_metadata_is_rendered_or_refused_by_name(tmp_path_factory: pytest.TempPathFactory,
                                                     where: tuple[str | None, str], value: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    part, name = where
    metadata = METADATA | ({name: value} if part is None
                           else {part: METADATA[part] | {name: value}})  # type: ignore[operator]
    (folder / "tunesmith.json").write_text(json.dumps(metadata))
    try:
        found = read_metadata(folder)
    except IntegrityError as error:
        assert "tunesmith.json" in str(error)
        assert name in str(error)
        return
    structure(render_card(Card({"base": "maker/base"}
                               | {key: each for key, each in found.items() if each is not None}, "me/mine")))


@pytest.mark.parametrize("content", ["[" * 100_000, '{"trained": ' * 50_000, '{"base": ' + "9" * 5000 + "}",
                                     "", "[]", "3", '{"base": "\\ud800"}',
                                     '{"trained": {"steps": ' + "9" * 5000 + "}}"])
def test_files_that_are_no_metadata(tmp_path: Path, content: str) -> None:
    (tmp_path / "tunesmith.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"tunesmith\.json"):
        read_metadata(tmp_path)


@pytest.mark.parametrize(("part", "name", "value"), [("trained", "steps", 10**30), ("trained", "steps", "6"),
                                                     ("trained", "alpha", 1e999),
                                                     ("judgement", "loss_tuned", float("nan")),
                                                     ("trained", "dataset", "../x\n---"),
                                                     ("judgement", "interval", [1]),
                                                     ("judgement", "stop_rate_tuned", 7)])
def test_values_that_no_training_has_are_refused_by_name(tmp_path: Path, part: str, name: str,
                                                         value: Any) -> None:
    changed = METADATA | {part: METADATA[part] | {name: value}}  # type: ignore[operator]
    (tmp_path / "tunesmith.json").write_text(json.dumps(changed))
    with pytest.raises(IntegrityError, match=name):
        read_metadata(tmp_path)
