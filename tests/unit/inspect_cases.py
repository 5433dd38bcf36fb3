"""Rows without fault, and for each finding a fault to plant in them."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith import embedded

Rows = list[dict[str, Any]]
#: A base's tokenizer and config, with a chat template, and no weights.
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}"
    "{{ m.role }}:\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}{% endfor %}"
    "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}")


def base_without_weights(folder: Path, **config: Any) -> Path:
    """The embedded base with a chat template, without its weights."""
    source = embedded.path_of(embedded.BASE_NAME)
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    (folder / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def words(draw: random.Random, fewest: int, most: int) -> str:
    """Words that no language has, of a vocabulary of 4,096."""
    return " ".join("".join(draw.choice("bdfgklmn") + draw.choice("aeio")
                            for _ in range(draw.choice((2, 2, 2, 2, 3))))
                    for _ in range(draw.randint(fewest, most)))


def clean(count: int, seed: int = 0) -> Rows:
    """Questions and answers without fault."""
    draw = random.Random(seed)
    return [{"q": words(draw, 8, 30).capitalize() + "?", "a": words(draw, 3, 20).capitalize() + "."}
            for _ in range(count)]


def clean_chats(count: int, seed: int = 0) -> Rows:
    """Conversations of one or two questions without fault."""
    draw = random.Random(seed)
    return [{"messages": [{"role": role, "content": words(draw, 4, 15)}
                          for _ in range(draw.randint(1, 2)) for role in ("user", "assistant")]}
            for _ in range(count)]


@dataclass(frozen=True)
class Case:
    """plant: changes the rows at these places. data: what of the recipe differs. kinds: what else is then
    true.

    chat: whether the rows are conversations. config: what of the base's differs.
    """

    plant: Callable[[Rows, list[int]], None]
    data: str = ""
    also: tuple[str, ...] = ()
    chat: bool = False
    config: dict[str, Any] = field(default_factory=dict)


def each(change: Callable[[dict[str, Any]], None]) -> Callable[[Rows, list[int]], None]:
    """The same change of every place."""
    def plant(rows: Rows, places: list[int]) -> None:
        for place in places:
            change(rows[place])

    return plant


def turns(*roles_and_texts: str) -> Callable[[Rows, list[int]], None]:
    """Conversations of these roles (at even numbers) and texts; each ends with a word of its own."""
    def plant(rows: Rows, places: list[int]) -> None:
        draw = random.Random(repr(roles_and_texts))
        for place in places:
            rows[place]["messages"] = [{"role": role,
                                        "content": f"{text} {words(draw, 4, 8)}".strip() if text else ""}
                                       for role, text in zip(roles_and_texts[::2], roles_and_texts[1::2],
                                                             strict=True)]

    return plant


def append(key: str, text: str) -> Callable[[Rows, list[int]], None]:
    """A text at the end of a column."""
    return each(lambda row: row.__setitem__(key, row[key] + text))


def replace(key: str, text: str) -> Callable[[Rows, list[int]], None]:
    """Another text in a column."""
    return each(lambda row: row.__setitem__(key, text))


def plant_duplicates(rows: Rows, places: list[int]) -> None:
    for place in places:
        rows[place] = copy.deepcopy(rows[place - 1])


def plant_near_duplicates(rows: Rows, places: list[int]) -> None:
    """By turns: another case and another sign, a word more, a letter less, a word replaced."""
    for number, place in enumerate(places):
        before = rows[place - 1]
        while len(before["q"].split()) < 12:
            before["q"] = "Also " + before["q"]
        text = before["q"].split()
        if number % 4 == 0:
            text = " ".join(text).upper().replace("?", "!").split()
        elif number % 4 == 1:
            text.insert(5, "really")
        elif number % 4 == 2:
            text[4] = text[4][:-1] + "x" + text[4][-1:]
        else:
            text[6] = "other"
        rows[place] = {"q": " ".join(text), "a": before["a"]}


def plant_label_noise(rows: Rows, places: list[int]) -> None:
    """The row before has the same question; its answer is another."""
    for place in places:
        rows[place]["q"] = rows[place - 1]["q"]


def plant_calls(name: str, arguments: Any) -> Callable[[Rows, list[int]], None]:
    """A call of a tool; the row offers `weather`."""
    def plant(rows: Rows, places: list[int]) -> None:
        for place in places:
            call = {"type": "function", "function": {"name": name, "arguments": arguments}}
            rows[place]["messages"][1:] = [{"role": "assistant", "content": None, "tool_calls": [call]}]
            rows[place]["tools"] = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]

    return plant


#: By the kind of what is to be found.
CASES: dict[str, Case] = {
    "unknown_token": Case(lambda rows, places: None, config={"vocab_size": 300}),
    "prompt_too_long": Case(each(lambda row: row.__setitem__("q", row["q"] + " deli" * 400)),
                            "max_length: 300"),
    "too_long": Case(each(lambda row: row.__setitem__("a", row["a"] + " deli" * 400)), "max_length: 300"),
    "answer_cut": Case(each(lambda row: row.__setitem__("a", row["a"] + " deli" * 400)),
                       "max_length: 300, overlong: truncate"),
    "end_not_learnt": Case(lambda rows, places: None, "append_eos: false"),
    "special_tokens_in_text": Case(append("q", " <pad> and more")),
    "prompt_ends_in_blank": Case(each(lambda row: row.update(q=row["q"] + "\nA: ", a="the " + row["a"])),
                                 'prompt: "{q}", completion: "{a}"'),
    "empty_answer": Case(replace("a", " "), 'completion: "{a}"'),
    "constant_answer": Case(lambda rows, places: [row.__setitem__("a", "always") for row in rows] and None),
    "one_answer_in_most_rows": Case(
        lambda rows, places: [row.__setitem__("a", "mostly") for row in rows[: 2 * len(rows) // 3]] and None),
    "duplicates": Case(plant_duplicates),
    "near_duplicates": Case(plant_near_duplicates),
    "label_noise": Case(plant_label_noise),
    "mojibake": Case(append("a", " Donâ€™t, the cafÃ© is naÃ¯ve.")),
    "control_characters": Case(append("q", " with \u202ereversed\u202c text")),
    "secrets": Case(append("a", " The key is hf_" + "aB3dE" * 7)),
    "few_held_out": Case(lambda rows, places: None, "validation: 8"),
    "nothing_to_learn": Case(turns("system", "Be kind", "user", "Hello"), also=("roles",), chat=True),
    "unusable_row": Case(turns("user", "Hello", "system", "Be kind", "assistant", "Well"), also=("roles",),
                         chat=True),
    "tool_not_offered": Case(plant_calls("wether", {"town": "Ghent"}), chat=True),
    "tool_arguments_not_json": Case(plant_calls("weather", '{"town": "Ghent'), chat=True),
    "split": Case(each(lambda row: row.__setitem__("a", row["a"] + " deli" * 400)),
                  "max_length: 300, overlong: split"),
    "roles": Case(turns("assistant", "Hello", "user", "Good day", "assistant", "Well"), chat=True),
}


def write(folder: Path, rows: Rows, data: str = "", *, base: Path | str = embedded.BASE_NAME,
          chat: bool = False, name: str = "rows") -> Path:
    """The recipe of these rows."""
    source = folder / f"{name}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"source": str(source), "validation": "40"}
    settings |= {"messages": "messages"} if chat else {"prompt": '"{q}\\nA:"', "completion": '" {a}"'}
    settings |= dict(part.split(": ", 1) for part in data.split(", ") if part)
    recipe = folder / f"{name}.yaml"
    recipe.write_text(f'model: {{base: "{base}", quantization: none}}\ndata:\n'
                      + "".join(f"  {key}: {value}\n" for key, value in settings.items()))
    return recipe
