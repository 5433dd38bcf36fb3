from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tunesmith import embedded
from tunesmith.data import tokenize
from tunesmith.data.chat import conversation_of
from tunesmith.data.dataset import tokenize_text
from tunesmith.data.examples import Example
from tunesmith.data.rows import Row
from tunesmith.data.sets import TextSet
from tunesmith.data.tokenize import Encoder, Rules
from tunesmith.errors import DataError, RecipeError

CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


@pytest.fixture(scope="module")
def sprout() -> Any:
    return AutoTokenizer.from_pretrained(embedded.path_of(embedded.BASE_NAME))


def rules(loss_on: str = "completion", append_eos: bool = True, max_length: int = 512,
          overlong: str = "error") -> Rules:
    return Rules(loss_on, append_eos, max_length, overlong)


def plain(prompt: str, completion: str) -> Example:
    return Example(prompt, completion, None, "rows.jsonl, line 3")


def chat(*turns: tuple[str, str]) -> Example:
    row = Row({"m": [{"role": role, "content": text} for role, text in turns]}, "p")
    return Example("", "", conversation_of(row, "m"), "p")


def only(encoder: Encoder, example: Example) -> tuple[Any, bool]:
    """The one row of an example."""
    (made,) = encoder.encode(example)
    return made


def learnt_text(tokenizer: Any, row: Any) -> str:
    return tokenizer.decode([i for i, loss_mask in zip(row.ids, row.loss_mask, strict=True) if loss_mask])


@settings(deadline=None, max_examples=60)
@given(prompt=st.text(max_size=30), completion=st.text(min_size=1, max_size=30))
def test_the_mask_ends_exactly_where_the_prompt_does(sprout: Any, prompt: str, completion: str) -> None:
    encoder = Encoder(sprout, rules())
    row, overlong = only(encoder, plain(prompt, completion))
    assert not overlong
    prompt_ids = encoder.prompt_ids(prompt)
    assert row.ids[: len(prompt_ids)] == prompt_ids == row.prompt_ids
    first = max(1, len(prompt_ids))  # nothing predicts the very first token
    assert row.loss_mask == [i >= first for i in range(len(row.ids))]
    assert sprout.decode(row.ids[len(prompt_ids):]) == completion + "</s>"
    assert row.ids[-1] == sprout.eos_token_id
    assert row.loss_mask[-1] or len(row.ids) == 1


def test_the_notebook_s_setting_tokenizes_in_one_piece(assets: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(assets / "stories260K")
    encoder = Encoder(tokenizer, rules("all", append_eos=False))
    for line in (assets / "english_quotes" / "heldout.jsonl").read_text().splitlines()[:50]:
        values = json.loads(line)
        row, _ = only(encoder, plain(values["quote"] + " ->: ", str(values["tags"])))
        assert row.ids == tokenizer(values["quote"] + " ->: " + str(values["tags"]))["input_ids"]
        assert row.loss_mask == [False] + [True] * (len(row.ids) - 1)


def test_the_quotes_recipe_fits_the_quotes(assets: Path) -> None:
    from tunesmith.data.dataset import read_text
    from tunesmith.recipe import parse_recipe, preset_text

    recipe = parse_recipe(preset_text("bloom-7b1-quotes"),
                          overrides=[f"data.source={assets}/english_quotes/quotes.jsonl"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(assets / "tokenizers" / "gpt2" / "tokenizer.json"),
                                        eos_token="<|endoftext|>")
    chosen = recipe.data
    rules = Rules(chosen.loss_on, chosen.append_eos, chosen.max_length, chosen.overlong)
    counts = tokenize_text(read_text(chosen), tokenizer, rules).counts
    assert counts["train"] + counts["validation"] == 2508
    assert max(json.loads((assets / "quotes_lengths.json").read_text())) < chosen.max_length


@functools.cache
def encoder_of(tokenizer: Any, loss_on: str, append_eos: bool) -> Encoder:
    return Encoder(tokenizer, rules(loss_on, append_eos, max_length=9))


@given(texts=st.lists(st.tuples(st.sampled_from(["", "a", "the ", "the cat ->: "]) | st.text(max_size=12),
                                st.text(max_size=12)),
                      max_size=9),
       chats=st.integers(0, 3), loss_on=st.sampled_from(["all", "completion"]), append_eos=st.booleans(),
       at_once=st.integers(1, 5))
def test_many_at_once_are_the_same_as_one_by_one(chat_tokenizer: Any, texts: list[tuple[str, str]],
                                                 chats: int, loss_on: str, append_eos: bool,
                                                 at_once: int) -> None:
    examples = [Example(*pair, None, f"line {i}") for i, pair in enumerate(texts)]
    examples += [chat(("user", "hi"), ("assistant", "yo"))] * chats
    encoder = encoder_of(chat_tokenizer, loss_on, append_eos)
    one_by_one = [encoder.encode(example) for example in examples]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize, "_AT_ONCE", at_once)
        assert list(encoder.encode_all(examples)) == one_by_one


def test_the_first_bad_row_is_the_one_that_is_named(chat_tokenizer: Any) -> None:
    rows = [plain("a ", "b"), Example("long " * 50, "x", None, "line 4"),
            replace(chat(("user", "hi")), place="line 5"), plain("a", "")]
    with pytest.raises(DataError, match="line 4: longer"):
        tokenize_text(TextSet(rows, [], 0), chat_tokenizer, rules(max_length=20))
    with pytest.raises(DataError, match="line 5: no message of the assistant"):
        tokenize_text(TextSet(rows, [], 0), chat_tokenizer, rules(max_length=20, overlong="drop"))


def test_end_token_is_learnt_also_where_it_is_the_pad_token(sprout: Any) -> None:
    import copy

    tokenizer = copy.deepcopy(sprout)
    tokenizer.pad_token = tokenizer.eos_token
    data = tokenize_text(TextSet([plain("a", "b"), plain("a", "bb bb bb")], [], 0), tokenizer, rules())
    from tunesmith.model.hf.padded import collate

    batch = collate(data.train, tokenizer.pad_token_id)
    short = min(range(2), key=lambda i: len(data.train[i].ids))
    labels = batch.labels_BT[short]
    assert (labels == tokenizer.eos_token_id).sum() == 1
    assert labels[len(data.train[short].ids) - 1] == tokenizer.eos_token_id
    assert (labels[len(data.train[short].ids):] == -100).all()


def test_no_end_token_to_append() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(
        (embedded.path_of(embedded.BASE_NAME) / "tokenizer.json").read_text()))
    with pytest.raises(RecipeError, match="append_eos"):
        Encoder(tokenizer, rules())


def test_overlong_rows_are_counted(sprout: Any) -> None:
    text = TextSet([plain("short ", "x"), plain("long " * 50, "x y")], [], 0)
    with pytest.raises(DataError, match="line 3: longer than data.max_length, 20 tokens"):
        tokenize_text(text, sprout, rules("all", max_length=20))
    cut = tokenize_text(text, sprout, rules("all", max_length=20, overlong="truncate"))
    assert cut.counts["truncated"] == 1
    assert len(cut.train[1].ids) == 20
    assert cut.train[1].ids[-1] != sprout.eos_token_id
    dropped = tokenize_text(text, sprout, rules("all", max_length=20, overlong="drop"))
    assert (dropped.counts["dropped"], dropped.counts["train"]) == (1, 1)
    with pytest.raises(DataError, match="all 1 rows"):
        tokenize_text(TextSet(text.train[1:], [], 0), sprout, rules("all", max_length=20, overlong="drop"))


def test_a_row_with_nothing_to_learn(sprout: Any) -> None:
    with pytest.raises(DataError, match="line 3: no token to learn from: the completion is empty"):
        tokenize_text(TextSet([plain("a", "")], [], 0), sprout, rules(append_eos=False))
    with pytest.raises(DataError, match="prompt alone fills"):
        tokenize_text(TextSet([plain("long " * 50, "x")], [], 0), sprout,
                      rules(max_length=10, overlong="truncate"))


@pytest.fixture(scope="module")
def chat_tokenizer(sprout: Any) -> Any:
    import copy

    tokenizer = copy.deepcopy(sprout)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.chat_template = CHATML
    return tokenizer


def test_chat_learns_the_assistant_alone(chat_tokenizer: Any) -> None:
    turns = (("system", "be brief"), ("user", "hi"), ("assistant", "yo"), ("user", "bye"),
             ("assistant", "so long"))
    row, _ = only(Encoder(chat_tokenizer, rules()), chat(*turns))
    assert learnt_text(chat_tokenizer, row) == "yo<|im_end|>so long<|im_end|>"
    assert row.reference == "so long"
    assert chat_tokenizer.decode(row.prompt_ids).endswith("<|im_start|>assistant\n")
    assert row.ids[: len(row.prompt_ids)] == row.prompt_ids
    everything, _ = only(Encoder(chat_tokenizer, rules("all")), chat(*turns))
    assert all(everything.loss_mask[1:])


def test_chat_without_a_template_or_an_answer(sprout: Any, chat_tokenizer: Any) -> None:
    with pytest.raises(RecipeError, match="no chat template"):
        Encoder(sprout, rules()).encode(chat(("user", "hi"), ("assistant", "yo")))
    with pytest.raises(DataError, match="no message of the assistant to learn"):
        Encoder(chat_tokenizer, rules()).encode(chat(("user", "hi")))


def test_chat_template_that_refuses_or_rewrites(chat_tokenizer: Any) -> None:
    import copy

    refusing = copy.deepcopy(chat_tokenizer)
    refusing.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match="no system role"):
        Encoder(refusing, rules()).encode(chat(("user", "hi"), ("assistant", "yo")))
    rewriting = copy.deepcopy(chat_tokenizer)
    rewriting.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(DataError, match="differently"):
        Encoder(rewriting, rules()).encode(
            chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))


def test_real_conversations(assets: Path, chat_tokenizer: Any, tmp_path: Path) -> None:
    from tunesmith.data.dataset import read_text
    from tunesmith.recipe import parse_recipe

    recipe = parse_recipe(f"""
model: {{base: x}}
data: {{source: {assets}/chat/sharegpt_500.json, messages: conversations, max_length: 100000,
       validation: 0.1}}""")
    text = read_text(recipe.data)
    assert len(text.train) + len(text.validation) == 500
    usable = [e for e in text.train if e.conversation and any(e.conversation.answers)][:20]
    for row in tokenize_text(TextSet(usable, [], 0), chat_tokenizer, rules(max_length=100_000)).train:
        assert 0 < row.loss_tokens < len(row.ids)


def test_texts_that_were_tokenized_ahead_are_not_kept(sprout: Any) -> None:
    from tunesmith.data.tokenized import tokenized

    encoder = Encoder(sprout, rules())
    assert len(list(tokenized([plain(f"a {n}", f"b {n}") for n in range(5)], encoder))) == 5
    assert not encoder.plain._cache


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(st.one_of(st.text(max_size=30), st.sampled_from(["a</s>b", "<s>", "<|end|>"]))),
       special=st.booleans())
def test_the_short_way_to_tokens_gives_those_of_transformers(sprout: Any, texts: list[str],
                                                             special: bool) -> None:
    from tunesmith.data.chat.plain import PlainTokens

    texts += list(map(str, sprout.all_special_tokens))
    kwargs = {"add_special_tokens": False, "split_special_tokens": not special}
    expected = [sprout(text, **kwargs)["input_ids"] for text in texts]
    encoder = PlainTokens(sprout, special_tokens=special)
    assert [encoder.ids(text) for text in texts] == expected
    encoder.ahead(texts)
    assert [encoder.ids(text) for text in texts] == expected
    encoder.ahead(["<s>"])
    assert sprout("<s>", add_special_tokens=False)["input_ids"] == [sprout.convert_tokens_to_ids("<s>")]
