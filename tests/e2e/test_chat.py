"""Conversations as a user brings them: trained, asked as they were trained, and what is left out is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import tunesmith
from tunesmith import embedded

#: A template in the manner of Qwen3's: a thought before the last answer, which is taken out of earlier turns.
TEMPLATE = ("{% for m in messages %}{% if m.role == 'assistant' %}<assistant>{% if loop.last %}<think>"
            "{{ m.reasoning_content or '' }}</think>{% endif %}{{ m.content }}</s>"
            "{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<assistant>"
            "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif "
            "%}")
RECIPE = """
model: {base: base, quantization: none}
data: {source: rows.jsonl, messages: messages, validation: 6, max_length: 400}
train: {max_steps: 2, batch_size: 4, warmup_steps: 0, eval_steps: 0}
judge: {max_new_tokens: 4, samples: 1, stop_rows: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe beside a base whose tokenizer has the template."""
    source = embedded.path_of(embedded.BASE_NAME)
    assert source is not None
    shutil.copytree(source, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def write_rows(folder: Path, rows: list[list[dict[str, Any]]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))


def talk(number: int, **answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"Say {number}."},
            {"role": "assistant", "content": f"It is {number}.", **answer},
            {"role": "user", "content": "And more?"},
            {"role": "assistant", "content": f"It is {number + 1}.", **answer}]


def test_answers_without_a_thought_are_asked_for_without_one(folder: Path) -> None:
    write_rows(folder, [talk(number) for number in range(30)])
    done = tunesmith("train", "r.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "30 conversations became 60 rows" in done.stderr
    assert "60 answers without a thought are asked for with enable_thinking: false" in done.stderr
    adapter = folder / "runs" / "r" / "adapter"
    metadata = json.loads((adapter / "tunesmith.json").read_text())
    assert (metadata["messages"], metadata["template_kwargs"]) == (True, {"enable_thinking": False})
    sample = json.loads((folder / "runs" / "r" / "samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"].endswith("<assistant><think></think>")
    asked = tunesmith("generate", "runs/r", "--prompt", "Say 3.", "--max-new-tokens", "2", "--json",
                      cwd=folder)
    assert asked.returncode == 0, asked.stderr
    assert "enable_thinking=False" in (adapter / "README.md").read_text()


def test_thoughts_are_learnt_and_asked_for(folder: Path) -> None:
    write_rows(folder, [talk(number, reasoning_content=f"{number} it is") for number in range(30)])
    done = tunesmith("train", "r.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "enable_thinking" not in done.stderr
    shown = json.loads(tunesmith("inspect", "r.yaml", "--json", "--rows", "2", cwd=folder).stdout)
    learnt = ["".join(piece for piece, mask in zip(row["pieces"], row["loss_mask"], strict=True) if mask)
              for row in shown["examples"]]
    assert all("it is</think>It is" in text for text in learnt), learnt


def test_what_is_left_out_is_said(folder: Path) -> None:
    rows = [talk(number, mood="glad") for number in range(30)]
    rows[3][0]["name"] = "Ann"
    write_rows(folder, rows)
    done = tunesmith("train", "r.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert '"mood" of 60 messages is read by nothing' in done.stderr
    assert '"name" of 1 message is read by nothing' in done.stderr


def test_a_tool_call_that_the_template_does_not_know_is_no_empty_answer(folder: Path) -> None:
    rows = [talk(number) for number in range(30)]
    rows[4][1] = {"role": "assistant", "content": "", "tool_calls": [{"name": "now", "arguments": {}}]}
    write_rows(folder, rows)
    done = tunesmith("train", "r.yaml", cwd=folder)
    assert done.returncode == 4
    assert (
        "rows.jsonl, line 5: message 2: the chat template of this base does not write the call of now"
        in done.stderr
    )
    assert not (folder / "runs" / "r" / "adapter").exists()


def test_rows_that_the_template_refuses_are_skipped_where_that_is_asked_for(folder: Path) -> None:
    rows = [talk(number) for number in range(30)]
    rows[4] = [{"role": "user", "content": "Nobody answers."}]
    rows[9][1]["content"] = None
    write_rows(folder, rows)
    refused = tunesmith("train", "r.yaml", cwd=folder)
    assert refused.returncode == 4
    done = tunesmith("train", "r.yaml", "--set", "data.bad_rows=skip", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "rows.jsonl, line 5: no message of the assistant to learn" in done.stderr
    assert "rows.jsonl, line 10: " in done.stderr
    assert done.stderr.count("1 row skipped (data.bad_rows)") == 2
    write_rows(folder, [talk(1) if number % 2 else rows[4] for number in range(300)])
    many = tunesmith("train", "r.yaml", "--set", "data.bad_rows=skip", "--run", "other", cwd=folder)
    assert many.returncode == 4
    assert "data.bad_rows: " in many.stderr
    assert "The first: " in many.stderr
    assert "no message of the assistant to learn" in many.stderr


def test_inspect_has_no_false_alarm_on_whole_conversations_and_windows(folder: Path) -> None:
    (folder / "base" / "chat_template.jinja").write_text(TEMPLATE.replace("</s>", "</s>{{ '\\n' }}"))
    write_rows(folder, [talk(number) for number in range(30)])

    def kinds(*sets: str) -> set[str]:
        words = [word for each in sets for word in ("--set", each)]
        done = tunesmith("inspect", "r.yaml", "--json", *words, cwd=folder)
        assert done.returncode == 0, done.stdout[-2000:]
        return {finding["kind"] for finding in json.loads(done.stdout)["findings"]}

    assert "end_not_learnt" not in kinds("data.loss_on=all")
    assert "prompt_too_long" not in kinds("data.max_length=40", "data.overlong=split")
    assert "prompt_too_long" not in kinds("data.max_length=40", "data.overlong=truncate", "data.loss_on=all")
