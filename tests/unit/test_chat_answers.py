"""What is learnt of a conversation is exactly what generation would have to produce, after exactly what it is
given.
"""

from __future__ import annotations

import functools
import json
import os
from typing import Any

import chat_templates
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.chat.answers import ChatEncoder, ChatRow
from tunesmith.data.chat.messages import conversation_of
from tunesmith.data.chat.plain import PlainTokens
from tunesmith.data.rows import Row
from tunesmith.errors import DataError, RecipeError

CALL: list[dict[str, Any]] = [{"type": "function", "id": "call00001", "function": {
    "name": "weather", "arguments": {"city": "Oslo", "days": 3, "wind": True}}}]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Where."}},
    "required": ["city"]}}}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": text}


CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [user("Q1"), answer("A1")],
    "two": [user("Q1"), answer("A1"), user("Q2"), answer("A2")],
    "three": [{"role": "system", "content": "Be brief."}, user("Q1"), answer("A1"), user("Q2"), answer("A2"),
              user("Q3"), answer("A3")],
    "blanks": [user(" Q1 "), answer("\n A1 \n"), user("Q2"), answer("  A2")],
    "thoughts": [user("Q1"), answer("A1", reasoning_content="R1"), user("Q2"),
                 answer("A2", reasoning_content="R2")],
    "some thoughts": [user("Q1"), answer("A1"), user("Q2"), answer("A2", reasoning_content="R2")],
    "tools": [user("Q1"), answer(None, tool_calls=CALL), result("cold"), answer("A1"), user("Q2"),
              answer("A2")],
    "thoughts and tools": [user("Q1"), answer(None, reasoning_content="R1", tool_calls=CALL), result("cold"),
                           answer("A1", reasoning_content="R2")]}
#: Templates that take no tool calls or no system turn: what they refuse, they refuse in words.
REFUSES = {("cohere", "tools"), ("cohere2", "tools"), ("gemma", "tools"), ("gemma", "three"),
           ("gemma3", "tools"), ("idefics3", "tools"), ("lfm2", "tools"), ("llama3", "tools"),
           ("llava_next", "tools"), ("phi3", "tools"), ("phi3_5", "tools"), ("qwen2_5_vl", "tools"),
           ("smolvlm", "tools")}


def encoder_of(name: str, **more: Any) -> ChatEncoder:
    tokenizer = chat_templates.tokenizer_of(name)
    return ChatEncoder(tokenizer, PlainTokens(tokenizer, special_tokens=False),
                       stop_ids=chat_templates.stop_ids(name, tokenizer), append_eos=True, **more)


def row_of(messages: list[dict[str, Any]]) -> Row:
    calls = any("tool_calls" in message for message in messages)
    return Row({"messages": messages, **({"tools": TOOLS} if calls else {})}, "row 1")


def spans(row: ChatRow) -> list[tuple[int, int]]:
    """Where the learnt stretches of a row begin and end."""
    edges = [i for i in range(len(row.ids) + 1)
             if (i > 0 and row.loss_mask[i - 1]) != (i < len(row.ids) and row.loss_mask[i])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def check(encoder: ChatEncoder, rows: list[ChatRow], messages: list[dict[str, Any]]) -> list[str]:
    """The contract, for every learnt stretch; returns the texts that are learnt, in order."""
    tokenizer, texts = encoder.tokenizer, []
    indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    conversation = conversation_of(row_of(messages), "messages")
    ready = [encoder.profile.as_read(message) for message in conversation.messages]
    prompts = {}
    for thinking in (None, True, False):
        kwargs = {**encoder.kwargs, **({} if thinking is None else {"enable_thinking": thinking})}
        for i in indices:
            text = encoder.renderer.render(ready[:i], generation_prompt=True, tools=conversation.tools,
                                           kwargs=kwargs)
            ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            prompts[ids] = max(i, prompts.get(ids, -1))
    seen = []
    for row in rows:
        for start, end in spans(row):
            assert tuple(row.ids[:start]) in prompts, "before an answer stands what generation is given"
            seen.append(prompts[tuple(row.ids[:start])])
            assert row.ids[end - 1] in encoder.stop_ids, "an answer ends where generation stops"
            assert not encoder.stop_ids & set(row.ids[start:end - 1]), "and nowhere before"
            texts.append(tokenizer.decode(row.ids[start:end]))
        assert row.ids[:len(row.prompt_ids)] == row.prompt_ids
        assert row.prompt == tokenizer.decode(row.prompt_ids)
    assert sorted(seen) == indices, "every answer is learnt, once"
    for text, i in sorted(zip(texts, seen, strict=True), key=lambda pair: pair[1]):
        content, calls = messages[i]["content"], messages[i].get("tool_calls", [])
        assert (content or "").strip() in text
        assert all(call["function"]["name"] in text and "Oslo" in text for call in calls)
    return texts


@pytest.mark.parametrize("thinking", [None, False, True], ids=["default", "no-thinking", "thinking"])
@pytest.mark.parametrize("name", chat_templates.names() or ["none"])
def test_every_template_turn_and_setting(name: str, thinking: bool | None) -> None:
    if thinking is not None and "enable_thinking" not in chat_templates.source(name):
        pytest.skip("this template has no such setting")
    encoder = encoder_of(name, kwargs={} if thinking is None else {"enable_thinking": thinking})
    for kind, messages in CHATS.items():
        if thinking is False and "thoughts" in kind:
            continue
        if (name, "tools" if "tools" in kind else kind) in REFUSES:
            with pytest.raises(DataError,
                               match=r"row 1: .*(refuses these messages|does not write the call of weather)"):
                encoder.encode(conversation_of(row_of(messages), "messages"), "row 1")
            continue
        rows = encoder.encode(conversation_of(row_of(messages), "messages"), "row 1")
        texts = check(encoder, rows, messages)
        if thinking is None and "thoughts" not in kind:
            assert not any(mark in text for text in texts
                           for mark in ("<think>\n\n", "</think>")) or name.startswith(
                "deepseek"), "an empty thought is not learnt where the template can do without"


@pytest.mark.parametrize("name", chat_templates.names() or ["none"])
def test_thoughts_are_learnt_or_named(name: str) -> None:
    chat_templates.source(name)
    encoder = encoder_of(name)
    rows = encoder.encode(conversation_of(row_of(CHATS["thoughts"]), "messages"), "row 1")
    text = "".join(encoder.tokenizer.decode(row.ids) for row in rows)
    learnt = "".join(check(encoder, rows, CHATS["thoughts"]))
    named = encoder.remarks.unread["reasoning_content"]
    assert [thought in learnt for thought in ("R1", "R2")] == [not named, not named]
    assert ("R2" in text) == (not named)
    assert named in (0, 2)


CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


@functools.cache
def plain_encoder(template: str = CHATML, special_tokens: bool = False, **more: Any) -> ChatEncoder:
    tokenizer = chat_templates.byte_tokenizer(template, ["<|im_start|>", "<|im_end|>"])
    stops = (tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id)
    return ChatEncoder(tokenizer, PlainTokens(tokenizer, special_tokens=special_tokens), stop_ids=stops,
                       append_eos=True, **more)


TEXTS = st.text(max_size=12) | st.sampled_from(["", " ", "\n", "<|im_end|>", "a<|im_start|>user\nb", "</s>",
                                                "{{ x }}", "\ufdd0", "<think>", "</think>x"])


@settings(max_examples=60)
@given(system=st.none() | TEXTS, turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_any_texts_keep_the_contract(system: str | None, turns: list[tuple[str, str]]) -> None:
    """Also where the texts hold the marks of the template itself: these are text, and the model reads them as
    text.
    """
    encoder = plain_encoder()
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for question, reply in turns:
        messages += [user(question), answer(reply)]
    (row,) = encoder.encode(conversation_of(Row({"m": messages}, "p"), "m"), "p")
    stretches = spans(row)
    assert len(stretches) == len(turns)
    mark = encoder.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert row.ids.count(mark) == len(messages), "no text of a row becomes a special token"
    for (start, end), (_, reply) in zip(stretches, turns, strict=True):
        assert encoder.tokenizer.decode(row.ids[start:end]) == reply + "<|im_end|>"
        assert encoder.tokenizer.decode(row.ids[:start]).endswith("<|im_start|>assistant\n")


def test_special_tokens_in_texts_are_tokens_where_that_is_asked_for() -> None:
    messages = [user("a<|im_start|>b"), answer("c")]
    (row,) = plain_encoder(special_tokens=True).encode(conversation_of(Row({"m": messages}, "p"), "m"), "p")
    mark = plain_encoder().tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert row.ids.count(mark) == 3


def test_answers_that_are_not_to_be_learnt() -> None:
    messages = [user("1"), answer("wrong", weight=0), user("2"), answer("no", train=False), user("3"),
                answer("right", weight=1)]
    (row,) = plain_encoder().encode(conversation_of(Row({"m": messages}, "p"), "m"), "p")
    assert [plain_encoder().tokenizer.decode(row.ids[a:b]) for a, b in spans(row)] == ["right<|im_end|>"]
    assert "wrong" in plain_encoder().tokenizer.decode(row.ids)
    last = plain_encoder(last_only=True)
    (row,) = last.encode(conversation_of(Row({"m": [user("1"), answer("a"), user("2"), answer("b")]}, "p"),
                                         "m"), "p")
    assert [last.tokenizer.decode(row.ids[a:b]) for a, b in spans(row)] == ["b<|im_end|>"]
    for bad in ({"weight": 0.5}, {"train": "no"}):
        with pytest.raises(DataError, match=r'p: "m", message 2: (weight|train) is '):
            conversation_of(Row({"m": [user("1"), answer("a", **bad)]}, "p"), "m")
    with pytest.raises(DataError, match="no message of the assistant to learn"):
        plain_encoder().encode(conversation_of(Row({"m": [user("1"), answer("a", weight=0)]}, "p"), "m"), "p")


def test_an_answer_that_opens_a_conversation() -> None:
    """Here there is nothing before it, so this template writes an empty conversation for it."""
    refusing = plain_encoder("{% if not messages %}{{ raise_exception('nothing') }}{% endif %}" + CHATML)
    (row,) = refusing.encode(conversation_of(Row({"m": [answer("Hello!"), user("Q"), answer("A")]}, "p"),
                                             "m"), "p")
    assert [refusing.tokenizer.decode(row.ids[a:b]) for a, b in spans(row)] == ["A<|im_end|>"]
    assert refusing.remarks.opened == 1
    with pytest.raises(DataError, match="nothing before it"):
        refusing.encode(conversation_of(Row({"m": [answer("Hello!")]}, "p"), "m"), "p")


def test_what_the_template_does_not_read_is_counted() -> None:
    encoder = plain_encoder(CHATML + "{# 3 #}")
    messages = [{**user("Q"), "mood": "good", "name": "Ann"}, answer("A", reasoning_content="R", mood="bad")]
    encoder.encode(conversation_of(Row({"m": messages, "tools": TOOLS}, "p"), "m"), "p")
    assert encoder.remarks.unread == {"mood": 2, "name": 1, "reasoning_content": 1, "tools": 1}
    encoder.encode(conversation_of(Row({"m": [{**user("Q"), "mood": None}, answer("A")]}, "p"), "m"), "p")
    assert encoder.remarks.unread["mood"] == 2


def test_a_call_that_the_template_does_not_write_is_no_empty_answer() -> None:
    with pytest.raises(DataError,
                       match="message 2: the chat template of this base does not write the call of weather"):
        plain_encoder().encode(conversation_of(row_of(CHATS["tools"]), "messages"), "p")


@pytest.mark.parametrize(("messages", "says"), [
    ([{"role": "system", "content": "s"}, user("a"), answer("b")], "message of the system"),
    ([user("a"), user("b"), answer("c")], r"Messages 1 and 2 are both the user's"),
    ([answer("a"), answer("b")], "begins with the assistant")])
def test_a_refusal_says_what_to_do(messages: list[dict[str, Any]], says: str) -> None:
    encoder = plain_encoder("{{ raise_exception('the rule') }}")
    with pytest.raises(DataError, match=r"p: the chat template refuses these messages: the rule") as caught:
        encoder.encode(conversation_of(Row({"m": [*messages, user("x"), answer("y")]}, "p"), "m"), "p")
    assert __import__("re").search(says, caught.value.hint)


def test_an_answer_without_a_stop_token() -> None:
    template = CHATML.replace("<|im_end|>", "")
    tokenizer = chat_templates.byte_tokenizer(template, ["<|im_start|>"])
    plain = PlainTokens(tokenizer, special_tokens=False)
    talk = conversation_of(Row({"m": CHATS["two"]}, "p"), "m")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    (row,) = ChatEncoder(tokenizer, plain, stop_ids=[start], append_eos=True).encode(talk, "p")
    assert [tokenizer.decode(row.ids[a:b]) for a, b in spans(row)] == ["A1\n<|im_start|>", "A2\n<|im_start|>"]
    rows = ChatEncoder(tokenizer, plain, stop_ids=[tokenizer.eos_token_id], append_eos=True).encode(talk, "p")
    assert [tokenizer.decode(row.ids[a:b]) for row in rows
            for a, b in spans(row)] == ["A1\n<EOS>", "A2\n<EOS>"]
    with pytest.raises(RecipeError, match="ends an answer with no token on which generation stops"):
        ChatEncoder(tokenizer, plain, stop_ids=[], append_eos=True).encode(talk, "p")


FORMS: list[Any] = [
    [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
    [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
    [{"role": "User", "content": [{"type": "text", "text": "Q"}]}, {"role": "model", "content": ["A"]}],
    json.dumps([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]),
    {"role": ["user", "assistant"], "content": ["Q", "A"]},
    [{"role": "user", "content": "Q", "name": None},
     {"role": "assistant", "content": "A", "tool_calls": None}]]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: str(form)[:40])
def test_every_form_is_the_same_conversation(form: Any) -> None:
    def text(message: dict[str, Any]) -> str:
        content = message["content"]
        return content if isinstance(content, str) else "".join(part["text"] for part in content)

    found = conversation_of(Row({"m": form}, "p"), "m")
    assert [(message["role"], text(message))
            for message in found.messages] == [("user", "Q"), ("assistant", "A")]
    assert found.answers == (False, True)
    plain_encoder().encode(found, "p")


@pytest.mark.parametrize("calls", [
    CALL, json.dumps(CALL), [{"name": "weather", "arguments": CALL[0]["function"]["arguments"]}],
    [{"function": {"name": "weather", "arguments": json.dumps(CALL[0]["function"]["arguments"])}}],
    CALL[0]["function"]], ids=lambda calls: str(calls)[:40])
def test_every_form_of_a_call_is_the_same_call(calls: Any) -> None:
    found = conversation_of(Row({"m": [user("Q"), answer(None, tool_calls=calls)]}, "p"), "m")
    assert found.messages[1]["tool_calls"][0]["function"] == CALL[0]["function"]
    sharegpt = [{"from": "human", "value": "Q"},
                {"from": "function_call", "value": json.dumps(CALL[0]["function"])},
                {"from": "observation", "value": "cold"}]
    found = conversation_of(Row({"m": sharegpt}, "p"), "m")
    assert [message["role"] for message in found.messages] == ["user", "assistant", "tool"]
    assert found.messages[1]["tool_calls"][0]["function"] == CALL[0]["function"]


def test_nulls_of_arrow_are_taken_out_and_nulls_of_json_stay() -> None:
    arguments = {"city": "Oslo", "days": None, "place": {"x": None, "y": 1}}
    messages = [user("Q"), answer(None, tool_calls=[{"function": {"name": "f", "arguments": arguments}}])]
    tools = [{"type": "function",
              "function": {"name": "f", "parameters": {"properties": {"a": None, "b": {}}}}}]
    for from_arrow, wanted in ((True, {"city": "Oslo", "place": {"y": 1}}), (False, arguments)):
        found = conversation_of(Row({"m": messages, "tools": tools}, "p", from_arrow), "m")
        assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == wanted
        assert ("a" in found.tools[0]["function"]["parameters"]["properties"]) == (not from_arrow)


@pytest.mark.parametrize(("messages", "says"), [
    ([user("Q"), answer(None)], "message 2: its text is null, and it calls no tool"),
    ([user("Q"), answer("A"), {"role": "user", "content": None, "tool_calls": []}],
     "message 3: its text is null"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
     "part 1 of its content is 'image_url', not text"),
    ([user("Q"), answer(None, tool_calls=[{"arguments": {}}])], "message 2, tool call 1: names no function"),
    ([user("Q"), {"role": "narrator", "content": "x"}], "message 2: unknown speaker 'narrator'"),
    ("[1, 2", "not a list of messages"),
    ([user("Q"), answer("A", reasoning_content=3)], "its reasoning is int"),
    ([[user("Q")]], "message 1: list, not an object")], ids=lambda value: str(value)[:30])
def test_messages_that_make_no_sense_are_named(messages: Any, says: str) -> None:
    import re

    with pytest.raises(DataError, match=re.escape(says)) as caught:
        conversation_of(Row({"m": messages}, "chats.jsonl, line 3"), "m")
    assert caught.value.message.startswith('chats.jsonl, line 3: "m"')


@given(st.recursive(st.none() | st.booleans() | st.integers()
                    | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["role", "from", "content", "value", "tool_calls",
                                                       "name", "function", "arguments", "weight"]), inner,
                                      max_size=4), max_leaves=12))
def test_anything_in_a_column_is_a_conversation_or_is_refused(value: Any) -> None:
    try:
        found = conversation_of(Row({"m": value}, "p"), "m")
    except DataError as error:
        assert error.message.startswith("p: ")
    else:
        assert len(found.messages) == len(found.answers) > 0
        json.dumps(found.as_json())


def test_real_conversations_of_smollm2_s_template(tmp_path: Any) -> None:
    from conftest import ASSETS

    if not (ASSETS / "chat" / "sharegpt_500.json").is_file():
        pytest.skip(f"the real inputs are not here ({ASSETS})")
    rows = json.loads((ASSETS / "chat" / "sharegpt_500.json").read_text(encoding="utf-8"))
    encoder = plain_encoder()
    learnt = 0
    for number, values in enumerate(rows[:100]):
        talk = conversation_of(Row(values, f"row {number}"), "conversations")
        if not any(talk.answers):
            continue
        made = encoder.encode(talk, f"row {number}")
        learnt += sum(len(spans(row)) for row in made)
    assert learnt > 100
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_the_page_s_table_is_what_comes_out() -> None:
    """Where this fails: python docs/draw_chat_table.py"""
    from conftest import ROOT

    rows = [line.strip("|").split("|") for line in (ROOT / "docs" / "chat.md").read_text().splitlines()
            if line.startswith("| ")]
    told = {row[0].strip(): [cell.strip() for cell in row[1:6]] for row in rows[1:]}
    if not chat_templates.names():
        pytest.skip("TRL's chat templates are not here: pip install --no-deps trl==1.16.0")
    assert sorted(told) == chat_templates.names()
    for name in ("llama3_1", "qwen3", "gptoss", "gemma"):
        for kind, cell in zip(("two", "three", "thoughts", "tools", "thoughts and tools"), told[name],
                              strict=True):
            if cell == "refused":
                with pytest.raises(DataError):
                    encoder_of(name).encode(conversation_of(row_of(CHATS[kind]), "messages"), "row")
            else:
                assert len(encoder_of(name).encode(conversation_of(row_of(CHATS[kind]), "messages"),
                                                   "row")) == int(cell)


@pytest.mark.parametrize(("marked", "differs"), [
    (CHATML.replace("{{ m.content }}<|im_end|>",
                    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
                    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"), 0),
    (CHATML.replace("<|im_start|>{{ m.role }}\n",
                    "{% if m.role == 'assistant' %}{% generation %}<|im_start|>{{ m.role }}\n"
                    "{% endgeneration %}{% else %}<|im_start|>{{ m.role }}\n{% endif %}"), 2), (CHATML, 0)],
    ids=["agree", "differ", "none"])
def test_a_template_s_own_marks_are_compared(marked: str, differs: int) -> None:
    encoder = plain_encoder(marked)
    before = encoder.remarks.marked_otherwise
    (row,) = encoder.encode(conversation_of(Row({"m": CHATS["two"]}, "p"), "m"), "p")
    assert [encoder.tokenizer.decode(row.ids[a:b]) for a, b in spans(row)] == ["A1<|im_end|>", "A2<|im_end|>"]
    assert encoder.remarks.marked_otherwise - before == differs


def test_trl_s_marks_for_training_agree_with_what_is_learnt() -> None:
    """For chats without thoughts: there these templates are the models' own, with marks."""
    place = chat_templates.folder()
    if place is None:
        pytest.skip("TRL's chat templates are not here: pip install --no-deps trl==1.16.0")
    compared = []
    for path in sorted(place.glob("*_training.jinja")):
        if path.stem.removesuffix("_training") not in ("llama3", "qwen2_5", "gemma", "cohere", "lfm2",
                                                       "phi3"):
            continue
        encoder = encoder_of(path.stem)
        encoder.encode(conversation_of(row_of(CHATS["two"]), "messages"), "row 1")
        assert not encoder.remarks.marked_otherwise, path.stem
        compared.append(path.stem)
    assert len(compared) >= 5


def test_a_special_token_s_text_is_taken_as_the_rest_of_its_text_is() -> None:
    """Here with a tokenizer that puts a blank before every text, and one that joins blanks with what
    follows.
    """
    from conftest import ASSETS

    if not (ASSETS / "stories260K").is_dir():
        pytest.skip(f"the real inputs are not here ({ASSETS})")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "stories260K")
    plain = PlainTokens(tokenizer, special_tokens=False)
    text = "It is </s> and on"
    rendered = f"<s>user{plain.marked(text)}</s>"
    ids = plain.rendered_ids(rendered)
    assert tokenizer.decode(ids).count("</s>") == 2
    assert ids.count(tokenizer.eos_token_id) == 1
    inside = ids[1:-1]
    assert inside == tokenizer("user" + text, add_special_tokens=False,
                               split_special_tokens=True)["input_ids"]


def test_columns_of_a_row_are_read_or_named() -> None:
    encoder = plain_encoder(CHATML + "{# 9 #}")
    row = Row({"m": [user("Q"), answer("A")], "system": "Be brief.", "id": 3, "source": None,
               "functions": [{"name": "f", "parameters": {}}]}, "p")
    talk = conversation_of(row, "m")
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant"]
    assert talk.tools[0]["function"]["name"] == "f"
    encoder.encode(talk, "p")
    assert encoder.remarks.unused == {"id": 1}


def test_keys_are_read_where_they_make_a_difference() -> None:
    """The words of this template's text are no keys that it reads."""
    template = ("{{ 'name query' }}{% for m in messages %}{{ '<|im_start|>' + m.role }}"
                "{{ ' ' + m.name if m.name and m.role == 'tool' }}{{ '\n' }}"
                "{{ m.content or m.tool_calls[0].function.name }}<|im_end|>\n{% endfor %}"
                "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    encoder = plain_encoder(template)
    messages = [{**user("Q"), "name": "ann", "query": "lost"}, answer(None, tool_calls=CALL),
                {"role": "tool", "name": "weather", "content": {"t": 2}}, answer("A", name="bob")]
    (row,) = encoder.encode(conversation_of(Row({"m": messages}, "p"), "m"), "p")
    assert encoder.remarks.unread == {"name": 2, "query": 1}
    assert '<|im_start|>tool weather\n{"t": 2}' in encoder.tokenizer.decode(row.ids)


def test_a_thought_alone_is_no_empty_answer() -> None:
    for content in ("", None):
        with pytest.raises(DataError, match="message 2: this answer is a thought alone"):
            plain_encoder().encode(conversation_of(
                Row({"m": [user("Q"), answer(content, reasoning_content="hm")]}, "p"), "m"), "p")


def test_what_stands_behind_the_last_learnt_answer_is_not_missed() -> None:
    encoder = plain_encoder(CHATML + "{# 12 #}")
    messages = [user("Q1"), answer("A1"), user("Q2"), answer("no", weight=0), user("Q3")]
    encoder.encode(conversation_of(Row({"m": messages}, "p"), "m"), "p")
    assert not any(encoder.remarks.unwritten.values())


def test_why_a_conversation_became_several_rows() -> None:
    tokenizer = chat_templates.byte_tokenizer(CHATML.replace("<|im_end|>", ""), ["<|im_start|>"])
    encoder = ChatEncoder(tokenizer, PlainTokens(tokenizer, special_tokens=False),
                          stop_ids=[tokenizer.eos_token_id], append_eos=True)
    encoder.encode(conversation_of(Row({"m": CHATS["two"]}, "p"), "m"), "p")
    assert (encoder.remarks.split, encoder.remarks.split_by_end) == (1, 1)


def test_a_misspelt_variable_of_the_template_is_refused() -> None:
    encoder = plain_encoder(CHATML + "{% if enable_thinking %}{% endif %}", kwargs=None)
    encoder.encode(conversation_of(Row({"m": CHATS["one"]}, "p"), "m"), "p")
    tokenizer = encoder.tokenizer
    wrong = ChatEncoder(tokenizer, PlainTokens(tokenizer, special_tokens=False),
                        stop_ids=[tokenizer.eos_token_id], append_eos=True, kwargs={"enable_thinkin": False})
    with pytest.raises(RecipeError,
                       match="enable_thinkin: the chat template of this base has no such variable") as caught:
        wrong.encode(conversation_of(Row({"m": CHATS["one"]}, "p"), "m"), "p")
    assert "enable_thinking" in caught.value.hint


def test_nothing_of_an_answer_is_left_out() -> None:
    said = answer("I will call weather now.", tool_calls=CALL)
    with pytest.raises(DataError, match="does not write the call of weather"):
        plain_encoder().encode(conversation_of(Row({"m": [user("Q"), said]}, "p"), "m"), "p")
    cut = answer("It is <|im_end|> and more")
    with pytest.raises(DataError, match="has a token on which generation stops"):
        plain_encoder(special_tokens=True).encode(conversation_of(Row({"m": [user("Q"), cut]}, "p"), "m"),
                                                  "p")
    for twice in ({"role": "user", "content": "a", "value": "b"},
                  {"role": "user", "from": "gpt", "content": "a"}):
        with pytest.raises(DataError, match="has both"):
            conversation_of(Row({"m": [twice]}, "p"), "m")


def test_a_thought_beside_an_answer_in_parts() -> None:
    template = ("{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.reasoning_content or '' }}{{ "
                "m.content }}"
                "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif "
                "%}")
    said = answer(None, reasoning_content="R1") | {"content": [{"type": "text", "text": "A1"}]}
    (row,) = plain_encoder(template).encode(conversation_of(Row({"m": [user("Q"), said]}, "p"), "m"), "p")
    assert [plain_encoder(template).tokenizer.decode(row.ids[a:b])
            for a, b in spans(row)] == ["R1A1<|im_end|>"]
