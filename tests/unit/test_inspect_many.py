"""Eight faults of each kind among 20,000 rows: all found, and nothing where there is none."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from inspect_cases import CASES, base_without_weights, clean, clean_chats, write

import tunesmith

ROWS, EACH = 20_000, 8
KINDS = ("prompt_too_long", "too_long", "special_tokens_in_text", "prompt_ends_in_blank", "empty_answer",
         "duplicates", "near_duplicates", "label_noise", "mojibake", "control_characters", "secrets")
DATA = 'max_length: 300, prompt: "{q}", completion: "{a}"'


def counts(result: dict[str, Any]) -> dict[str, int]:
    return {finding["kind"]: finding["count"] for finding in result["findings"]}


@pytest.mark.slow
def test_faults_in_many_rows(tmp_path: Path) -> None:
    base = base_without_weights(tmp_path / "base")
    rows, held_out = clean(ROWS), clean(400, seed=1)
    validation = f"validation: {tmp_path / 'held_out.jsonl'}"
    write(tmp_path, held_out, name="held_out")
    assert tunesmith.inspect(write(tmp_path, rows, f"{DATA}, {validation}", base=base))["findings"] == []
    places = random.Random(0).sample(range(1, ROWS // 2), EACH * len(KINDS))
    planted = {kind: sorted(2 * place for place in places[EACH * number:EACH * (number + 1)])
               for number, kind in enumerate(KINDS)}
    for kind, where in planted.items():
        CASES[kind].plant(rows, where)
    for place in range(EACH):
        held_out[10 * place] = {"q": rows[1001 + 2 * place]["q"].upper(), "a": rows[1001 + 2 * place]["a"]}
    write(tmp_path, held_out, name="held_out")
    result = tunesmith.inspect(write(tmp_path, rows, f"{DATA}, {validation}", base=base))
    assert counts(result) == {kind: EACH for kind in KINDS} | {"label_noise": 2 * EACH,
                                                               "held_out_near_duplicates": EACH}
    for finding in result["findings"]:
        if finding["kind"] in ("label_noise", "held_out_near_duplicates"):
            continue
        named = sorted(int(place.rpartition(" ")[2]) for place in finding["rows"])
        assert named == [place + 1 for place in planted[finding["kind"]]], finding["kind"]


CHAT_KINDS = ("nothing_to_learn", "unusable_row", "tool_not_offered", "tool_arguments_not_json", "roles")


@pytest.mark.slow
def test_faults_in_many_conversations(tmp_path: Path) -> None:
    base = base_without_weights(tmp_path / "base")
    rows = clean_chats(ROWS)
    assert tunesmith.inspect(write(tmp_path, rows, base=base, chat=True))["findings"] == []
    places = random.Random(0).sample(range(1, ROWS), EACH * len(CHAT_KINDS))
    for number, kind in enumerate(CHAT_KINDS):
        CASES[kind].plant(rows, places[EACH * number:EACH * (number + 1)])
    result = tunesmith.inspect(write(tmp_path, rows, base=base, chat=True))
    assert counts(result) == dict.fromkeys(CHAT_KINDS, EACH) | {"roles": 3 * EACH}
