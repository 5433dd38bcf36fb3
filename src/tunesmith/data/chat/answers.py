"""Which tokens of a conversation are answers: for each one what generation is given, and what it has to
produce.

For an answer at message i the template renders two texts: P, messages 0 to i - 1 with its generation prompt,
and F, messages 0 to i. Generation is given the tokens of P; what F has behind P, up to the first token on
which generation stops, is what it has to produce there. So the tokens of a row are those of P and of that
rest, and the rest alone bears loss. One row serves several answers where the tokens of each are a beginning
of the row's; where the template writes an earlier turn differently once others follow, that answer gets a row
of its own.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.chat.messages import Conversation, Message
from tunesmith.data.chat.plain import PlainTokens
from tunesmith.data.chat.profile import TemplateProfile
from tunesmith.data.chat.remarks import THINKING, ChatRemarks
from tunesmith.data.chat.render import Chat, TemplateRefused, TemplateRenderer, TemplateUnbounded
from tunesmith.errors import DataError, RecipeError

_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
#: A thought of no model's.
_PROBE = "qzthoughtq"
#: How far behind the place where two texts part the same mark may stand [characters].
_NEAR = 80
#: Of so many answers the template's own marks are compared with what is learnt.
_COMPARED = 20


@dataclass(frozen=True)
class ChatRow:
    """ids and loss_mask: of the row. prompt_ids, prompt: what generation is given before the row's last
    answer; reference: that answer, as generation would show it.
    """

    ids: list[int]
    loss_mask: list[bool]
    prompt_ids: list[int]
    prompt: str
    reference: str


@dataclass(frozen=True)
class _Answer:
    """index: of its message. ended: whether the end token was put behind it, which the template does not
    write.
    """

    index: int
    prompt_ids: list[int]
    ids: list[int]
    prompt: str
    ended: bool = False


class ChatEncoder:
    """Turns conversations into rows of tokens by a tokenizer's chat template.

    stop_ids: the tokens on which generation stops. kwargs: the recipe's variables for the template.
    append_eos: whether the tokenizer's end token is learnt where the template ends an answer with no stop
    token.
    """

    def __init__(self, tokenizer: Any, plain: PlainTokens, *, stop_ids: Sequence[int], append_eos: bool,
                 last_only: bool = False, kwargs: Mapping[str, Any] | None = None) -> None:
        self.tokenizer, self.plain, self.stop_ids = tokenizer, plain, set(stop_ids)
        self.append_eos, self.last_only = append_eos, last_only
        self.kwargs = dict(kwargs or {})
        self.renderer = TemplateRenderer(tokenizer)
        self.profile = TemplateProfile(self.renderer)
        self.remarks = ChatRemarks()
        self._compared, self._checked = 0, False

    def encode(self, conversation: Conversation, place: str, *, everything: bool = False) -> list[ChatRow]:
        """The rows of a conversation. everything: all of its tokens bear loss (`loss_on: all`), in one row.

        Raises DataError where the template refuses it or nothing is to be learnt, RecipeError where the
        tokenizer has no chat template, or an answer has no token on which generation stops.
        """
        if not self._checked:
            self._check_kwargs()
        if not getattr(self.tokenizer, "chat_template", None) and not self.profile.is_code:
            raise RecipeError("this base's tokenizer has no chat template",
                              "Use a chat model, or data.prompt and data.completion.", setting="model.base")
        learnt = [index for index, is_answer in enumerate(conversation.answers) if is_answer]
        if not learnt:
            raise DataError(f"{place}: no message of the assistant to learn")
        messages = self._as_read(conversation, place)
        answers = list(self._answers(conversation, messages, learnt[-1:] if self.last_only else learnt,
                                     place))
        if not answers:
            raise DataError(f"{place}: its only answer has nothing before it, and the chat template cannot "
                            "ask for it",
                            "Put a message of the user before it, or remove the row.")
        self._look_for_unwritten(messages[:answers[-1].index], answers[-1].prompt)
        if everything:
            return [self._whole(conversation, messages, answers[-1], place)]
        rows = list(_joined(answers))
        if len(rows) > 1:
            self.remarks.split += 1
            self.remarks.extra_rows += len(rows) - 1
            self.remarks.split_by_end += any(answer.ended for answer in answers[:-1])
        return [self._row(ids, mask, answer) for ids, mask, answer in rows]

    def _check_kwargs(self) -> None:
        """Raise RecipeError for a variable that the template does not have: it would change nothing."""
        self._checked = True
        for name in self.kwargs:
            if not self.profile.is_code and name not in self.profile.names:
                close = difflib.get_close_matches(name, self.profile.names, n=1)
                raise RecipeError(f"{name}: the chat template of this base has no such variable",
                                  f"Did you mean {close[0]}?" if close else "Leave it out.",
                                  setting="data.template_kwargs")

    def _as_read(self, conversation: Conversation, place: str) -> list[Message]:
        """The messages in the forms that the template wants; what it does not read is counted."""
        self.remarks.unused.update(conversation.unused)
        if conversation.tools and not self.profile.reads("tools"):
            self.remarks.unread["tools"] += 1
        try:
            for message in conversation.messages:
                self.remarks.unread.update(self.profile.unread(message))
            return [self._marked(self.profile.as_read(message)) for message in conversation.messages]
        except TemplateUnbounded as error:
            raise _unbounded(error, place) from None

    def _look_for_unwritten(self, messages: Sequence[Message], prompt: str) -> None:
        """Count the messages before the last answer whose text the template leaves out."""
        for message in messages:
            content = message["content"]
            texts = [part["text"] for part in content] if isinstance(content, list) else [content or ""]
            if message["role"] == "assistant":
                continue
            written = all(text.strip() in prompt
                          or json.dumps(text.strip(), ensure_ascii=False)[1:-1] in prompt
                          or json.dumps(text.strip())[1:-1] in prompt for text in texts)
            self.remarks.unwritten[message["role"]] += not written

    def _answers(self, conversation: Conversation, messages: list[Message], learnt: list[int],
                 place: str) -> Iterator[_Answer]:
        given = {**self.kwargs, **conversation.template_kwargs}
        asked = [(index, settings) for index in learnt for settings in self._settings(given, messages[index])]
        chats = [Chat(messages[:index + last], not last, conversation.tools, settings)
                 for index, settings in asked for last in (False, True)]
        texts = self._try_all(chats, place)
        for index in learnt:
            choices = [(settings, texts[2 * n], texts[2 * n + 1])
                       for n, (i, settings) in enumerate(asked) if i == index]
            if index == 0 and all(isinstance(prompt, TemplateRefused) for _, prompt, _ in choices):
                self.remarks.opened += 1
                continue
            yield self._answer(conversation, messages, index, choices, place)

    def _settings(self, given: Mapping[str, Any], message: Message) -> list[dict[str, Any]]:
        """The variables to try for an answer: unless the user decides, a thought is asked for where there is
        one.
        """
        if THINKING in given or not self.profile.reads(THINKING):
            return [dict(given)]
        return [dict(given), {**given, THINKING: bool(_thought(message)[0])}]

    def _answer(self, conversation: Conversation, messages: list[Message], index: int,
                choices: list[tuple[dict[str, Any], str | TemplateRefused, str | TemplateRefused]],
                place: str) -> _Answer:
        thought, text = _thought(self._marked(conversation.messages[index]))
        found: list[tuple[bool, int, bool, str, str, dict[str, Any]]] = []
        for settings, prompt, through in choices:
            for each in (prompt, through):
                if isinstance(each, TemplateRefused):
                    raise self._refused(each, conversation, place)
            rest, closed = _behind(str(prompt), str(through)), False
            if rest is None:
                rest, closed = self._otherwise(conversation, messages, index, settings, str(prompt), place)
            if rest is not None:
                # A thought that is there has to be written; else what the template writes of its own is least
                # where the setting fits the answer.
                found.append((thought.strip() not in rest, len(rest), closed, str(prompt), rest, settings))
        if not found:
            raise DataError(f"{place}: message {index + 1}: the chat template begins this answer differently "
                            "than it asks for it, so what the model would have to write cannot be told",
                            "Set data.template_kwargs as the template wants it for such answers, or "
                            "data.loss_on to all.")
        lost, _, closed, prompt, rest, settings = min(found, key=lambda each: each[:2])
        self.remarks.closed += closed
        self._require_written(messages[index], thought, text, rest, f"{place}: message {index + 1}")
        self._look_at_thought(conversation.messages[index], settings, lost=lost)
        if THINKING in settings and THINKING not in {**self.kwargs, **conversation.template_kwargs}:
            self.remarks.decided[str(settings[THINKING])] += 1
        self.remarks.settings[json.dumps(settings, sort_keys=True)] += 1
        prompt_ids, answer_ids = self._tokens(prompt, rest)
        if self.plain.special_tokens and self.plain.holds_stop(text, self.stop_ids):
            raise DataError(f"{place}: message {index + 1}: the answer's text has a token on which "
                            "generation stops: what stands behind it would never be said",
                            "Take it out of the text, or set data.special_tokens to false.")
        stop = next((at for at, token in enumerate(answer_ids) if token in self.stop_ids), None)
        if self._compared < _COMPARED:
            self._compare_marks(Chat(messages[:index + 1], False, conversation.tools, settings), rest)
        if stop is not None:
            return _Answer(index, prompt_ids, answer_ids[:stop + 1], prompt)
        end = self._end(conversation, messages, index, settings, place)
        return _Answer(index, prompt_ids, answer_ids + end, prompt, end == [self.tokenizer.eos_token_id])

    def _compare_marks(self, chat: Chat, rest: str) -> None:
        """Count an answer of which the template marks other text (`{% generation %}`) than the model has to
        write; white space and marks around it aside.
        """
        self._compared += 1
        marked = self.renderer.last_marked(chat)
        if marked is not None and not (marked.strip() and rest.strip().startswith(marked.strip())):
            self.remarks.marked_otherwise += 1

    def _otherwise(self, conversation: Conversation, messages: list[Message], index: int,
                   settings: dict[str, Any], prompt: str, place: str) -> tuple[str | None, bool]:
        """(what the model has to write where the template's two texts part before the answer, None where it
        cannot be told; whether it has to close a thought at once).

        Either the template takes thoughts out of earlier turns once the answer is there: then the answer is
        read off without them. Or it opens a thought when it asks for an answer that has none: then how it
        would close one is read off, and the model has to close it at once. Or it opens a thought and writes
        none ever (DeepSeek's): then the model writes it, or closes it at once, as these models do.
        """
        history = [_without_thought(message) for message in messages[:index]]
        answer, tools = messages[index], conversation.tools
        thought, _ = _thought(self._marked(conversation.messages[index]))
        key = None if thought else self.profile.thought_key
        closed = {**answer, key: _PROBE} if key else answer
        texts = self._try_all([Chat(history, True, tools, settings),
                               Chat([*history, answer], False, tools, settings),
                               Chat([*messages[:index], closed], False, tools, settings)], place)
        before, through, with_probe = (text if isinstance(text, str) else "" for text in texts)
        rest = _behind(before, through)
        if rest is not None and (before == prompt or thought):
            return rest, False
        rest = _behind(prompt, with_probe) if key else None
        if rest is not None and rest.startswith(_PROBE):
            return rest[len(_PROBE):], True
        opened = prompt.rstrip()
        if not opened.endswith("<think>") or not texts[1]:
            return None, False
        start = opened[:-len("<think>")]
        whole = self._try_all([Chat(messages[:index + 1], False, tools, settings)], place)[0]
        if not isinstance(whole, str) or not whole.startswith(start):
            return None, False
        return f"{thought.strip()}\n</think>\n\n{whole[len(start):].lstrip()}", not thought

    def _look_at_thought(self, message: Message, settings: Mapping[str, Any], *, lost: bool) -> None:
        """Count a thought that the template does not write, or that it takes from an answer's own text."""
        content = message.get("content")
        if lost and "reasoning_content" in message:
            if settings.get(THINKING) is False:
                self.remarks.thoughts_off += 1
            else:
                self.remarks.unread["reasoning_content"] += 1
        elif (isinstance(content, str) and "</think>" in content and "reasoning_content" not in message
              and not content.lstrip().startswith("<think>")):
            self.remarks.cut_thoughts += 1

    def _require_written(self, message: Message, thought: str, text: str, rest: str, where: str) -> None:
        """Raise DataError where the template leaves the answer, or a call in it, out: it would be learnt as
        empty.
        """
        names = [call["function"]["name"] for call in message.get("tool_calls", ())]
        own = text.strip()
        markup = rest.replace(own, "", 1) if own else rest
        if missing := [name for name in names if name not in markup]:
            raise DataError(f"{where}: the chat template of this base does not write the call of "
                            f"{missing[0]}: the answer would be learnt without it",
                            "Take a base whose template knows tool calls, or remove the row.")
        if not own and not names and thought.strip() not in rest:
            raise DataError(f"{where}: this answer is a thought alone, which the chat template of this base "
                            "does not write: an empty answer would be learnt",
                            "Give it an answer, or remove the row.")
        pieces = own.split("\n") if isinstance(message["content"], list) else [own]
        if any(piece.strip() not in rest for piece in pieces):
            raise DataError(f"{where}: the chat template of this base does not write this answer as it is",
                            "Look at it with tunesmith inspect, or remove the row.")

    def _tokens(self, prompt: str, rest: str) -> tuple[list[int], list[int]]:
        """The prompt's tokens as generation sends them, and those of what follows."""
        prompt_ids, whole = self._plain(prompt), self._plain(prompt + rest)
        if whole[:len(prompt_ids)] == prompt_ids:
            return prompt_ids, whole[len(prompt_ids):]
        # The two would melt into one token: behind a line break, which stands for itself, the rest is taken
        # alone.
        anchor = self._plain("\n")
        after = self._plain("\n" + rest)
        return prompt_ids, after[len(anchor):] if after[:len(anchor)] == anchor else self._plain(rest)

    def _plain(self, text: str) -> list[int]:
        return self.plain.rendered_ids(text)

    def _marked(self, value: Any) -> Any:
        """A message in whose texts special tokens are text."""
        if isinstance(value, str):
            return self.plain.marked(value)
        if isinstance(value, Mapping):
            return {key: self._marked(each) for key, each in value.items()}
        return [self._marked(each) for each in value] if isinstance(value, list) else value

    def _end(self, conversation: Conversation, messages: list[Message], index: int, settings: dict[str, Any],
             place: str) -> list[int]:
        """The token on which generation stops after an answer that the template ends with none.

        It is the one that begins the next turn, where generation stops on that; else the tokenizer's end
        token.
        """
        following = messages[index + 1:index + 2]
        if not following or following[0]["role"] == "assistant":
            role = "tool" if messages[index].get("tool_calls") else "user"
            following = [self.profile.as_read({"role": role, "content": "x"})]
        for turns in (messages[:index + 1], [*messages[:index], _without_thought(messages[index])]):
            chats = [Chat([*turns, *more], False, conversation.tools, settings) for more in ([], following)]
            through, further = self._try_all(chats, place)
            if isinstance(through, str) and isinstance(further, str) and further.startswith(through):
                ids, more = self._plain(through), self._plain(further)
                if more[:len(ids)] == ids and len(more) > len(ids) and more[len(ids)] in self.stop_ids:
                    return [more[len(ids)]]
        eos = self.tokenizer.eos_token_id
        if not self.append_eos:
            return []
        if eos is None or eos not in self.stop_ids:
            raise RecipeError("the chat template ends an answer with no token on which generation stops "
                              f"(it stops on {self._names(self.stop_ids) or 'no token'})",
                              "Set data.append_eos to false; answers will then not end by themselves.",
                              setting="data.messages")
        return [eos]

    def _names(self, ids: set[int]) -> str:
        return ", ".join(map(str, self.tokenizer.convert_ids_to_tokens(sorted(ids))))

    def _whole(self, conversation: Conversation, messages: list[Message], last: _Answer,
               place: str) -> ChatRow:
        """All of the conversation, every token of which bears loss."""
        given = {**self.kwargs, **conversation.template_kwargs}
        text = self._try_all([Chat(messages, False, conversation.tools, given)], place)[0]
        if isinstance(text, TemplateRefused):
            raise self._refused(text, conversation, place)
        ids = self._plain(text)
        eos = self.tokenizer.eos_token
        ends = not conversation.answers[-1] or (eos is not None and text.rstrip().endswith(eos))
        if self.append_eos and not ends and self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        return self._row(ids, [True] * len(ids), last)

    def _row(self, ids: list[int], mask: list[bool], last: _Answer) -> ChatRow:
        answer = last.ids[:-1] if last.ids and last.ids[-1] in self.stop_ids else last.ids
        return ChatRow(ids, mask, last.prompt_ids, self.plain.unmarked(last.prompt),
                       self.tokenizer.decode(answer, skip_special_tokens=True))

    def _try_all(self, chats: Sequence[Chat], place: str) -> list[str | TemplateRefused]:
        try:
            return self.renderer.try_all(chats)
        except TemplateUnbounded as error:
            raise _unbounded(error, place) from None

    def _refused(self, refusal: TemplateRefused, conversation: Conversation, place: str) -> DataError:
        """The template's own words, and what of the conversation it may mean."""
        return DataError(f"{place}: the chat template refuses these messages: {refusal}",
                         _advice(conversation.messages))


def _unbounded(error: TemplateUnbounded, place: str) -> DataError:
    return DataError(f"{place}: the chat template {error}",
                     "The template came with the base: take another copy of it, or another base.")


def _joined(answers: Sequence[_Answer]) -> Iterator[tuple[list[int], list[bool], _Answer]]:
    """The fewest rows that hold all answers, each with exactly its own tokens before it; in the order of
    their last answers.
    """
    rows: list[tuple[list[int], list[bool], _Answer]] = []
    for answer in reversed(answers):
        start, ids = len(answer.prompt_ids), answer.prompt_ids + answer.ids
        row = next((row for row in rows if row[0][:len(ids)] == ids), None)
        if row is None:
            row = (ids, [False] * len(ids), answer)
            rows.append(row)
        row[1][start:len(ids)] = [True] * len(answer.ids)
    yield from reversed(rows)


def _behind(prompt: str, through: str) -> str | None:
    """What `through` has behind the prompt; None where that cannot be told.

    White space at the prompt's end may differ, and what the prompt has more may stand a little later.
    """
    if through.startswith(prompt):
        return through[len(prompt):]
    pairs = enumerate(zip(prompt, through, strict=False))
    same = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(prompt), len(through)))
    if same and prompt[same - 1] == "<":  # two different marks
        same -= 1
    more, rest = prompt[same:], through[same:]
    if not more.strip():
        return rest
    before, mark, after = rest.partition(more)
    return after if mark and len(before) < _NEAR else None


def _without_thought(message: Message) -> Message:
    return {key: value for key, value in message.items() if key not in _THOUGHTS}


def _thought(message: Message) -> tuple[str, str]:
    """(the thought, the answer without it): of its own key, or written into the answer in `<think>` marks."""
    content = message.get("content") or ""
    text = "\n".join(str(part["text"]) for part in content) if isinstance(content, list) else str(content)
    for key in _THOUGHTS:
        if isinstance(message.get(key), str) and message[key].strip():
            return message[key], text
    if "</think>" in text:
        before, _, after = text.rpartition("</think>")
        return before.rpartition("<think>")[2], after
    return "", text


def _advice(messages: Sequence[Message]) -> str:
    """What of a conversation a template may refuse, and what to do about it."""
    roles = [message["role"] for message in messages]
    turns = [role for role in roles if role not in ("system", "developer")]
    twice = next((n for n in range(1, len(roles)) if roles[n] == roles[n - 1]
                  and roles[n] in ("user", "assistant")), None)
    if turns[:1] == ["assistant"]:
        return ("It begins with the assistant: put a message of the user before that, or remove the first "
                "answer.")
    if twice is not None:
        return (f"Messages {twice} and {twice + 1} are both the {roles[twice]}'s: join them, or remove one. "
                "Some templates want the turns to alternate.")
    if "system" in roles or "developer" in roles:
        return ("It has a message of the system, which some templates do not take, or take first alone: move "
                "its text into the first message of the user.")
    if "tool" in roles:
        return ("It has answers of tools, which some templates take only behind the call that they answer, "
                "or not at all.")
    return "Bring the messages into the form that the template wants."
