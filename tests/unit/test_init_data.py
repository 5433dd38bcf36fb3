from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from conftest import tunesmith as command
from tunesmith.data.columns import Holds, columns_of_rows
from tunesmith.data.dataset import read_text
from tunesmith.data.examples import ExampleMaker
from tunesmith.data.rows import Row
from tunesmith.data.sets import form_of
from tunesmith.data.shapes import Shape, recognise
from tunesmith.embedded import path_of
from tunesmith.errors import DataError, RecipeError, UsageError
from tunesmith.recipe import Recipe, load_recipe, preset_text
from tunesmith.verbs.fit import train_settings

TEMPLATE = ("{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
WORDS = "lantern harbor clay thimble orchard brass meadow kettle violin ladder".split()


def shape_of(*values: dict[str, Any]) -> Shape:
    rows = [Row(each, f"rows.jsonl, line {n}") for n, each in enumerate(values, start=1)]
    return recognise(rows, "rows.jsonl")


def parts_of(shape: Shape) -> dict[str, str]:
    return {part: column.name for part, column in shape.parts.items()}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def sentence(seed: int, words: int = 6) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def sprout_with(folder: Path, file: str, **changes: Any) -> str:
    """A copy of the embedded base, with other values in one of its files."""
    embedded = path_of("embedded:sprout")
    assert embedded
    shutil.copytree(embedded, folder)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


@pytest.fixture(scope="session")
def chat_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded base with a chat template."""
    folder = tmp_path_factory.mktemp("bases") / "sprout-chat"
    return sprout_with(folder, "tokenizer_config.json", chat_template=TEMPLATE)


MESSAGES = chat("Say 1.", "It is 1.")
SHAREGPT = [{"from": "human", "value": "Say 1."}, {"from": "gpt", "value": "It is 1."}]


@pytest.mark.parametrize("value", [
    MESSAGES, SHAREGPT, json.dumps(MESSAGES),
    {"role": ["user", "assistant"], "content": ["Say 1.", "It is 1."]}])
@pytest.mark.parametrize("column", ["messages", "conversations", "anything"])
def test_conversations_are_known_by_what_they_hold(value: Any, column: str) -> None:
    shape = shape_of({"id": 1, column: value}, {"id": 2, column: value})
    assert shape.name == "conversations"
    assert parts_of(shape) == {"messages": column}
    assert shape.unused == ("id",)
    assert not shape.notes


def test_a_list_or_text_that_is_no_conversation_is_not_taken_for_one() -> None:
    for value in ([{"a": 1}], ["x"], "[1, 2]", "[", {"a": "user"}, []):
        assert columns_of_rows([Row({"c": value}, "here")])[0].holds is not Holds.MESSAGES, value


def test_tools_belong_to_a_conversation() -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    shape = shape_of({"messages": MESSAGES, "tools": [tool]})
    assert parts_of(shape) == {"messages": "messages", "tools": "tools"}


def test_messages_in_two_columns_are_prompt_and_answer() -> None:
    shape = shape_of({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]})
    assert shape.name == "conversations in two columns"
    assert parts_of(shape) == {"prompt": "prompt", "completion": "completion"}


def test_rows_in_which_nobody_answers_are_told() -> None:
    shape = shape_of({"messages": MESSAGES}, {"messages": MESSAGES[:1]}, {"messages": None})
    assert [note for note in shape.notes if "says nothing" in note and "line 2" in note]
    assert [note for note in shape.notes if "have nothing in messages" in note and "line 3" in note]


@pytest.mark.parametrize(("row", "name", "parts"), [
    ({"instruction": "Say", "input": "1", "output": "2"}, "instructions",
     {"prompt": "instruction", "input": "input", "completion": "output"}),
    ({"Instruction": "Say", "Response": "2", "category": "x"}, "instructions",
     {"prompt": "Instruction", "completion": "Response"}),
    ({"instruction": "Say", "context": "1", "response": "2", "category": "qa"}, "instructions",
     {"prompt": "instruction", "input": "context", "completion": "response"}),
    ({"system": "Be brief.", "instruction": "Say", "input": "", "output": "2"}, "instructions",
     {"system": "system", "prompt": "instruction", "completion": "output"}),
    ({"prompt": "Say", "completion": "2"}, "prompts and completions",
     {"prompt": "prompt", "completion": "completion"}),
    ({"input": "Say", "output": {"a": None}}, "prompts and completions",
     {"prompt": "input", "completion": "output"}),
    ({"id": "7", "question": "Why?", "answer": 42}, "questions and answers",
     {"prompt": "question", "completion": "answer"}),
    ({"context": "Once.", "question": "Why?", "answer": "So."}, "questions and answers",
     {"input": "context", "prompt": "question", "completion": "answer"}),
    ({"article": "Long.", "highlights": "Short."}, "documents and summaries",
     {"prompt": "article", "completion": "highlights"}),
    ({"text": "Long.", "summary": "Short."}, "documents and summaries",
     {"prompt": "text", "completion": "summary"}),
    ({"quote": "Be kind to all.", "author": "Me", "tags": ["kind", "all"]}, "texts with a list",
     {"prompt": "quote", "completion": "tags"}),
    ({"text": "Once upon a time."}, "texts", {"completion": "text"}),
    ({"poem": "Once upon a time."}, "texts", {"completion": "poem"}),
    ({"title": "Time", "text": "Once upon a time.", "url": "x"}, "texts", {"completion": "text"}),
])
def test_rows_of_texts(row: dict[str, Any], name: str, parts: dict[str, str]) -> None:
    shape = shape_of(*[row | {key: f"{value} {n}" for key, value in row.items()
                              if isinstance(value, str) and value and key != "category"} for n in range(3)])
    assert (shape.name, parts_of(shape)) == (name, parts)
    assert set(shape.unused) == {key for key, value in row.items() if key not in parts.values() and value}


@pytest.mark.parametrize("names", [("text", "label"), ("Ticket", "Category"), ("said", "who")])
def test_a_text_with_a_label(names: tuple[str, str]) -> None:
    text, label = names
    rows = [{"id": n, text: f"{sentence(n)} {n}", label: ["billing", "shipping", "other"][n % 3]}
            for n in range(30)]
    shape = shape_of(*rows)
    assert shape.name == "texts with a label"
    assert parts_of(shape) == {"prompt": text, "completion": label}
    assert sorted(shape.labels) == ["billing", "other", "shipping"]
    assert shape.unused == ("id",)


def test_labels_that_are_numbers_are_told() -> None:
    shape = shape_of(*[{"sentence": f"{sentence(n)} {n}", "label": n % 2} for n in range(30)])
    assert shape.labels == ("0", "1")
    assert "numbers" in shape.notes[0]


def test_a_label_in_words_is_taken_before_its_number() -> None:
    rows = [{"text": f"{sentence(n)} {n}", "label": n % 3, "label_text": f"intent {n % 3}"}
            for n in range(30)]
    shape = shape_of(*rows)
    assert parts_of(shape)["completion"] == "label_text"
    assert shape.unused == ("label",)
    assert not shape.notes


@pytest.mark.parametrize(("first", "second"), [("premise", "hypothesis"), ("Subject", "Body")])
def test_two_texts_with_a_label_are_both_taken(first: str, second: str) -> None:
    rows = [{first: sentence(n), second: f"{sentence(-n)} {n}", "label": ["yes", "no"][n % 2]}
            for n in range(30)]
    assert parts_of(shape_of(*rows)) == {"input": first, "prompt": second, "completion": "label"}


def test_objects_as_answers_are_told_with_their_keys() -> None:
    shape = shape_of(*[{"question": f"Why {n}?", "answers": {"text": ["So."], "start": [n]}}
                       for n in range(3)])
    assert "objects of text, start" in shape.notes[0]
    assert "{answers.text}" in shape.notes[0]


def test_tools_beside_texts_are_told() -> None:
    shape = shape_of(*[{"query": f"Add {n}.", "answers": "[]", "tools": '[{"name": "add"}]'}
                       for n in range(3)])
    assert "tools is not used" in shape.notes[0]


def test_two_columns_with_few_values_and_no_telling_name_are_not_guessed_at() -> None:
    with pytest.raises(DataError) as raised:
        shape_of(*[{"said": f"{sentence(n)} {n}", "who": "ab"[n % 2], "where": "cd"[n % 2]}
                   for n in range(30)])
    for column in ("said (text of", "who (text of", "2 different"):
        assert column in raised.value.message


def test_preference_data_is_named_and_the_chosen_side_taken() -> None:
    shape = shape_of({"chosen": MESSAGES, "rejected": chat("Say 1.", "No.")})
    assert (shape.name, parts_of(shape)) == ("preferences", {"messages": "chosen"})
    assert "DPO" in shape.notes[0]
    assert "rejected is not used" in shape.notes[0]
    assert parts_of(shape_of({"prompt": "Say 1.", "chosen": "It is 1.", "rejected": "No."})) == {
        "prompt": "prompt", "completion": "chosen"}
    answers = {"chosen": MESSAGES[1:], "rejected": chat("x", "No.")[1:]}
    assert parts_of(shape_of({"prompt": MESSAGES[:1], **answers})) == {
        "prompt": "prompt", "completion": "chosen"}
    with pytest.raises(DataError, match="preference data"):
        shape_of({"chosen": "Human: Say 1. Assistant: 1", "rejected": "Human: Say 1. Assistant: No"})


def test_true_or_false_beside_a_completion_is_told() -> None:
    shape = shape_of(*[{"prompt": f"Say {n}.", "completion": f"It is {n}.", "label": n % 2 == 0}
                       for n in range(4)])
    assert "KTO" in shape.notes[0]


def test_what_is_of_no_known_shape_names_its_columns_and_the_way_by_hand() -> None:
    with pytest.raises(DataError) as raised:
        shape_of({"german": "Guten Tag", "english": "Good day", "n": 1},
                 {"german": "Ja", "english": "Yes", "n": 2})
    assert raised.value.exit_code == 4
    for said in ("german (text", "english (text", "n (numbers, all different)"):
        assert said in raised.value.message
    assert 'data.prompt: "{german}"' in raised.value.hint
    assert 'data.completion: "{english}"' in raised.value.hint
    with pytest.raises(DataError, match="translation .objects of en, fr") as raised:
        shape_of({"translation": {"en": "Yes", "fr": "Oui"}}, {"translation": {"en": "No", "fr": "Non"}})
    assert 'data.prompt: "{translation.en}" and data.completion: "{translation.fr}"' in raised.value.hint


def init(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[dict[str, Any], Recipe]:
    options.setdefault("base", "embedded:sprout")
    result = tunesmith.init(tmp_path / "my.yaml", data=write_rows(tmp_path / "rows.jsonl", rows), **options)
    return result, load_recipe(tmp_path / "my.yaml")


def test_the_recipe_for_questions_and_answers(tmp_path: Path) -> None:
    rows = [{"question": f"{sentence(n)} {n}?", "answer": sentence(-n)} for n in range(300)]
    result, recipe = init(tmp_path, rows)
    assert (recipe.data.prompt, recipe.data.completion) == ("Question: {question}\nAnswer:", " {answer}")
    assert result["rows"] == 300
    assert result["rows_counted"]
    assert result["held_out"] == recipe.data.validation == 32
    assert result["lengths"]["measured"]
    assert result["lengths"]["longest"] <= recipe.data.max_length < result["lengths"]["longest"] + 64
    assert recipe.train.num_epochs == result["epochs"]
    text = (tmp_path / "my.yaml").read_text().replace("\n# ", " ")
    assert text.startswith("# Made for")
    assert "taken for questions and answers, because question and answer, by their names" in text


def test_the_longest_row_counts_wherever_it_is(tmp_path: Path) -> None:
    rows = [{"question": f"Why {n}?", "answer": sentence(n)} for n in range(1500)]
    rows[1400]["answer"] = sentence(0, 200)
    result, recipe = init(tmp_path, rows)
    assert result["rows"] == 1500
    assert result["lengths"]["longest"] > 5 * result["lengths"]["half"]
    assert recipe.data.max_length >= result["lengths"]["longest"]


def test_rows_beyond_the_base_s_positions_are_told(tmp_path: Path) -> None:
    base = sprout_with(tmp_path / "base", "config.json", max_position_embeddings=64)
    rows = [{"question": f"Why {n}?", "answer": sentence(n)} for n in range(50)]
    rows[10]["answer"] = sentence(0, 300)
    result, recipe = init(tmp_path, rows, base=base)
    assert (recipe.data.max_length, recipe.data.overlong) == (64, "drop")
    assert any(note.startswith("1 of the rows") and "will be dropped" in note for note in result["notes"])


def test_long_texts_are_cut_into_windows(tmp_path: Path) -> None:
    base = sprout_with(tmp_path / "base", "config.json", max_position_embeddings=64)
    result, recipe = init(tmp_path, [{"text": sentence(n, 100)} for n in range(50)], base=base)
    assert (recipe.data.max_length, recipe.data.overlong) == (64, "split")
    assert any("50 of the rows" in note and "split into windows" in note for note in result["notes"])


def test_without_a_base_lengths_are_estimated_and_that_is_said(tmp_path: Path) -> None:
    rows = [{"question": f"Why {n}?", "answer": sentence(n)} for n in range(40)]
    result, recipe = init(tmp_path, rows, base=None)
    assert recipe.model.base == "Qwen/Qwen2.5-1.5B-Instruct"
    assert not result["lengths"]["measured"]
    assert "No base was named" in result["notes"][-1]
    assert "estimated" in (tmp_path / "my.yaml").read_text()


@pytest.mark.parametrize(("rows", "held_out"), [
    (4, 0), (9, 0), (10, 5), (30, 6), (100, 20), (1000, 50), (7000, 256)])
def test_enough_is_held_out_for_a_verdict(tmp_path: Path, rows: int, held_out: int) -> None:
    result, recipe = init(tmp_path, [{"text": f"{sentence(n, 2)} {n}"} for n in range(rows)])
    assert recipe.data.validation == result["held_out"] == held_out
    assert (held_out == 0) == any("too few to hold any out" in note for note in result["notes"])


def test_rows_that_are_repeated_are_not_counted_twice(tmp_path: Path) -> None:
    result, recipe = init(tmp_path, [{"text": "the same"}] * 100 + [{"text": f"other {n}"} for n in range(5)])
    assert recipe.data.validation == 0
    assert any(note.startswith("6 different rows") for note in result["notes"])


def write_splits(folder: Path, **sizes: int) -> str:
    for split, rows in sizes.items():
        folder.mkdir(exist_ok=True)
        write_rows(folder / f"{split}.jsonl",
                   [{"question": f"Why {split} {n}?", "answer": sentence(n)} for n in range(rows)])
    return str(folder)


@pytest.mark.parametrize(("sizes", "validation", "held_out"), [
    ({"train": 40, "valid": 8, "test": 9}, "split:validation", 8),
    ({"train": 40, "validation": 600}, "split:validation[:512]", 512),
    ({"train": 40, "valid": 3}, 8, 8),
    ({"train": 40, "test": 9}, 8, 8),
])
def test_a_split_that_the_data_holds_out_is_held_out(
        tmp_path: Path, sizes: dict[str, int], validation: Any, held_out: int) -> None:
    data = write_splits(tmp_path / "data", **sizes)
    result = tunesmith.init(tmp_path / "my.yaml", data=data, base="embedded:sprout")
    recipe = load_recipe(tmp_path / "my.yaml")
    assert recipe.data.validation == result["validation"] == validation
    assert (result["rows"], result["held_out"]) == (40, held_out)
    text = read_text(recipe.data)
    assert len(text.validation) == held_out
    assert len(text.train) == (40 if isinstance(validation, str) else 32)


def test_a_file_that_is_called_validation_is_not_held_out_of_itself(tmp_path: Path) -> None:
    write_splits(tmp_path / "data", valid=40)
    result = tunesmith.init(tmp_path / "my.yaml", data=str(tmp_path / "data" / "valid.jsonl"),
                            base="embedded:sprout")
    assert result["validation"] == 8


def test_a_train_split_of_another_name_is_learnt(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"question": f"Why {n}?", "answer": sentence(n)} for n in range(40)])
    datasets.DatasetDict({"train_sft": rows, "test_sft": rows}).save_to_disk(str(tmp_path / "data"))
    result = tunesmith.init(tmp_path / "my.yaml", data=str(tmp_path / "data"), base="embedded:sprout")
    assert load_recipe(tmp_path / "my.yaml").data.split == "train_sft"
    assert "train_sft is learnt" in result["notes"][0]
    datasets.DatasetDict({"train_a": rows, "train_b": rows}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(DataError, match="no split 'train'") as raised:
        tunesmith.init(tmp_path / "other.yaml", data=str(tmp_path / "two"), base="embedded:sprout")
    assert "It has train_a, train_b" in raised.value.hint


@pytest.mark.parametrize("rows", [1, 3, 20, 50, 500, 9_000, 30_000, 1_000_000])
def test_training_is_sized_to_the_rows(rows: int) -> None:
    found = train_settings(rows)
    steps = -(-rows // found["batch_size"]) * found["num_epochs"]
    assert found["batch_size"] <= max(4, rows)
    assert found["warmup_steps"] <= max(0.06 * steps, 1)
    assert found["eval_steps"] == found["save_steps"] <= max(1, steps / 8)
    assert steps >= 60 or found["num_epochs"] == 10
    assert steps / found["eval_steps"] <= 25 or found["eval_steps"] == 1000


def test_rows_that_training_will_refuse_are_told(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"Say {n}", "completion": f"It is {n}."} for n in range(20)]
    rows[7]["completion"] = None
    result, _ = init(tmp_path, rows)
    assert any("1 of the 20 rows" in note and "line 8" in note for note in result["notes"])
    assert any("Training will stop" in note and "line 8" in note for note in result["notes"])


def test_a_file_of_rows_that_training_refuses_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}", "completion": None if n > 2 else "x"} for n in range(20)]
    with pytest.raises(DataError, match=r"cannot be trained on .and 5 more.*line 4.*null"):
        init(tmp_path, rows)
    assert not (tmp_path / "my.yaml").exists()


def filled(recipe: Recipe, row: dict[str, Any]) -> Any:
    """What a row says: (role, text) of each message, or prompt and completion."""
    example = ExampleMaker(form_of(recipe.data)).make(Row(row, "here"))
    if example.conversation is None:
        return example.prompt, example.completion
    return [(message["role"], message["content"]) for message in example.conversation.messages]


INSTRUCTIONS = [{"instruction": f"Say {n}.", "input": ["aloud", "", None][n % 3], "output": f"It is {n}."}
                for n in range(12)]


def test_an_empty_input_is_left_out_of_a_prompt(tmp_path: Path) -> None:
    _, recipe = init(tmp_path, INSTRUCTIONS)
    assert filled(recipe, INSTRUCTIONS[0]) == (
        "### Instruction:\nSay 0.\n\n### Input:\naloud\n\n### Response:\n", "It is 0.")
    for row in INSTRUCTIONS[1:3]:
        assert filled(recipe, row)[0] == f"### Instruction:\n{row['instruction']}\n\n### Response:\n"


def test_an_instruct_base_is_asked_through_its_chat_template(tmp_path: Path, chat_base: str) -> None:
    result, recipe = init(tmp_path, INSTRUCTIONS, base=chat_base)
    assert result["chat"]
    assert filled(recipe, INSTRUCTIONS[0]) == [("user", "Say 0.\naloud"), ("assistant", "It is 0.")]
    assert filled(recipe, INSTRUCTIONS[1]) == [("user", "Say 1."), ("assistant", "It is 1.")]
    assert filled(recipe, INSTRUCTIONS[2]) == [("user", "Say 2."), ("assistant", "It is 2.")]


def test_columns_that_are_never_empty_need_no_jinja(tmp_path: Path, chat_base: str) -> None:
    rows = [row | {"input": "aloud"} for row in INSTRUCTIONS]
    _, recipe = init(tmp_path, rows, base=chat_base)
    assert recipe.data.chat
    assert (recipe.data.chat.user, recipe.data.chat.assistant) == ("{instruction}\n{input}", "{output}")


def test_a_column_that_some_rows_lack_is_left_out_there(tmp_path: Path, chat_base: str) -> None:
    rows = [{key: value for key, value in row.items() if value is not None} for row in INSTRUCTIONS]
    _, recipe = init(tmp_path, rows, base=chat_base)
    assert filled(recipe, rows[2])[0] == ("user", "Say 2.")


@pytest.mark.parametrize("template", [TEMPLATE, NO_SYSTEM])
def test_a_system_column_is_a_system_turn_where_there_are_such(tmp_path: Path, template: str) -> None:
    base = sprout_with(tmp_path / "base", "tokenizer_config.json", chat_template=template)
    rows = [row | {"system": ["Be brief.", ""][n % 2]} for n, row in enumerate(INSTRUCTIONS)]
    result, recipe = init(tmp_path, rows, base=base)
    assert filled(recipe, rows[1])[0] == ("user", "Say 1.")
    if template == TEMPLATE:
        assert filled(recipe, rows[0])[:2] == [("system", "Be brief."), ("user", "Say 0.\naloud")]
    else:
        assert filled(recipe, rows[0])[0] == ("user", "Be brief.\n\nSay 0.\naloud")
        assert any("refuses a system turn" in note for note in result["notes"])


def test_a_chat_s_answers_bring_no_blanks(tmp_path: Path, chat_base: str) -> None:
    rows = [{"prompt": f"Say {n} ->", "completion": f" It is {n}."} for n in range(12)]
    _, recipe = init(tmp_path, rows, base=chat_base)
    assert filled(recipe, rows[3]) == [("user", "Say 3 ->"), ("assistant", "It is 3.")]
    (tmp_path / "my.yaml").unlink()
    _, recipe = init(tmp_path, rows)
    assert filled(recipe, rows[3]) == ("Say 3 ->", " It is 3.")


def test_special_tokens_that_are_written_out_are_taken_as_such(tmp_path: Path, chat_base: str) -> None:
    rows = [{"text": f"<s>[INST] Say {n}. [/INST] It is {n}. </s>"} for n in range(12)]
    result, recipe = init(tmp_path, rows, base=chat_base)
    assert recipe.data.special_tokens
    assert recipe.data.completion == "{text}"
    assert any("(<s>, </s>)" in note for note in result["notes"])
    (tmp_path / "my.yaml").unlink()
    rows = [{"prompt": f"<s>[INST] Say {n}. [/INST]", "completion": f" It is {n}. </s>"} for n in range(12)]
    _, recipe = init(tmp_path, rows, base=chat_base)
    assert recipe.data.chat is None
    assert (recipe.data.prompt, recipe.data.completion) == ("{prompt}", "{completion}")
    (tmp_path / "my.yaml").unlink()
    _, recipe = init(tmp_path, [{"text": f"Say {n}. It is {n}."} for n in range(12)], base=chat_base)
    assert not recipe.data.special_tokens


def test_prompt_and_answer_are_set_apart_where_the_file_does_not(tmp_path: Path) -> None:
    _, recipe = init(tmp_path, [{"prompt": f"Say {n}", "completion": f"It is {n}."} for n in range(12)])
    assert (recipe.data.prompt, recipe.data.completion) == ("{prompt}\n", "{completion}")


def test_the_labels_are_named_to_a_chat_model(tmp_path: Path, chat_base: str) -> None:
    rows = [{"text": f"{sentence(n)} {n}", "label": ["billing", "shipping"][n % 2]} for n in range(20)]
    _, recipe = init(tmp_path, rows, base=chat_base)
    assert filled(recipe, rows[0])[0][1] == (
        f"{rows[0]['text']}\n\nAnswer with its label alone, one of: billing, shipping.")
    (tmp_path / "my.yaml").unlink()
    _, recipe = init(tmp_path, rows)
    assert filled(recipe, rows[0]) == (f"{rows[0]['text']}\n\nLabel:", " billing")


def test_labels_with_braces_are_not_taken_for_columns(tmp_path: Path, chat_base: str) -> None:
    rows = [{"text": f"{sentence(n)} {n}", "label": ["{a}", "{{ b }}"][n % 2]} for n in range(20)]
    _, recipe = init(tmp_path, rows, base=chat_base)
    assert filled(recipe, rows[0])[1] == ("assistant", "{a}")


def test_columns_that_jinja_cannot_name_are_taken_in_braces(tmp_path: Path, chat_base: str) -> None:
    rows = [{"Instruction": f"Say {n}.", "System Prompt": ["Be brief.", ""][n % 2], "Output": f"It is {n}."}
            for n in range(12)]
    _, recipe = init(tmp_path, rows, base=chat_base)
    assert filled(recipe, rows[0])[0] == ("system", "Be brief.")
    assert filled(recipe, rows[1])[0] == ("user", "Say 1.")


def test_nothing_is_written_for_what_is_not_known(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl",
               [{"german": "Ja", "english": "Yes"}, {"german": "Nein", "english": "No"}])
    done = command("init", "my.yaml", "--data", "rows.jsonl", "--base", "embedded:sprout", cwd=tmp_path)
    assert done.returncode == 4
    assert "german" in done.stderr
    assert not (tmp_path / "my.yaml").exists()


def test_a_recipe_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        init(tmp_path, [{"text": "a"}, {"text": "b"}])
    assert (tmp_path / "my.yaml").read_text() == "mine"


def test_conversations_need_a_base_with_a_chat_template(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no chat template"):
        init(tmp_path, [{"messages": MESSAGES}] * 3)
    assert not (tmp_path / "my.yaml").exists()


def test_a_base_that_is_none_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such folder"):
        init(tmp_path, [{"text": "a"}], base="./nothing")


def test_paths_are_found_from_the_recipe_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    write_rows(tmp_path / "here" / "rows.jsonl", [{"text": f"a {n}"} for n in range(20)])
    monkeypatch.chdir(tmp_path / "here")
    tunesmith.init("my.yaml", data="rows.jsonl", base="embedded:sprout")
    assert "source: rows.jsonl" in Path("my.yaml").read_text()
    tunesmith.init("../there/my.yaml", data="rows.jsonl", base="embedded:sprout")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("there/my.yaml").data.source == str(tmp_path / "here" / "rows.jsonl")


def test_a_preset_gives_what_the_file_does_not_say(tmp_path: Path) -> None:
    rows = [{"text": f"a {n}"} for n in range(20)]
    result, recipe = init(tmp_path, rows, preset="bloom-7b1-quotes", base=None)
    assert result["preset"] == "bloom-7b1-quotes"
    assert (recipe.model.base, recipe.model.quantization) == ("bigscience/bloom-7b1", "int8")
    assert recipe.train.max_steps is None


def test_a_base_without_data_replaces_the_preset_s(tmp_path: Path) -> None:
    tunesmith.init(tmp_path / "my.yaml", base="embedded:sprout")
    recipe = load_recipe(tmp_path / "my.yaml")
    assert recipe.model.base == "embedded:sprout"
    assert recipe.data.prompt in preset_text("bloom-7b1-quotes")


def test_real_conversations(tmp_path: Path, assets: Path, chat_base: str) -> None:
    data = str(assets / "chat" / "sharegpt_500.json")
    result = tunesmith.init(tmp_path / "my.yaml", data=data, base=chat_base)
    assert (result["shape"], result["rows"]) == ("conversations", 500)
    assert result["columns"] == {"messages": "conversations"}
    assert result["chat"]
    assert result["lengths"]["measured"]
    assert load_recipe(tmp_path / "my.yaml").data.messages == "conversations"


def test_real_quotes(tmp_path: Path, assets: Path) -> None:
    data = str(assets / "english_quotes" / "quotes.jsonl")
    result = tunesmith.init(tmp_path / "my.yaml", data=data, base="embedded:sprout")
    assert (result["shape"], result["rows"], result["held_out"]) == ("texts with a list", 2508, 125)
    assert result["columns"] == {"prompt": "quote", "completion": "tags"}
    assert result["unused"] == ["author"]


def test_real_instructions(tmp_path: Path, assets: Path) -> None:
    data = str(assets / "chat" / "alpaca_999.json")
    result = tunesmith.init(tmp_path / "my.yaml", data=data, base="embedded:sprout")
    assert (result["shape"], result["rows"]) == ("instructions", 999)
    assert not result["notes"]
    recipe = load_recipe(tmp_path / "my.yaml")
    assert recipe.data.prompt.startswith("### Instruction:\n")
    assert recipe.data.max_length >= result["lengths"]["longest"]


def test_the_next_command_works_as_it_stands(tmp_path: Path) -> None:
    with open(tmp_path / "tickets.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Ticket", "Category"])
        table.writerows([f"{sentence(n)} {n}", ["billing", "shipping"][n % 2]] for n in range(60))
    done = command("init", "my.yaml", "--data", "tickets.csv", "--base", "embedded:sprout", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "texts with a label" in done.stdout
    assert "tunesmith train my.yaml" in done.stdout
    assert command("plan", "my.yaml", cwd=tmp_path).returncode == 0
    done = command("train", "my.yaml", "--set", "train.num_epochs=null", "--set", "train.max_steps=2",
                   cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_chat_made_of_columns_trains(tmp_path: Path, chat_base: str) -> None:
    write_rows(tmp_path / "rows.jsonl", INSTRUCTIONS)
    done = command("init", "my.yaml", "--data", "rows.jsonl", "--base", chat_base, cwd=tmp_path)
    assert "through its chat template" in done.stdout
    done = command("train", "my.yaml", "--set", "train.num_epochs=null", "--set", "train.max_steps=2",
                   cwd=tmp_path)
    assert done.returncode == 0, done.stderr
