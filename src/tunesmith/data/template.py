"""Texts made of a row's columns: `{column}` in braces, or Jinja where a part is to be left out."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

from tunesmith.data.rows import Row
from tunesmith.errors import DataError, RecipeError
from tunesmith.visible import on_one_line

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
#: What makes a text a Jinja template: a statement, a comment, or an expression with blanks inside its braces.
_JINJA = re.compile(r"\{%|\{#|\{\{\s+[^{}]+\s+\}\}")
#: How long a Jinja text may become [characters].
_LONGEST = 64 << 20
#: The form of a column's name that stands in braces in the text itself.
LITERAL = "literal"
_JOIN = re.compile(r"join\((?P<quote>['\"])(?P<word>.*)(?P=quote)\)")


class Text(Protocol):
    """A text with columns. key: of the recipe. written: how columns that are no text were written, by column
    and form.
    """

    text: str
    key: str
    written: Counter[tuple[str, str]]

    @property
    def columns(self) -> list[str]:
        """The columns that it names."""
        ...

    def fill(self, row: Row) -> str:
        """The text for a row. Raises DataError."""
        ...


def text_of(text: str, key: str) -> Text:
    """A text of the recipe, with columns in braces or as Jinja. Raises RecipeError where it is neither."""
    return JinjaTemplate(text, key) if _JINJA.search(text) else Template(text, key)


class Template:
    """A text with columns in braces; `{{` and `}}` are the braces themselves.

    `{a.b}` is the key b of an object in column a. `{a|json}`, `{a|python}` and `{a|join(', ')}` choose how a
    value that is no text is written: as JSON, as Python's repr, or a list's items joined by a word. Raises
    RecipeError for unbalanced or empty braces.
    """

    def __init__(self, text: str, key: str) -> None:
        self.text, self.key = text, key
        self.written: Counter[tuple[str, str]] = Counter()
        self._parts: list[tuple[bool, str]] = []  # (is a column, its name or the literal text)
        position = 0
        for match in _PIECE.finditer(text):
            self._parts.append((False, text[position:match.start()]))
            position = match.end()
            piece = match.group()
            if piece in ("{{", "}}"):
                self._parts.append((False, piece[0]))
            elif match.group(1):
                self._parts.append((True, match.group(1)))
            else:
                raise RecipeError(f'{key}: "{text}": '
                                  f'a brace at character {match.start() + 1} names no column',
                                  "Write columns as {name}; braces themselves as {{ and }}.")
        self._parts.append((False, text[position:]))

    @property
    def columns(self) -> list[str]:
        """The columns that the template names, without the form that it chooses for them."""
        return [part.partition("|")[0] for is_column, part in self._parts if is_column]

    def fill(self, row: Row) -> str:
        """The text for a row. Raises DataError."""
        for name in self._in_braces:
            if name in row.values:  # most likely Jinja, or one brace too many
                self.written[name, LITERAL] += 1
        return "".join(self._value(row, part) if is_column else part for is_column, part in self._parts)

    @cached_property
    def _in_braces(self) -> list[str]:
        """What the text itself has in braces: `{{name}}`."""
        literal = "".join("\0" if is_column else part for is_column, part in self._parts)
        return sorted(set(re.findall(r"\{([^{}\0]+)\}", literal)))

    def only_column(self) -> str | None:
        """The column where the text is one and nothing else."""
        parts = [part for part in self._parts if part[1]]
        return parts[0][1] if len(parts) == 1 and parts[0][0] else None

    def _value(self, row: Row, name: str) -> str:
        if name in row.values:
            column, form = name, ""
        else:
            column, _, form = name.partition("|")
            _require_form(form.strip(), f"{self.key}: {{{name}}}")
        value = _looked_up(row, column.strip(), self)
        if value is None:
            raise DataError(f'{row.place}: the column "{column}" is null',
                            f"Fill it in, or leave it out where it is empty, with Jinja in {self.key}: "
                            f"{{% if {column} %}}...{{% endif %}}. data.bad_rows: skip leaves the row out.")
        if isinstance(value, str):
            return value
        if isinstance(value, bytes):
            return _decoded(value, f'{row.place}: the column "{column}"')
        if bad := _no_text(value):
            holds = "is" if isinstance(value, float) else "holds"
            raise DataError(f'{row.place}: the column "{column}" {holds} {bad}',
                            "Fill it in or remove the row.")
        text, written_as = _written(value, form.strip(), f"{row.place}: {self.key}: {{{name}}}")
        if not form.strip() and isinstance(value, list | dict | bool):
            self.written[column, written_as] += 1
        return text


def columns_of(row: Row) -> str:
    """The names of a row's columns, for a message."""
    shown = [on_one_line(str(name), 60) for name in row.values]
    return ", ".join(shown[:40] + ([f"... {len(shown) - 40} more"] if len(shown) > 40 else []))


def _looked_up(row: Row, column: str, template: Text) -> Any:
    """The value of a column, or of a key of an object in one."""
    if column in row.values:
        return row.values[column]
    value: Any = row.values
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise _no_column(row, column, template)
        value = value[part]
    return value


def _decoded(value: bytes, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DataError(f"{where} holds bytes that are no UTF-8 text: {value[:20]!r}",
                        "Write the column as text, or set data.bad_rows to skip.") from None


def _no_column(row: Row, column: str, template: Text) -> DataError:
    close = difflib.get_close_matches(column, list(row.values), n=1)
    meant = template.text.replace("{" + column + "}", "{" + close[0] + "}") if close else "..."
    return DataError(f'{row.place}: no column "{column}" (columns: {columns_of(row)}). The template is '
                     f'"{template.text}".',
                     f"Change {template.key} in the recipe, or: --set {template.key}='{meant}'")


def _no_text(value: Any) -> str | None:
    """nan, inf or bytes if a value is or holds that, which JSON has no word for."""
    if isinstance(value, float):
        return None if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return f"bytes that are no UTF-8 text ({len(value):,} of them)"
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((bad for item in inside if (bad := _no_text(item))), None)


def _require_form(form: str, where: str) -> None:
    if form not in ("", "json", "python") and not _JOIN.fullmatch(form):
        raise RecipeError(f"{where}: {form!r} is no form of a value",
                          "Known: {column|json}, {column|python}, {column|join(', ')}.")


def _written(value: Any, form: str, where: str) -> tuple[str, str]:
    """(a value that is no text, as text; in which form)."""
    if match := _JOIN.fullmatch(form):
        if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
            raise DataError(f"{where}: join needs a list of texts or numbers, this is {type(value).__name__}")
        return match["word"].join(map(str, value)), "joined"
    plain_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if form == "python" or (form == "" and (plain_list or not isinstance(value, list | dict | bool))):
        return str(value), "as Python writes it"
    return json.dumps(value, ensure_ascii=False, default=str), "as JSON"


class JinjaTemplate:
    """A text in Jinja, whose variables are the row's columns. It runs sandboxed; a column that is missing is
    an error, one that is null is empty.
    """

    def __init__(self, text: str, key: str) -> None:
        self.text, self.key = text, key
        self.written: Counter[tuple[str, str]] = Counter()
        self._compiled  # noqa: B018  so that a mistake is told before a row is read

    @cached_property
    def _compiled(self) -> Any:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined,
                                                    keep_trailing_newline=True, finalize=_as_text)
        environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
        try:
            return environment.from_string(self.text)
        except jinja2.TemplateSyntaxError as error:
            raise RecipeError(f"line {error.lineno}: {error.message}",
                              "It is taken for Jinja, because of {% or {{ with blanks: see docs/recipe.md.",
                              setting=self.key) from None

    @property
    def columns(self) -> list[str]:
        """The columns that the template names."""
        from jinja2 import Environment, meta

        return sorted(meta.find_undeclared_variables(Environment().parse(self.text)))

    def fill(self, row: Row) -> str:
        """The text for a row. Raises DataError."""
        import jinja2

        try:
            pieces, size = [], 0
            for piece in self._compiled.generate(row.values):
                size += len(piece)
                if size > _LONGEST:
                    raise DataError(f"{row.place}: {self.key}: the text is longer than {_LONGEST >> 20} MiB",
                                    "The template repeats something without an end, or the row is not one.")
                pieces.append(piece)
            return "".join(pieces)
        except jinja2.UndefinedError:
            missing = next((name for name in self.columns if name not in row.values), None)
            if missing is not None:
                raise _no_column(row, missing, self) from None
            raise DataError(f"{row.place}: {self.key}: a value that the template asks for is not "
                            "there") from None
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError,
                RecursionError) as error:
            raise DataError(f"{row.place}: {self.key}: {on_one_line(str(error))}",
                            "The template fails on this row.") from None


def _as_text(value: Any) -> Any:
    """What Jinja puts into the text for a value: nothing for null, JSON for what is no text."""
    if value is None:
        return ""
    if isinstance(value, bytes | list | dict) and (bad := _no_text(value)):
        raise ValueError(f"a column holds {bad}")
    if isinstance(value,
                  bool | dict) or (isinstance(value, list) and not all(isinstance(x, str) for x in value)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value
