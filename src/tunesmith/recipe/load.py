"""Reads recipes: YAML 1.2, `--set a.b=c`, and errors that name the key, the line and the likely meaning."""

from __future__ import annotations

import difflib
import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tunesmith.errors import RecipeError
from tunesmith.model.quantization import WAYS
from tunesmith.paths import close_file, expanded
from tunesmith.recipe.schema import Recipe

Key = tuple[str | int, ...]
#: No recipe is longer than this.
_MOST_CHARACTERS = 1 << 20

#: Settings that may differ when a run is resumed: they change neither adapter nor order of the samples.
HARMLESS = ("share.", "judge.", "train.micro_batch_size", "train.save_steps", "train.eval_steps",
            "train.save_total_limit")


#: What other programs call a setting, or people by habit.
_CALLED_ELSEWHERE = {
    "lr": "train.learning_rate", "epochs": "train.num_epochs", "num_train_epochs": "train.num_epochs",
    "steps": "train.max_steps", "scheduler": "train.lr_scheduler", "lr_scheduler_type": "train.lr_scheduler",
    "warmup": "train.warmup_steps", "per_device_train_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size (samples a step)", "lora_r": "lora.r", "rank": "lora.r",
    "lora_rank": "lora.r", "lora_alpha": "lora.alpha", "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules", "base_model": "model.base",
    "model_name_or_path": "model.base", "dataset": "data.source", "path": "data.source",
    "max_seq_length": "data.max_length", "cutoff_len": "data.max_length", "sequence_len": "data.max_length",
    "val_set_size": "data.validation", "test_size": "data.validation", "train_on_inputs": "data.loss_on",
    "torch_dtype": "model.dtype", "bf16": "model.dtype: bfloat16", "fp16": "model.dtype: float16",
    "hub_model_id": "share.repo", "push_to_hub": "share.repo",
    "logging_steps": "nothing: every step is in metrics.jsonl",
    **{name: f"model.quantization: {way.name}" for way in WAYS.values() for name in way.also_called},
}


#: How pydantic begins to say which values a setting takes.
_SHOULD_BE = "Input should be "


class _Loader(yaml.SafeLoader):
    """SafeLoader (no tags that build objects) with YAML 1.2's numbers and booleans, and no repeated keys."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers
            if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:int",
                           "tag:yaml.org,2002:timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
                              list("tTfF"))
_Loader.add_implicit_resolver(  # YAML 1.1 reads 010 as 8, 1:30 as 90 and 1_000 as 1000
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$|^0o[0-7]+$|^0x[0-9a-fA-F]+$"), list("-+0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(
    node.value, 0 if node.value[:2] in ("0o", "0x") else 10))
_Loader.add_implicit_resolver(  # 2e-4 is a number here; YAML 1.1 reads it as text
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?$"
               r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"), list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as a number or a boolean."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def write_yaml(value: Any, **options: Any) -> str:
    """A value as YAML text that `parse_recipe` reads back as the same. options: as of yaml.dump."""
    return str(yaml.dump(value, Dumper=_Dumper, allow_unicode=True, width=float("inf"), **options))


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
            raise yaml.constructor.ConstructorError(None, None, "a setting's name is plain text",
                                                    key_node.start_mark)
        if key_node.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"`{key_node.value}` is set twice",
                                                    key_node.start_mark)
        seen.add(key_node.value)
    return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _parse_yaml(text: str, name: str) -> tuple[Any, dict[Key, int]]:
    """The value of a YAML text, and the line of each of its keys."""
    if len(text) > _MOST_CHARACTERS:
        raise RecipeError(f"{name}: {len(text):,} characters long: a recipe never is")
    try:
        _refuse_aliases_and_tags(text)
        node = yaml.compose(text, Loader=_Loader)
        return yaml.load(text, Loader=_Loader), dict(_key_lines(node, ()))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}, line {mark.line + 1}" if mark else name
        problem = error.problem or "not readable as YAML"
        hint = ("A recipe is plain text, numbers, true, false, null and lists." if "the YAML tag" in problem
                else "Compare with a fresh one: tunesmith init")
        raise RecipeError(f"{where}: {problem}", hint) from None
    except (yaml.YAMLError, RecursionError, ValueError, KeyError, IndexError, AttributeError,
            TypeError) as error:
        problem = "a number of thousands of digits" if "set_int_max_str_digits" in str(error) else str(error)
        raise RecipeError(f"{name}: not readable as YAML: {problem}",
                          "Compare with a fresh one: tunesmith init") from None


def _refuse_aliases_and_tags(text: str) -> None:
    """A recipe has no use for either: a few aliases of aliases stand for billions of values, and tags build
    objects or read numbers by the rules of YAML 1.1 (`!!float 1:30` is 90). !!str, which changes nothing but
    the kind, is let through.
    """
    for event in yaml.parse(text, Loader=_Loader):
        tag = getattr(event, "tag", None)
        problem = (f"the alias *{event.anchor}: write the value itself" if isinstance(event, yaml.AliasEvent)
                   else f"the YAML tag {tag} is not allowed"
                   if tag not in (None, "!", "tag:yaml.org,2002:str") else None)
        if problem:
            raise yaml.MarkedYAMLError(
                problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]


def _key_lines(node: yaml.Node | None, prefix: Key) -> Iterator[tuple[Key, int]]:
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            path = (*prefix, str(key_node.value))
            yield path, key_node.start_mark.line + 1
            if len(path) < 4:  # a recipe is two levels deep; this also ends on an alias that contains itself
                yield from _key_lines(value, path)


def parse_recipe(text: str, *, name: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from YAML text.

    name: how errors call the text (its file).
    overrides: `section.key=value` words as given to --set; values are read as YAML.
    Raises RecipeError for anything that is not a valid recipe, all problems at once.
    """
    values, lines = _parse_yaml(text, name)
    if not isinstance(values, dict):
        raise RecipeError(f"{name}: a recipe is sections of settings, this is {type(values).__name__}",
                          "Write a commented one: tunesmith init")
    # a section whose settings are comments
    values = {key: {} if value is None else value for key, value in values.items()}
    source: dict[Key, str] = {}
    for override in overrides:
        _apply_override(values, override, source)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem, name, lines, source) for problem in _one_a_setting(error.errors())]
        raise RecipeError("\n".join(dict.fromkeys(problems))) from None


def _apply_override(values: dict[str, Any], override: str, source: dict[Key, str]) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or len(parts) != 2 or not all(parts):
        raise RecipeError(f"--set {override}: not of the form section.key=value",
                          "For example: --set train.learning_rate=1e-4")
    value = _override_value(text, mapping=parts in _MAPPINGS)
    section = values.setdefault(parts[0], {})
    if section is None:
        section = values[parts[0]] = {}
    if isinstance(section, dict):
        section[parts[1]] = value
        source[tuple(parts)] = f"--set {override}"


#: The settings that are mappings.
_MAPPINGS = (["data", "chat"], ["data", "template_kwargs"])


def _override_value(text: str, *, mapping: bool) -> Any:
    """The value of a --set word: as YAML, or the text itself where YAML would make of it what nobody means.

    A template such as `{tags}` or `Q: {question}` is a mapping to YAML; where no mapping is wanted, it is
    taken as text.
    """
    try:
        _refuse_aliases_and_tags(text)
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError, KeyError, IndexError, AttributeError, TypeError):
        return text
    if (isinstance(value, dict) and not mapping) or (value is None and text.strip() not in ("null", "~")):
        return text
    return value


def _one_a_setting(problems: Sequence[Any]) -> list[Any]:
    """pydantic's problems, where those of a setting of several kinds (a union), one a kind, are one."""
    merged: dict[Any, Any] = {}
    for problem in problems:
        key = (problem["loc"][:2], problem["msg"].startswith(_SHOULD_BE))
        if key[1] and key in merged:
            merged[key] = merged[key] | {"msg": f"{merged[key]['msg']} or "
                                                f"{problem['msg'].removeprefix(_SHOULD_BE)}"}
        else:
            merged[key if key[1] else len(merged)] = problem
    return list(merged.values())


def _explain(problem: Any, name: str, lines: dict[Key, int], source: dict[Key, str]) -> str:
    """One pydantic problem as a sentence: where, what, and what was probably meant."""
    path = tuple(part for part in problem["loc"])
    # A problem of a union's member has the member's name at the end of the path.
    key: Key = path[:2]
    if key == ("data", "chat") and len(path) > 2 and problem["type"] in ("extra_forbidden", "missing"):
        key = path[:3]  # the one section in a section
    dotted = ".".join(str(part) for part in key)
    where = source.get(key) or (f"{name}, line {lines[key]}" if key in lines else name)
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return f"{where}: {dotted}: no such setting.{_suggestion(key)}"
    if kind == "missing":
        return f"{where}: {dotted} is missing. {_field_help(key)}".rstrip()
    if kind == "value_error":
        return f"{where}: {dotted}: {problem['ctx']['error']}"
    if kind == "model_type":
        return f"{where}: {dotted}: a section of settings, not {given!r}"
    if key == ("model", "device"):
        if str(given).startswith(("mps", "metal")):
            return (f"{where}: {dotted}: {given!r}: Apple GPUs (Metal) are not supported. cpu computes on "
                    "the same machine; auto takes what is there.")
        return (f"{where}: {dotted}: {given!r} is none of auto, cpu, "
                "cuda and cuda:N (the GPU number N, from 0)")
    limit = problem["msg"].removeprefix(_SHOULD_BE)
    return f"{where}: {dotted}: {given!r} does not fit, it should be {limit}. ({_field_help(key)})"


def section_fields(section: str) -> dict[str, Any]:
    """The settings of a section by name, as pydantic fields; empty for an unknown section."""
    field = Recipe.model_fields.get(section)
    kind = field.annotation if field else None
    return dict(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else {}


def _field_help(key: Key) -> str:
    field = section_fields(str(key[0])).get(str(key[1])) if len(key) > 1 else None
    return str(field.description) if field else ""


def _suggestion(key: Key) -> str:
    last = str(key[-1])
    if len(key) == 3:
        return " Known here: system, user and assistant."
    if meant := _CALLED_ELSEWHERE.get(last.lower()):
        return f" Did you mean {meant}?"
    siblings = list(section_fields(str(key[0]))) if len(key) > 1 else list(Recipe.model_fields)
    close = difflib.get_close_matches(last, siblings, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]}?"
    everywhere = {field: section for section in Recipe.model_fields for field in section_fields(section)}
    close = difflib.get_close_matches(last, list(everywhere), n=1, cutoff=0.75)
    if close:
        return f" Did you mean {everywhere[close[0]]}.{close[0]}?"
    return f" Known here: {', '.join(siblings)}."


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, its local paths made absolute (looked for here, then in the recipe's folder).

    Raises RecipeError when the file cannot be read or is not a valid recipe.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe",
                          f"{close_file(path)}Write one: tunesmith init {path}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: a folder, not a recipe",
                          f"Write one: tunesmith init {path}/recipe.yaml") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}, line {line}: not UTF-8 text", "Save the file as UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    recipe = parse_recipe(text, name=str(path), overrides=overrides)
    return _absolute(recipe, path.parent)


def _absolute(recipe: Recipe, folder: Path) -> Recipe:
    def local(value: str) -> str:
        if value.startswith("embedded:"):
            return value
        for start in (Path.cwd(), folder):
            candidate = start / expanded(value)
            if candidate.exists() or (glob.has_magic(value) and glob.glob(str(candidate), recursive=True)):
                return str(candidate.absolute()) if glob.has_magic(value) else str(candidate.resolve())
        return value

    def each(value: Any) -> Any:
        return [local(one) for one in value] if isinstance(value, list) else local(value)

    data = {"source": each(recipe.data.source)}
    held_out = recipe.data.validation
    if isinstance(held_out, list) or (isinstance(held_out, str) and not held_out.startswith("split:")):
        data["validation"] = each(held_out)
    return recipe.model_copy(update={
        "model": recipe.model.model_copy(update={"base": local(recipe.model.base)}),
        "data": recipe.data.model_copy(update=data),
    })


def dump(recipe: Recipe) -> str:
    """The recipe as YAML with every setting written out."""
    return write_yaml(recipe.model_dump(), sort_keys=False)


def differences(then: Recipe, now: Recipe) -> list[str]:
    """What makes `now` another experiment than `then`, one line a setting; empty if it may resume the run."""
    lines = []
    before, after = then.model_dump(), now.model_dump()
    for section in before:
        for key, value in before[section].items():
            name = f"{section}.{key}"
            if value != after[section][key] and not name.startswith(HARMLESS):
                gone = isinstance(value, str) and os.path.isabs(value) and not os.path.lexists(value)
                lines.append(f"{name}: the run has {_shown(value)}"
                             f"{', which is not there any more' if gone else ''}, "
                             f"the recipe says {_shown(after[section][key])}")
    return lines


def _shown(value: Any) -> str:
    """A value as a recipe has it."""
    return repr(value) if isinstance(value, str) else json.dumps(value)
