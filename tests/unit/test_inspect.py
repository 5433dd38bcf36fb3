from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from inspect_cases import CASES, base_without_weights, clean, clean_chats, write

import tunesmith
from conftest import ASSETS, tunesmith_json
from conftest import tunesmith as command

COUNT, PLANTED = 240, [31, 100, 222]


def kinds(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["kind"]: finding for finding in result["findings"]}


def lines(places: list[str]) -> list[int]:
    return sorted(int(place.rpartition(" ")[2]) for place in places)


@pytest.mark.parametrize("kind", CASES)
def test_a_planted_fault_is_found_and_nothing_else(kind: str, tmp_path: Path) -> None:
    case = CASES[kind]
    rows = (clean_chats if case.chat else clean)(COUNT)
    case.plant(rows, PLANTED)
    base = base_without_weights(tmp_path / "base", **case.config)
    found = kinds(tunesmith.inspect(write(tmp_path, rows, case.data, base=base, chat=case.chat)))
    assert set(found) == {kind, *case.also}
    finding = found[kind]
    assert finding["severity"] in ("error", "warning", "note")
    assert finding["message"]
    assert finding["advice"]
    if kind == "label_noise":  # both of the rows
        assert lines(finding["rows"]) == sorted([*PLANTED, *(place + 1 for place in PLANTED)])
    elif kind == "near_duplicates":  # which of the two is the earlier is for the order of reading to say
        assert finding["count"] + found.get("held_out_near_duplicates", {"count": 0})["count"] == len(PLANTED)
    elif finding["count"] < COUNT // 4 and kind != "few_held_out":
        assert finding["count"] == len(PLANTED)
        assert lines(finding["rows"]) == [place + 1 for place in PLANTED]


@pytest.mark.parametrize("chat", [False, True])
def test_rows_without_fault_have_no_findings(chat: bool, tmp_path: Path) -> None:
    base = base_without_weights(tmp_path / "base")
    result = tunesmith.inspect(write(tmp_path, (clean_chats if chat else clean)(COUNT), base=base, chat=chat))
    assert result["findings"] == []
    assert (result["rows"], result["held_out"], result["lost_tokens"]) == (COUNT, 40, 0)
    assert result["lengths"]["min"] <= result["lengths"]["p50"] <= result["lengths"]["max"]
    assert sum(bar["rows"] for bar in result["histogram"]) == COUNT


@pytest.mark.parametrize("kind", ["held_out_near_duplicates", "held_out_languages", "held_out_lengths"])
def test_held_out_rows_from_another_source(kind: str, tmp_path: Path) -> None:
    rows, held_out = clean(COUNT), clean(40, seed=1)
    if kind == "held_out_near_duplicates":
        held_out[:3] = [{"q": row["q"].upper(), "a": row["a"]} for row in rows[:3]]
    if kind == "held_out_languages":
        rows = [{"q": f"What is the right answer to question number {i}?", "a": f"It is {7 * i}."}
                for i in range(COUNT)]
        held_out = [{"q": f"Wie lautet die richtige Antwort auf Frage Nummer {i}?", "a": f"Sie ist {9 * i}."}
                    for i in range(40)]
    if kind == "held_out_lengths":
        held_out = [{"q": f"{row['q']} {row['q']}", "a": f"{row['a']} {other['a']} {row['a']}"}
                    for row, other in zip(held_out, clean(40, seed=2), strict=True)]
    write(tmp_path, held_out, name="held_out")
    recipe = write(tmp_path, rows, f"validation: {tmp_path / 'held_out.jsonl'}")
    found = kinds(tunesmith.inspect(recipe))
    assert kind in found
    if kind == "held_out_near_duplicates":
        assert set(found) == {kind}
        assert lines(found[kind]["rows"]) == [1, 2, 3]
        assert all("held_out" in place for place in found[kind]["rows"])


def test_rows_that_stand_on_both_sides(tmp_path: Path) -> None:
    rows, held_out = clean(COUNT), clean(40, seed=1)
    held_out[:3] = rows[:3]
    write(tmp_path, held_out, name="held_out")
    result = tunesmith.inspect(write(tmp_path, rows, f"validation: {tmp_path / 'held_out.jsonl'}"))
    assert kinds(result)["held_out_duplicates"]["count"] == 3
    assert (result["rows"], result["held_out"]) == (COUNT + 40 - 3, 40)


def test_examples_are_what_the_model_sees(tmp_path: Path) -> None:
    rows = clean(COUNT)
    rows[0] = {"q": "A tea\u0301 ☕ 你好?", "a": "Ω≈ç √ 🦙."}
    result = tunesmith.inspect(write(tmp_path, rows), rows=5)
    assert len(result["examples"]) == 5
    for number, example in enumerate(result["examples"]):
        assert len(example["ids"]) == len(example["pieces"]) == len(example["loss_mask"])
        assert all(isinstance(loss, bool) for loss in example["loss_mask"])
        if number == 0:
            assert example["place"].endswith("rows.jsonl, line 1")
            assert "".join(example["pieces"]).startswith(f"{rows[0]['q']}\nA: {rows[0]['a']}")
            learnt = "".join(piece for piece, loss in zip(example["pieces"], example["loss_mask"],
                                                          strict=True) if loss)
            assert learnt == f" {rows[0]['a']}</s>"


def test_the_command_line(tmp_path: Path) -> None:
    rows = clean(COUNT)
    for row in rows:
        row["a"] = "always"
    recipe = write(tmp_path, rows)
    done = command("inspect", str(recipe), "--rows", "2", cwd=tmp_path, env={"NO_COLOR": "1"})
    assert done.returncode == 4, done.stderr
    assert "240, of which 40 are held out" in done.stdout
    assert "constant_answer" in done.stdout
    assert "⟦ always</s>⟧" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stdout.count("rows.jsonl, line") >= 2
    quiet = command("inspect", str(recipe), "--json", "--quiet", cwd=tmp_path)
    assert quiet.returncode == 4
    assert quiet.stderr == ""
    result = json.loads(quiet.stdout)
    assert [finding["kind"] for finding in result["findings"]] == ["constant_answer"]
    assert "examples" not in result
    fine = tunesmith_json("inspect", str(write(tmp_path, clean(COUNT))), "--rows", "1", cwd=tmp_path)
    assert fine["findings"] == []
    assert len(fine["examples"]) == 1


def test_a_page_is_refused_where_it_cannot_be_written(tmp_path: Path) -> None:
    recipe = write(tmp_path, clean(20))
    for where in (tmp_path, tmp_path / "missing" / "page.html"):
        done = command("inspect", str(recipe), "--html", str(where), cwd=tmp_path)
        assert done.returncode == 2
        assert str(where.parent) in done.stderr


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    recipe = write(tmp_path, clean(5))
    (tmp_path / "rows.jsonl").unlink()
    assert command("inspect", str(recipe), cwd=tmp_path).returncode == 4


@pytest.mark.skipif(not ASSETS.is_dir(), reason=f"the real inputs are not here ({ASSETS})")
def test_what_is_found_in_the_real_quotes(tmp_path: Path) -> None:
    recipe = tmp_path / "quotes.yaml"
    recipe.write_text(f'model: {{base: "embedded:sprout", quantization: none}}\n'
                      f'data: {{source: "{ASSETS}/english_quotes/quotes.jsonl", prompt: "{{quote}} ->: ", '
                      'completion: "{tags}"}\n')
    found = kinds(tunesmith.inspect(recipe))
    assert set(found) == {"prompt_ends_in_blank", "mojibake", "label_noise", "near_duplicates"}
    assert 'prompt: "{quote} ->:" and completion: " {tags}"' in found["prompt_ends_in_blank"]["advice"]
    assert 190 < found["mojibake"]["count"] < 210
    assert lines(found["label_noise"]["rows"]) == [948, 1923]  # one quote twice, with other tags


def test_training_says_what_matters_in_two_lines(recipe: Path, tmp_path: Path) -> None:
    rows = clean(60)
    for row in rows[::5]:
        row["a"] = ""
    rows[21] = rows[22]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--set", f"data.source={tmp_path / 'rows.jsonl'}", "--set", "data.prompt={q}", "--set",
            "data.completion={a}"]
    done = command("train", str(recipe), *data, "--set", "train.max_steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "answer" in line or "found in the data" in line]
    assert said[0].startswith("12 rows have empty answers: ")
    assert said[1].startswith("Also found in the data: duplicates (1).")
    assert len(said) == 2


def test_an_answer_is_empty_where_only_the_template_s_own_text_is_left(tmp_path: Path) -> None:
    rows = clean(COUNT)
    rows[7]["a"] = ""
    found = kinds(tunesmith.inspect(write(tmp_path, rows, 'completion: " Answer: {a}"')))
    assert lines(found["empty_answer"]["rows"]) == [8]


@pytest.mark.parametrize(("setting", "severity"), [("error", "error"), ("skip", "warning")])
def test_rows_that_cannot_be_read_are_a_finding(setting: str, severity: str, tmp_path: Path) -> None:
    rows = clean(COUNT)
    rows[5]["a"], rows[9] = None, {"q": rows[9]["q"]}
    result = tunesmith.inspect(write(tmp_path, rows, f"bad_rows: {setting}"))
    finding = kinds(result)["bad_row"]
    assert (finding["severity"], finding["count"], result["rows"]) == (severity, 2, COUNT)
    assert [place.split(": ")[0].rpartition(" ")[2] for place in finding["rows"]] == ["6", "10"]


def test_with_bad_rows_skip_a_refused_row_is_no_error(tmp_path: Path) -> None:
    rows = clean_chats(COUNT)
    CASES["unusable_row"].plant(rows, PLANTED)
    base = base_without_weights(tmp_path / "base")
    found = kinds(tunesmith.inspect(write(tmp_path, rows, "bad_rows: skip", base=base, chat=True)))
    assert found["unusable_row"]["severity"] == "warning"
    assert found["unusable_row"]["count"] == len(PLANTED)
