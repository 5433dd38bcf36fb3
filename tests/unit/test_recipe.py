from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from conftest import ROOT
from tunesmith.errors import RecipeError
from tunesmith.recipe import (
    Recipe,
    differences,
    dump,
    load_recipe,
    parse_recipe,
    preset_names,
    preset_text,
    render_commented,
)
from tunesmith.recipe.load import write_yaml

SMALL = "model: {base: a}\ndata: {source: b, completion: '{c}'}\n"


def problem(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, name="my.yaml", overrides=overrides)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_defaults_are_the_notebook_s_run() -> None:
    recipe = parse_recipe(SMALL)
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout) == (16, 32, 0.05)
    assert (recipe.train.max_steps, recipe.train.batch_size, recipe.train.learning_rate) == (200, 16, 2e-4)
    assert recipe.model.quantization == "int8"


def test_every_setting_is_documented() -> None:
    for section, field in Recipe.model_fields.items():
        kind = field.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        for name, setting in kind.model_fields.items():
            assert setting.description, f"{section}.{name}"


@pytest.mark.parametrize(("text", "said"), [
    (SMALL + "train: {learning_rat: 1}",
     "my.yaml, line 3: train.learning_rat: no such setting. Did you mean learning_rate?"),
    (SMALL + "trian: {seed: 1}", "trian: no such setting. Did you mean train?"),
    (SMALL + "train:\n  r: 8", "Did you mean lora.r?"),
    (SMALL + "train: {learning_rate: .nan}", "train.learning_rate"),
    (SMALL + "train: {learning_rate: .inf}", "train.learning_rate"),
    (SMALL + "train: {learning_rate: fast}", "train.learning_rate: 'fast' does not fit"),
    (SMALL + "train: {batch_size: 1.5}", "train.batch_size"),
    (SMALL + "train: {batch_size: true}", "train.batch_size"),
    (SMALL + "train: {batch_size: '16'}", "train.batch_size"),
    (SMALL + "train: {max_steps: 1, num_epochs: 1}", "not both"),
    (SMALL + "lora: {r: 0}", "greater than or equal to 1"),
    (SMALL + "lora: {dropout: 1.0}", "lora.dropout"),
    (SMALL + "lora: {target_modules: []}", "target_modules"),
    (SMALL + "share: {repo: nothing}", "user/name"),
    ("model: {base: a, dtype: fp16}\ndata: {source: b, completion: c}", "'fp16' does not fit"),
    ("model: {base: a, device: tpu}\ndata: {source: b, completion: c}", "model.device"),
    ("model: {base: a}\ndata: {source: b}", "give one of `completion`"),
    ("model: {base: a}\ndata: {source: b, messages: m, prompt: p}", "messages"),
    ("model: {base: a}\ndata: {source: b, completion: c, validation: -1}", "validation"),
    ("model: {base: a}\ndata: {source: b, completion: c, validation: .nan}", "validation"),
    ("model: {base: a}\ndata: {source: b, completion: c, validation: true}", "validation"),
    ("model: {base: a}\nmodel: {base: b}", "set twice"),
    ("model: !!python/object/apply:os.system ['true']", "tag"),
    ("model: !mine {base: a}", "tag"),
    (SMALL + "train: {learning_rate: !!float 1:30}", "float is not allowed"),
    (SMALL + "train: {seed: !!int x}", "2002:int is not allowed"),
    (SMALL + "train: {learning_rate: !!timestamp x}", "timestamp is not allowed"),
    ("model: {base: a", "line"),
    ("model: &a [*a]", "my.yaml"),
    ("? {a: b}\n: c", "plain text"),
    ("model: {1: a}", "plain text"),
    ("model: {<<: {base: a}}", "plain text"),
    (SMALL + "train: {max_steps: " + "9" * 5000 + "}", "a number of thousands of digits"),
    (SMALL + "train: {micro_batch_size: [1]}", "it should be 'auto' or a valid integer"),
    ("[1, 2]", "sections"),
    ("", "sections"),
    ("model: 5", "a section of settings"),
])
def test_wrong_recipes_say_where_and_what(text: str, said: str) -> None:
    assert said in problem(text)


def test_all_problems_at_once() -> None:
    said = problem(SMALL + "train: {learning_rat: 1, batch_size: 0}\nlora: {r: -1}")
    assert said.count("my.yaml, line") == 3


def test_numbers_as_people_write_them() -> None:
    recipe = parse_recipe(SMALL + "train: {learning_rate: 2e-4}\nshare: {message: 2024-01-01}")
    assert recipe.train.learning_rate == 2e-4
    assert recipe.share.message == "2024-01-01"
    assert parse_recipe(SMALL.replace("source: b", "source: b, split: no")).data.split == "no"


def test_set_overrides_and_names_itself_in_errors() -> None:
    recipe = parse_recipe(SMALL,
                          overrides=["train.learning_rate=1e-3", "data.validation=0.1", "share.repo=me/it"])
    assert (recipe.train.learning_rate, recipe.data.validation, recipe.share.repo) == (1e-3, 0.1, "me/it")
    assert problem(SMALL, "train.seed=x").startswith("--set train.seed=x: train.seed")
    for text in ("{tags}", "Q: {question}\nA: ", "{quote} ->: ", "{question}: ", "", "# no comment", "[{a}",
                 "a: b: c"):
        assert parse_recipe(SMALL, overrides=[f"data.prompt={text}"]).data.prompt == text
    assert parse_recipe(SMALL, overrides=["train.num_epochs=2", "train.max_steps=null"]).train.num_epochs == 2
    assert "section.key=value" in problem(SMALL, "seed=1")
    assert "section.key=value" in problem(SMALL, "train.seed")


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_are_copied_at_the_top_and_render(name: str) -> None:
    text = preset_text(name)
    assert (ROOT / "recipes" / f"{name}.yaml").read_text() == text
    recipe = parse_recipe(text)
    rendered = render_commented(recipe, "header")
    assert parse_recipe(rendered) == recipe
    settings = [line for line in rendered.splitlines() if line.startswith("  ")]
    assert settings
    assert all("# " in line for line in settings)


def test_notebook_recipe_is_the_notebook_to_the_letter() -> None:
    recipe = parse_recipe(preset_text("bloom-7b1-quotes-notebook"))
    assert not recipe.data.append_eos
    assert (recipe.data.loss_on, recipe.data.overlong, recipe.data.validation) == ("all", "error", 0)
    assert recipe.train.micro_batch_size == 4
    assert recipe.train.gradient_checkpointing is True


def test_unknown_preset() -> None:
    with pytest.raises(RecipeError, match="demo"):
        preset_text("nothing")


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@given(base=texts, template=texts, rate=st.floats(1e-9, 10),
       validation=st.one_of(st.floats(0, 0.99), st.integers(0, 9), texts), steps=st.integers(1, 10**6),
       targets=st.one_of(st.just("auto"), st.lists(texts, min_size=1, max_size=3)))
def test_what_is_dumped_or_rendered_is_read_back(base: str, template: str, rate: float, validation: object,
                                                 steps: int, targets: object) -> None:
    recipe = parse_recipe(write_yaml({
        "model": {"base": base}, "data": {"source": "s", "completion": template, "validation": validation},
        "train": {"learning_rate": rate, "max_steps": steps}, "lora": {"target_modules": targets}}))
    assert parse_recipe(dump(recipe)) == recipe
    assert parse_recipe(render_commented(recipe)) == recipe
    assert differences(recipe, recipe) == []


@pytest.mark.parametrize("text", ["; \xa0", ":\xa0", " a ", "null", "no", "1", "#", "0E0", "1e5", ".5",
                                  "a: b", "“x” ->: ", "\u3000", "y\u2028z", "[a", "'", '"'])
def test_awkward_texts_are_rendered_as_themselves(text: str) -> None:
    recipe = parse_recipe(write_yaml({"model": {"base": "a"}, "data": {"source": "s", "completion": text}}))
    assert parse_recipe(render_commented(recipe)).data.completion == text


def test_differences_name_what_changes_the_experiment() -> None:
    then = parse_recipe(SMALL)
    assert differences(then, parse_recipe(SMALL, overrides=["train.learning_rate=1e-3"])) == [
        "train.learning_rate: the run has 0.0002, the recipe says 0.001"]
    assert differences(then, parse_recipe(SMALL, overrides=["train.save_steps=7", "judge.samples=1",
                                                            "share.repo=a/b"])) == []


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="a folder"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model:\n  base: caf\xe9\n")
    with pytest.raises(RecipeError, match="line 2: not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_local_paths_become_absolute_from_here_or_from_the_recipe(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "rows.jsonl").write_text("{}")
    (tmp_path / "there" / "r.yaml").write_text(SMALL.replace("source: b", "source: rows.jsonl"))
    monkeypatch.chdir(tmp_path)
    assert load_recipe("there/r.yaml").data.source == str(tmp_path / "there" / "rows.jsonl")
    assert load_recipe("there/r.yaml").model.base == "a"


def test_settings_that_are_mappings_are_set_as_such() -> None:
    sets = ["data.template_kwargs={enable_thinking: false}", "data.completion=null", "data.prompt=",
            'data.chat={user: "{q}", assistant: "{a}"}']
    recipe = parse_recipe(SMALL, overrides=sets)
    assert recipe.data.template_kwargs == {"enable_thinking": False}
    assert recipe.data.chat is not None
    assert recipe.data.chat.user == "{q}"
    assert parse_recipe(SMALL, overrides=["data.completion={tags}"]).data.completion == "{tags}"
    with pytest.raises(RecipeError,
                       match=r"data.chat.asistant: no such setting. Known here: system, user and"):
        parse_recipe(SMALL, overrides=[*sets[1:3], 'data.chat={user: "{q}", asistant: "{a}"}'])
