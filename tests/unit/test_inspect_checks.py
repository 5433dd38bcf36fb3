"""Checks of tokens that no row of a file comes to today: the encoder would have to be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tunesmith import embedded
from tunesmith.data.inspect import Check, Facts, Finding, SeenRow, audit, pieces
from tunesmith.data.inspect.control_characters import ControlCharacters
from tunesmith.data.inspect.doubled_beginning import DoubledBeginning
from tunesmith.data.inspect.duplicates import Duplicates
from tunesmith.data.inspect.end_not_learnt import EndNotLearnt
from tunesmith.data.inspect.few_held_out import FewHeldOut
from tunesmith.data.inspect.near_duplicates import nearly_same
from tunesmith.data.inspect.roles import out_of_order
from tunesmith.data.inspect.seen import Turn
from tunesmith.data.inspect.template_learnt import TemplateLearnt
from tunesmith.data.tokenize import Rules, TokenRow
from tunesmith.secrets import secrets_in

BOS, EOS, PAD = 1, 2, 3
PROMPT, ANSWER = [10, 11, 12], [20, 21]
TURNS = (Turn("user", "Hello"), Turn("assistant", "Good day"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(embedded.path_of(embedded.BASE_NAME))


def row(ids: Sequence[int], learnt_from: int, learnt_to: int | None = None, **others: Any) -> SeenRow:
    last = len(ids) if learnt_to is None else learnt_to
    tokens = TokenRow(list(ids), [learnt_from <= at < last for at in range(len(ids))], PROMPT, "", "",
                      "line 1")
    fields = dict(index=0, place="line 1", held_out=False, question="", answer="", turns=TURNS,
                  offered=frozenset(), tokens=(tokens,), overlong=False, lengths=(len(ids),), prompt_length=3,
                  refusal=None, content_hash=1)
    return SeenRow(**(fields | others))


def found(check: type[Check], tokenizer: Any, *rows: SeenRow,
          loss_on: str = "completion") -> dict[str, Finding]:
    facts = Facts(tokenizer=tokenizer, rules=Rules(loss_on, True, 100, "drop"), prompt_template="",
                  completion_template="", conversations=True, stop_ids=frozenset({EOS}), embedding_rows=None,
                  half_width=lambda count: None if count < 5 else 2 / count)
    return {finding.kind: finding for finding in audit(rows, facts, checks=[check]).findings}


def test_the_end_has_to_be_learnt(tokenizer: Any) -> None:
    whole = [*PROMPT, *ANSWER, EOS]
    assert found(EndNotLearnt, tokenizer, row(whole, 3)) == {}
    assert found(EndNotLearnt, tokenizer, row([*PROMPT, *ANSWER], 3))["end_not_learnt"].severity == "error"
    assert found(EndNotLearnt, tokenizer, row(whole, 3, 5))["end_not_learnt"].count == 1  # masked, as padding
    assert found(EndNotLearnt, tokenizer, row([*PROMPT, *ANSWER], 3, overlong=True)) == {}


def test_of_a_chat_only_answers_are_learnt(tokenizer: Any) -> None:
    whole = [*PROMPT, *ANSWER, EOS]
    assert found(TemplateLearnt, tokenizer, row(whole, 3)) == {}
    assert found(TemplateLearnt, tokenizer, row(whole, 2))["template_learnt"].severity == "error"
    # behind the end
    assert found(TemplateLearnt, tokenizer, row([*whole, 13], 3))["template_learnt"].count == 1
    assert found(TemplateLearnt, tokenizer, row(whole, 1),
                 loss_on="all")["template_learnt"].severity == "note"
    assert found(TemplateLearnt, tokenizer, row(whole, 2, turns=None)) == {}


def test_doubled_ends(tokenizer: Any) -> None:
    assert found(DoubledBeginning, tokenizer, row([BOS, *PROMPT, EOS], 1)) == {}
    assert set(found(DoubledBeginning, tokenizer, row([BOS, BOS, *PROMPT, EOS, EOS], 1))) == {
        "doubled_beginning", "doubled_end"}


def test_a_row_on_both_sides_is_an_error(tokenizer: Any) -> None:
    rows = [row(PROMPT, 1), row(PROMPT, 1, index=1, place="line 2", held_out=True)]
    finding = found(Duplicates, tokenizer, *rows)["held_out_duplicates"]
    assert (finding.severity, finding.rows, finding.count) == ("error", ("line 2",), 1)


@pytest.mark.parametrize(("different", "kinds"), [(0, {"few_held_out"}), (3, {"few_held_out"}), (6, set())])
def test_equal_held_out_rows_are_one_draw(different: int, kinds: set[str], tokenizer: Any) -> None:
    rows = [row(PROMPT, 1, held_out=True, content_hash=number % different)
            for number in range(different * 20)]
    assert set(found(FewHeldOut, tokenizer, *rows)) == kinds


@pytest.mark.parametrize(("text", "hidden"), [
    ("Plain text,\twith tab\nand line.", False), ("bell \x07", True), ("nul\x00", True),
    ("zero\u200bwidth", True), ("turned \u202e", True), ("mark \ufeff inside", True),
    ("left-to-right \u200e mark", True), ("\u05e9\u05dc\u05d5\u05dd \u200f!", False),  # a mark in Hebrew
    ("family \U0001f468\u200d\U0001f469\u200d\U0001f466", False),  # joined emoji
    ("\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", False),  # Scotland's flag
    # Persian
    ("hidden \U000e0041\U000e0042", True), ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", False),
])
def test_hidden_characters(text: str, hidden: bool, tokenizer: Any) -> None:
    assert bool(found(ControlCharacters, tokenizer, row(PROMPT, 1, turns=None, question=text))) == hidden


@pytest.mark.parametrize(("roles", "wrong"), [
    ("user assistant", None), ("system user assistant user assistant", None),
    ("developer user assistant", None), ("user assistant tool assistant user assistant", None),
    ("user assistant tool tool assistant", None), ("assistant user assistant", "the assistant speaks first"),
    ("user user assistant", "the user speaks twice in a row"),
    ("user assistant assistant", "the assistant speaks twice in a row"),
    ("user assistant user", "the user has the last word"),
    ("user system assistant", "a system turn stands after others"),
    ("system assistant", "no turn is the user's"), ("system", "there is neither user nor assistant"),
    ("user tool assistant", "a tool answers the user"),
])
def test_the_order_of_roles(roles: str, wrong: str | None) -> None:
    assert out_of_order(tuple(Turn(role, "") for role in roles.split())) == wrong


@pytest.mark.parametrize(("one", "two", "same"), [
    ("the cat sat on the mat by the old door", "the cat sat on the mat by the old door today", True),
    ("the cat sat on the mat by the old door", "the cat sat on the mat by a new door", False),
    ("the cat sat on the matress by the old door", "the cat sat on the matres by the old door", True),
    ("how far is it to the sea", "how far is it to the moon", False),
    ("a b c d e f g h i j k l", "l k j i h g f e d c b a", False),
])
def test_what_is_nearly_the_same(one: str, two: str, same: bool) -> None:
    assert nearly_same(one.split(), two.split()) == same


@pytest.mark.parametrize("text",
                         ["risk-adjusted-return-on-capital-2024-report", "The secret: nobody knows it.",
                                  "password: swordfish", "a task-oriented-dialogue-system-v2-evaluation"])
def test_prose_is_no_secret(text: str) -> None:
    assert secrets_in(text) == []


@pytest.mark.parametrize("text",
                         ["sk-proj-" + "a1B2" * 8, "(sk-ant-" + "x9" * 20 + ")", "AKIA" + "ABCDEFGH12345678",
                                  "API_KEY = '" + "a1" * 12 + "'", "Password: " + "x1" * 12,
                                  "-----BEGIN RSA PRIVATE KEY-----"])
def test_secrets(text: str) -> None:
    assert len(secrets_in(text)) == 1


@pytest.mark.parametrize("base", ["embedded", "stories260K", "tokenizers/gpt2"])
def test_the_pieces_of_a_text_are_the_text(base: str, assets: Path) -> None:
    if base == "embedded":
        made = AutoTokenizer.from_pretrained(embedded.path_of(embedded.BASE_NAME))
    else:
        made = PreTrainedTokenizerFast(tokenizer_file=str(assets / base / "tokenizer.json"))
    text = "Plain words,  two blanks\n\n\tand 👩\u200d👩\u200d👧 你好 é e\u0301 \ufffd ∑ שלום end" * 3
    ids = made(text, add_special_tokens=False)["input_ids"]
    found = pieces(made, ids)
    assert len(found) == len(ids)
    assert "".join(found).lstrip() == text
    assert sum("�" in piece for piece in found) == 3
