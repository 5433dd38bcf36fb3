"""What never ends, or fills the memory: chat templates, data, recipes. Bounded, and named."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import embedded
from tunesmith.data.chat.render import TemplateRefused, TemplateRenderer, TemplateUnbounded
from tunesmith.data.examples import Form, make_examples
from tunesmith.data.sources.files import read_files
from tunesmith.errors import DataError, RecipeError, TunesmithError
from tunesmith.recipe import dump, parse_recipe

CHAT = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}")
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def tokenizer(template: str = CHAT) -> Any:
    from transformers import PreTrainedTokenizerFast

    found = PreTrainedTokenizerFast.from_pretrained(embedded.path_of(embedded.BASE_NAME))
    found.chat_template = template
    return found


@pytest.fixture(scope="module")
def renderer() -> TemplateRenderer:
    """One process for the whole module; each test hangs its own template on it."""
    return TemplateRenderer(tokenizer())


def render(renderer: TemplateRenderer, template: str, messages: Any = TURNS, prompt: bool = False) -> str:
    renderer._tokenizer.chat_template = template
    return renderer.render(messages, generation_prompt=prompt)


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=4),
       prompt=st.booleans())
def test_it_renders_what_transformers_renders(renderer: TemplateRenderer, texts: list[str],
                                              prompt: bool) -> None:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": text}
                for i, text in enumerate(texts)]
    want = tokenizer_with(renderer).apply_chat_template(messages, tokenize=False,
                                                        add_generation_prompt=prompt)
    assert render(renderer, CHAT, messages, prompt) == want


def tokenizer_with(renderer: TemplateRenderer) -> Any:
    renderer._tokenizer.chat_template = CHAT
    return renderer._tokenizer


NEVER = {
    "one loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor "
                "%}{% endfor %}{% endfor %}",
    "a product": "{{ 'x' * 1000000000000 }}",
    "doubling": "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% "
                "endfor %}{{ ns.x }}",
    "a format": "{{ '%1000000000000d' % 1 }}",
    "a filter": "{{ 'x' | center(1000000000000) }}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "a power": "{{ (9 ** (9 ** 9)) | string | length }}",
    "a list": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor "
              "%}",
    "a long text": "{% for i in range(99999) %}{{ '" + "x" * 2000 + "' }}{% endfor %}",
}


@pytest.mark.parametrize("name", NEVER)
def test_a_template_that_never_ends_is_stopped(renderer: TemplateRenderer, name: str,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.chat.render._LONGEST_S", 1.5)
    began = time.monotonic()
    with pytest.raises((TemplateUnbounded, TemplateRefused)):
        render(renderer, NEVER[name])
    assert time.monotonic() - began < 60
    assert render(renderer, CHAT) == "<user>a</s><assistant>b</s>".replace(
        "</s>", renderer._tokenizer.eos_token
    ), "the next one is served"


def test_a_template_s_own_refusal_and_a_signal(renderer: TemplateRenderer) -> None:
    import signal

    with pytest.raises(TemplateRefused, match="no system turns"):
        render(renderer, "{{ raise_exception('no system turns') }}")

    class Stop(Exception):
        pass

    def stop(number: int, frame: Any) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(Stop):  # not "the template refuses"
            render(renderer, NEVER["one loop"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert render(renderer, CHAT)


def test_a_row_s_template_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.data.rows import Row
    from tunesmith.data.tokenize import Encoder, Rules

    monkeypatch.setattr("tunesmith.data.chat.render._LONGEST_S", 1.0)
    row = Row({"m": [dict(turn) for turn in TURNS]}, "chats.jsonl, line 7")
    examples = make_examples([row], Form(messages="m"))
    encoder = Encoder(tokenizer("{{ 'x' * 1000000000000 }}"), Rules("completion", True, 64, "error"))
    with pytest.raises(DataError, match="line 7: the chat template"):
        encoder.encode(examples[0])


# --- rows ---


def test_a_parquet_of_one_value_a_thousand_times(tmp_path: Path) -> None:
    value = "x" * (1 << 20)
    table = pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3000), [value])})
    pyarrow.parquet.write_table(table, tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1 << 20
    with pytest.raises(DataError, match="bomb.parquet: its .* bytes become more than"):
        read_files([tmp_path / "bomb.parquet"])
    honest = pyarrow.table({"text": ["a", "b", "a"], "n": [1, 2, 3], "l": [["x"], [], None]})
    pyarrow.parquet.write_table(honest, tmp_path / "honest.parquet")
    assert [row.values for row in read_files([tmp_path / "honest.parquet"])] == honest.to_pylist()


@pytest.mark.parametrize("column", [
    pyarrow.array([0, 253402300800000], pyarrow.timestamp("ms")), pyarrow.array([0, 10**7], pyarrow.date32()),
    pyarrow.array([0, 2**62], pyarrow.duration("s"))], ids=lambda column: str(column.type))
def test_dates_that_python_has_not(tmp_path: Path, column: Any) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"a": ["x", "y"], "when": column}), tmp_path / "dates.parquet")
    with pytest.raises(DataError, match="dates.parquet, row 2: the column 'when'"):
        read_files([tmp_path / "dates.parquet"])


@pytest.mark.parametrize(("name", "text", "says"), [
    ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1: broken JSON"),
    ("a.jsonl", "[" * 10**5, "line 1: broken JSON: nested too deep"),
    ("a.json", '[{"a": ' + "9" * 5000 + "}]", "broken JSON"), ("a.json", "[" * 10**5, "nested too deep"),
    ("a.jsonl", '{"a": 1, "a": 2}', "'a' stands twice"),
    ("a.json", '[{"a": {"b": 1, "b": 2}}]', "'b' stands twice"),
    ("a.csv", "x,y,x\n1,2,3\n", "'x' stands in places 1, 3"),
    ("a.csv", "x,\x1b[0m,\x1b[0m\n1,2,3\n", r"stands in places 2, 3"), ("a.jsonl", "\xff", "not UTF-8")],
                         ids=lambda value: str(value)[:20])
def test_rows_that_cannot_be_read_are_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=says) as caught:
        read_files([tmp_path / name])
    assert name in caught.value.message
    assert len(caught.value.message) < len(str(tmp_path)) + 300


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_none_is_no_text(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"q": {value}, "a": "x"}}\n')
    rows = read_files([tmp_path / "a.jsonl"])
    make_examples(rows, Form("", "{a}"))
    with pytest.raises(DataError, match='line 1: the column "q" is'):
        make_examples(rows, Form("{q}", "{a}"))


@given(st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.parquet"]), st.binary(max_size=60) | st.text(
    st.sampled_from(list('{}[],:"\\0123456789.eE-+nulltruefas\n\r\x00ab ')), max_size=40).map(str.encode))
def test_any_bytes_are_rows_or_are_refused(tmp_path_factory: pytest.TempPathFactory, name: str,
                                           content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        make_examples(read_files([path]), Form("{a}", "{b}"))
    except TunesmithError as error:
        assert error.exit_code == 4


# --- recipes ---

SMALL = 'model: {base: "embedded:sprout"}\ndata: {source: "embedded:quotes", completion: "{tags}"}\n'


def test_aliases_are_refused_before_they_are_written_out() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True))
    began = time.monotonic()
    for text in (bomb, SMALL + "train: &t {seed: 1}\nlora: *t\n", "a: &a [*a]\n"):
        with pytest.raises(RecipeError, match=r"line \d+: the alias \*"):
            parse_recipe(text)
    with pytest.raises(RecipeError, match="never is"):
        parse_recipe("# " + "x" * (2 << 20))
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("written", "value"),
                         [("010", 10), ("+7", 7), ("0o10", 8), ("0x1F", 31), ("0", 0), ("00", 0)])
def test_integers_are_yaml_1_2(written: str, value: int) -> None:
    assert parse_recipe(SMALL + f"train: {{seed: {written}}}\n").train.seed == value
    assert parse_recipe(SMALL, overrides=[f"train.seed={written}"]).train.seed == value


@pytest.mark.parametrize("written", ["1:30", "1_000", "0b11", "9" * 5000, "yes", "1e3"])
def test_what_is_no_integer_is_refused(written: str) -> None:
    with pytest.raises(RecipeError, match=r"train\.seed|YAML"):
        parse_recipe(SMALL + f"train: {{seed: {written}}}\n")


@given(st.integers(0, 2**62))
def test_what_is_dumped_is_read_back(seed: int) -> None:
    recipe = parse_recipe(SMALL, overrides=[f"train.seed={seed}", f"data.prompt='0{seed}'"])
    assert parse_recipe(dump(recipe)) == recipe


def test_the_defaults_are_what_is_recommended() -> None:
    recipe = parse_recipe(SMALL)
    assert (recipe.data.loss_on, recipe.data.overlong, recipe.data.append_eos) == ("completion", "drop", True)
    old = dump(recipe).replace("loss_on: completion",
                               "loss_on: all").replace("overlong: drop", "overlong: error")
    assert parse_recipe(old).data.loss_on == "all", "a run's own recipe has every setting written out"


@pytest.mark.parametrize(("lines", "says"), [
    ("train: {lr: 1e-4}", r"Did you mean train\.learning_rate"), ("train: {lora_r: 8}", r"lora\.r\b"),
    ("lora: {rank: 8}", r"lora\.r\b"), ("train: {epochs: 3}", r"train\.num_epochs"),
    ("train: {learning_rat: 1e-4}", "learning_rate"),
    ('model: {base: "embedded:sprout", load_in_8bit: true}', "model.quantization: int8"),
    ('model: {base: "embedded:sprout", device: mps}', "Apple GPUs .* not supported"),
    ('model: {base: "embedded:sprout", device: gpu0}', "none of auto, cpu, cuda and cuda:N")])
def test_what_was_meant_is_suggested(lines: str, says: str) -> None:
    text = lines + "\n" + (SMALL if not lines.startswith("model") else SMALL.split("\n", 1)[1])
    with pytest.raises(RecipeError, match=says) as caught:
        parse_recipe(text)
    assert "^(" not in caught.value.message


def test_a_misspelt_file_is_suggested(tmp_path: Path) -> None:
    from tunesmith.data.sources import local_files
    from tunesmith.recipe import load_recipe

    (tmp_path / "tickets.jsonl").write_text(json.dumps({"when": str(datetime.date(2026, 1, 1))}))
    (tmp_path / "recipe.yaml").write_text(SMALL)
    with pytest.raises(DataError, match="no such file") as caught:
        local_files(str(tmp_path / "tikets.jsonl"))
    assert "Did you mean" in caught.value.hint
    assert "tickets.jsonl" in caught.value.hint
    with pytest.raises(RecipeError) as wrong:
        load_recipe(tmp_path / "recipy.yaml")
    assert "recipe.yaml?" in wrong.value.hint


def test_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["one"]), pyarrow.array(["two"])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="'a' stands in places 1, 2"):
        read_files([tmp_path / "twice.parquet"])


@pytest.mark.parametrize("value", ["!!bool maybe", "!!timestamp foo", '!!float ""', "!!int x"])
def test_tags_whose_values_are_none_are_refused(value: str) -> None:
    with pytest.raises(RecipeError):
        parse_recipe(SMALL + f"train: {{seed: {value}}}\n")
    with pytest.raises(RecipeError):
        parse_recipe(SMALL, overrides=[f"train.seed={value}"])


def test_a_section_of_comments_alone_is_empty() -> None:
    assert parse_recipe(SMALL + "train:\n  # seed: 3\n") == parse_recipe(SMALL)


def test_a_long_csv_field_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n" + "a" * 200_000 + ",b\n")
    assert len(read_files([tmp_path / "a.csv"])[0].values["x"]) == 200_000
