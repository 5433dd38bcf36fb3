"""The Modelfile with which Ollama takes a GGUF in: https://docs.ollama.com/modelfile."""

from __future__ import annotations

import re
from typing import Any

from tunesmith.data.rows import Row
from tunesmith.data.template import Template
from tunesmith.errors import RecipeError, TunesmithError

#: What the recipes' prompts are cut at; no text has it.
_MARKER = "\0here\0"
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
#: How each known format writes a message, and what stands in front of an answer: texts as Go's templates have
#: them.
_FORMATS = {
    "ChatML": ("<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n"),
    "Llama 3": ("<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
                "<|start_header_id|>assistant<|end_header_id|>\n\n"),
}


def modelfile(gguf_name: str, *, template: str | None, prompt: str | None, stop: list[str],
              adapter_name: str | None) -> str:
    """The text of a Modelfile.

    gguf_name: the file of the model, beside the Modelfile. adapter_name: the file of a LoRA on it. prompt:
    how the recipe writes a prompt; the user's text takes the place of its column. template: else, the chat
    template (Jinja) of the tokenizer. stop: texts that end an answer. What Ollama cannot be told is left out,
    with a comment that says so. Raises RecipeError for a name or a stop text that a Modelfile cannot hold.
    """
    lines, notes = [f"FROM {_file(gguf_name)}"], []
    if adapter_name is not None:
        lines.append(f"ADAPTER {_file(adapter_name)}")
    if prompt:
        text, note = _prompt_template(prompt)
    elif template:
        text, note = _chat_template(template)
    else:
        text, note = "{{ .Prompt }}", None
    if note:
        notes.append(f"# {note}")
    if text is not None:
        lines.append(f'TEMPLATE """{text}"""')
    lines += [f"PARAMETER stop {_quoted(each)}" for each in stop]
    return "\n".join(notes + lines) + "\n"


def _file(name: str) -> str:
    if not name or any(char.isspace() or not char.isprintable() or char == '"' for char in name):
        raise RecipeError(f"Modelfile: {name!r} is not a file name that it can hold",
                          "Take one without spaces and quotes.")
    return name if name.startswith((".", "/", "~")) else f"./{name}"


def _quoted(text: str) -> str:
    """A value as Ollama's parser unquotes it: no escapes, unprintables dropped, trimmed around quotes."""
    if '"""' in text or any(not char.isprintable() and char not in "\n\t" for char in text) or not text:
        raise RecipeError(f"Modelfile: the stop text {text!r} cannot be written there",
                          "Leave it out, and stop by the end token.")
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'


def _literal(text: str) -> str:
    """Text as it stands in a Go template inside triple quotes: braces, triple quotes and what Ollama's parser
    would drop, because it cannot be printed, become Go strings.
    """
    return "".join(piece if piece in ("\n", "\t") or (piece.isprintable() and piece not in ("{", '"""'))
                   else _go_string(piece)
                   for piece in re.findall(r'"""|.', text, re.DOTALL))


def _go_string(text: str) -> str:
    points = "".join(char if char.isprintable() and char != '"' else f"\\U{ord(char):08x}" for char in text)
    return '{{ "' + points + '" }}'


def _prompt_template(prompt: str) -> tuple[str | None, str | None]:
    """(the template with the user's text where the recipe's column was, a note)."""
    parsed = Template(prompt, "data.prompt")
    columns = list(dict.fromkeys(parsed.columns))
    if len(columns) != 1:
        return "{{ .Prompt }}", (f"The prompts of the recipe have {len(columns) or 'no'} columns; Ollama has "
                                 "one text. Send it the whole prompt.")
    filled = parsed.fill(Row({columns[0]: _MARKER}, "the recipe"))
    return "{{ .Prompt }}".join(_literal(piece) for piece in filled.split(_MARKER)), None


def _chat_template(template: str) -> tuple[str | None, str | None]:
    """(the Go template of a known chat format, told by what the Jinja template writes, or None; a note)."""
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"},
                {"role": "assistant", "content": "A"}, {"role": "user", "content": "V"}]
    whole, bare = _render(template, messages), _render(template, messages[1:])
    for message, answer in _FORMATS.values():
        written = [message.format(**each) for each in messages]
        if whole != "".join(written) + answer or bare is None:
            continue
        default = bare.removesuffix("".join(written[1:]) + answer)
        if default == bare:
            continue
        go = message.replace("{role}", "{{ .Role }}").replace("{content}", "{{ .Content }}")
        system_part = "{{ if not .System }}" + _literal(default) + "{{ end }}" if default else ""
        return f"{system_part}{{{{ range .Messages }}}}{go}{{{{ end }}}}{answer}", None
    return None, ("The chat template of the tokenizer is none that this can translate for Ollama; "
                  "it reads the one inside the GGUF, or takes a TEMPLATE that you write.")


def _render(template: str, messages: list[dict[str, str]]) -> str | None:
    """What a chat template writes, with a place for the answer, without bos; None when it fails."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment: Any = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                     extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = refuse
    try:
        compiled = environment.from_string(_GENERATION.sub("", template))
        return str(compiled.render(messages=messages, add_generation_prompt=True, bos_token="",
                                   eos_token="<eos>"))
    except TunesmithError:  # a signal of the user's
        raise
    except Exception:  # a template is a program of its own, and may raise anything
        return None
