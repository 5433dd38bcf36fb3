"""Text of others' making in every place where it is shown: terminal, JSON, report, card."""

from __future__ import annotations

import ast
import io
import json
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from run_files import manifest, result

from tunesmith.cli.common import Terminal
from tunesmith.rundir import RunFolder
from tunesmith.share.card import Card, render_card
from tunesmith.share.markdown import code, literal, plain
from tunesmith.share.metadata import AdapterMetadata
from tunesmith.verbs.show import RunFacts
from tunesmith.visible import json_visible, on_one_line, visible

PARTS = ["\x1b[2J", "\x07", "\x9b31m", "\u202e", "\u2028", "\x00", "\ud800", "\n", "\n\n# forged",
         "<script>alert(1)</script>", "<b>",
         "```", "\n```\nimport os\n```python\n", "`", "``", "'", '"', '"""', "\\", "](http://x)", "![x](y)",
         "|", "&lt;", "{{", "}}", "--", "\r", "\t", "é", "名", "\u200b", "$x$", "~~~", "\n~~~\n", "{quote}",
         "a_b", "_x_", "*x*"]
HOSTILE = st.lists(st.sampled_from(PARTS) | st.text(max_size=5), max_size=6).map("".join)


def harmless(text: str, *, lines: bool = True) -> bool:
    return all(unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or (lines and char in "\n\t")
               for char in text)


@given(HOSTILE)
def test_nothing_that_acts_is_left(text: str) -> None:
    assert harmless(visible(text))
    assert harmless(on_one_line(text), lines=False)
    assert visible(visible(text)) == visible(text)
    if harmless(text):
        assert visible(text) == text


@given(st.dictionaries(HOSTILE, HOSTILE, max_size=3))
def test_json_is_the_same_json(value: dict[str, str]) -> None:
    shown = json_visible(json.dumps(value, ensure_ascii=False))
    assert json.loads(shown) == value
    assert harmless(shown)
    shown.encode()


@given(HOSTILE)
def test_a_literal_is_the_text(text: str) -> None:
    assert ast.literal_eval(literal(text)) == text
    assert "\n" not in literal(text)


@given(HOSTILE)
def test_the_terminal_shows_it_and_does_nothing(text: str) -> None:
    from rich.console import Console

    terminal, written = Terminal(quiet=False), io.StringIO()
    terminal._console = Console(file=written, highlight=False, soft_wrap=True)
    terminal.note(text)
    terminal.facts(RunFacts(base=text, base_parameters=1, quantization="none", kept={"float32": 1},
                            train_rows=1, validation_rows=1, rank=1, targets=(text,), trainable_parameters=1,
                            engine="hf", dtype="float32", matmul="exact", gpu=text, threads=1, steps=1,
                            batch_size=1))
    terminal.stage(text)
    assert harmless(written.getvalue())


@given(HOSTILE)
def test_markdown_only_shows_it(text: str) -> None:
    def kinds(source: str) -> list[str]:
        return [token.type for block in MarkdownIt().parse(source)
                for token in [block, *(block.children or [])]]

    for shown in (f"A {plain(text)}.", f"# A {plain(text)}"):
        assert set(kinds(shown)) <= {"paragraph_open", "paragraph_close", "heading_open", "heading_close",
                                     "inline", "text", "text_special"}
    assert [kind for kind in kinds(f"A {code(text)}.") if kind not in ("text", "text_special")] == [
        "paragraph_open", "inline", "code_inline", "paragraph_close"]


WORDS = st.fixed_dictionaries({}, optional={
    "base": HOSTILE.filter(bool), "revision": HOSTILE, "quantization": HOSTILE, "prompt": HOSTILE,
    "messages": st.booleans(), "trained": st.fixed_dictionaries({
        **dict.fromkeys(("steps", "trainable_parameters", "r", "batch_size", "warmup_steps", "seed"),
                        st.just(3)), "alpha": st.just(8.0),
        "dropout": st.just(0.0), "learning_rate": st.just(1e-3), "append_eos": st.booleans(),
        "dataset": HOSTILE, "loss_on": HOSTILE, "lr_scheduler": HOSTILE}),
    "judgement": st.fixed_dictionaries({"verdict": HOSTILE, "rows": st.just(8), "loss_base": st.floats(),
                                        "loss_tuned": st.just(1.0)},
                                       optional={"rows_better": HOSTILE, "interval": st.just((-1.0, 2.0))})})


@given(words=WORDS,
       files=st.sampled_from([frozenset(), frozenset({"generation_config.json", "tokenizer_config.json"})]))
def test_a_card_of_hostile_metadata_has_the_card_s_own_structure(words: dict[str, Any],
                                                                 files: frozenset[str]) -> None:
    try:
        metadata = AdapterMetadata.model_validate(words).model_dump(mode="json", exclude_unset=True)
    except ValueError:
        return
    card = render_card(Card({"base": "org/name", **metadata}, files=files))
    assert harmless(card)
    _, front, text = card.split("---\n", 2)
    import yaml

    assert set(yaml.safe_load(front)) <= {"library_name", "pipeline_tag", "tags", "base_model",
                                          "base_model_relation", "license", "datasets", "model-index"}
    tokens = MarkdownIt().enable("table").parse(text)
    inner = [token for block in tokens for token in [block, *(block.children or [])]]
    assert not [token for token in inner
                if token.type in ("html_block", "html_inline", "link_open", "image", "code_block")]
    assert [token.tag for token in inner if token.type == "heading_open"] == ["h1"]
    fences = [token for token in inner if token.type == "fence"]
    assert len(fences) == 1
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(fences[0].content))
             if isinstance(node, ast.Call)]
    assert set(calls) <= {"AutoModelForCausalLM.from_pretrained", "PeftModel.from_pretrained",
                          "AutoTokenizer.from_pretrained", "print", "tokenizer", "tokenizer.decode",
                          "tokenizer.apply_chat_template", "model.generate", "BitsAndBytesConfig",
                          "GenerationConfig.from_pretrained", "tunesmith.embedded.path_of",
                          f"{_asking_call(fences[0].content)}.to"}


def _asking_call(snippet: str) -> str:
    line = next(line for line in snippet.splitlines() if line.startswith("tokens = "))
    statement: Any = ast.parse(line.removeprefix("tokens = ")).body[0]
    return ast.unparse(statement.value.func.value)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, tuple(name for name, _ in attrs)))


def test_a_report_of_hostile_data_has_the_report_s_own_structure(tmp_path: Path) -> None:
    from tunesmith.judge.report import write_report
    from tunesmith.judge.verdict import Judgement, Sample

    def page(text: str) -> str:
        run = RunFolder(tmp_path / "run")
        run.path.mkdir(exist_ok=True)
        whole = manifest()
        name = text.encode(errors="replace").decode()  # nothing that is no Unicode comes into a manifest
        told = manifest(base=whole.base.model_copy(update={"name": name}),
                        data=whole.data.model_copy(update={"source": name}), quantization=name, started=name,
                        engine_reason=name, machine=name, versions={name: name})
        sample = Sample(text, text, text, text, True, False)
        judgement = Judgement(loss_base=2.0, loss_tuned=1.0, interval=(-1.5, -0.5), verdict="helps", rows=9,
                              rows_better=8, tokens=90, stop_rate_base=0.0, stop_rate_tuned=1.0, stop_rows=5,
                              max_new_tokens=4, right_base=0, right_tuned=5, smallest_change=0.0,
                              fewest_rows=5, list_f1_base=None, list_f1_tuned=None, samples=[sample])
        write_report(run, manifest=told, result=result(engine=name), judgement=judgement, recipe_text=text)
        return run.report.read_text(encoding="utf-8")

    def tags(text: str) -> list[tuple[str, tuple[str, ...]]]:
        parser = Tags()
        parser.feed(page(text))
        return parser.seen

    plain_tags = tags("x")
    hostile = page("".join(PARTS).replace("\ud800", ""))
    assert harmless(hostile)
    assert "<script" not in hostile
    for text in ("".join(PARTS), '" onload="x', "</pre><script>", "\ud800\x1b[0m", "]]>", "--></style>"):
        assert tags(text) == plain_tags, text


@pytest.mark.parametrize("text", ["\x1b]0;forged\x07", "a\nb"])
def test_names_in_errors_stay_on_their_line(text: str, tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from tunesmith.cli.main import app

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({text: "x", "answer": "y"}) + "\n"
                                                 for _ in range(9)))
    (tmp_path / "recipe.yaml").write_text(f"model: {{base: 'embedded:sprout'}}\ndata: {{source: "
                                          f"{tmp_path}/rows.jsonl, prompt: '{{q}}', "
                                          "completion: '{answer}'}\n")
    done = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")])
    assert done.exit_code == 4
    assert "\x1b" not in done.output
    assert on_one_line(text) in done.output
