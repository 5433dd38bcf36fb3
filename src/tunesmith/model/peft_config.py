"""The settings of a PEFT LoRA adapter: one table of what each may be, and of who follows it.

PEFT acts on what an adapter's config says: it imports a module that is named there, compiles patterns,
repeats layers of the base, decomposes its weights. A config may come from anybody, so PEFT sees only what
this table knows to be data; everything else is refused by name, unless it says nothing (null, false, empty,
or PEFT's own default).
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
)

from tunesmith.errors import IntegrityError

#: More modules than any model has, and longer than any module's name or sensible pattern.
_MOST_NAMES, _MOST_CHARACTERS = 20_000, 1_000
#: How long all patterns of an adapter may take on all module names of a base [s], and the memory for it
#: [bytes].
_MATCH_S, _MATCH_BYTES = 10.0, 1 << 30

Name = Annotated[str, StringConstraints(min_length=1, max_length=_MOST_CHARACTERS)]
Names = Annotated[list[Name], Field(max_length=_MOST_NAMES)]
#: PEFT puts these into regular expressions of its own as they stand.
PlainName = Annotated[str, StringConstraints(min_length=1, max_length=_MOST_CHARACTERS, pattern=r"^[\w.-]+$")]
PlainNames = Annotated[list[PlainName], Field(max_length=_MOST_NAMES)]
Rank = Annotated[int, Field(ge=1, le=1 << 16)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Index = Annotated[int, Field(ge=0, lt=1 << 24)]
Indices = Annotated[list[Index], Field(max_length=1 << 20)]


def _known_init(value: Any) -> Any:
    """Ways to begin that need no data and no long computation; what was learnt is copied over them, or
    (pissa, olora) they split the base's weights as in training.
    """
    known = r"gaussian|orthogonal|eva|pissa|pissa_niter_[1-9]\d?|olora"
    if isinstance(value, str) and not re.fullmatch(known, value):
        raise ValueError(
            "true, false, gaussian, orthogonal, eva, pissa, pissa_niter_N (N below 100) or olora")
    return value


#: Who follows a setting, whatever it says: the native engine, merging into the base's weights, llama.cpp's
#: adapters.
NATIVE, MERGE, GGUF = "native", "merge", "gguf"
ALL, NOT_NATIVE, NONE = frozenset({NATIVE, MERGE, GGUF}), frozenset({MERGE, GGUF}), frozenset[str]()


@dataclass(frozen=True)
class Setting:
    """One key of adapter_config.json.

    default: its value in an adapter that asks for nothing special, as PEFT writes it. value_type: what it may
    be for PEFT to see it, as a type of pydantic; None where it may only have no effect. followed_by: who does
    what it says, whatever that is; others take the adapter only where it has no effect. reason: why a merge
    cannot follow it. required: a config without it is none. passed_to_peft: whether PEFT sees it.
    written_by_peft: whether PEFT 0.21 writes it.
    """

    default: Any = None
    value_type: Any = None
    followed_by: frozenset[str] = NONE
    reason: str = "what it does to the weights is not known here"
    required: bool = False
    passed_to_peft: bool = True
    written_by_peft: bool = True

    def has_no_effect(self, value: Any) -> bool:
        """Whether an adapter with this value is as one without it."""
        return bool(value == self.default or (not value and not self.default))


#: Every setting that PEFT writes, or wrote, of a LoRA adapter (https://huggingface.co/docs/peft).
SETTINGS: dict[str, Setting] = {
    # What it is, and of what.
    "peft_type": Setting("LORA", Literal["LORA"], ALL, required=True),
    "task_type": Setting(None, Literal["CAUSAL_LM"] | None, ALL),
    "peft_version": Setting(importlib.metadata.version("peft"), str | None, ALL),
    "base_model_name_or_path": Setting(None, str | None, ALL),
    "revision": Setting(None, str | None, ALL),
    "inference_mode": Setting(False, bool, ALL),
    # The update, and where it is.
    "r": Setting(8, Rank, ALL, required=True),
    "lora_alpha": Setting(8, Finite, ALL, required=True),
    "lora_dropout": Setting(0.0, Annotated[Finite, Field(ge=0, lt=1)], ALL),
    "target_modules": Setting(None, Name | Names | None, ALL),
    "exclude_modules": Setting(None, Name | Names | None, NOT_NATIVE),
    "layers_to_transform": Setting(None, Annotated[int, Field(ge=0, lt=100_000)] | Indices | None,
                                   NOT_NATIVE),
    "layers_pattern": Setting(None, PlainName | PlainNames | None, NOT_NATIVE),
    "rank_pattern": Setting({}, Annotated[dict[Name, Rank], Field(max_length=_MOST_NAMES)] | None,
                            NOT_NATIVE),
    "alpha_pattern": Setting({}, Annotated[dict[Name, Finite], Field(max_length=_MOST_NAMES)] | None,
                             NOT_NATIVE),
    "use_rslora": Setting(False, bool, NOT_NATIVE),
    "fan_in_fan_out": Setting(False, bool, frozenset({MERGE})),
    # How it began; `changes_base` says for which values more than the adapter was changed.
    "init_lora_weights": Setting(True, Annotated[bool | str | None, AfterValidator(_known_init)], ALL),
    # PEFT makes one for init_lora_weights: eva where there is none; the native engine takes none.
    "eva_config": Setting(None, dict[str, Any] | None, NOT_NATIVE, passed_to_peft=False),
    # What more was learnt than B A beside a frozen weight.
    "modules_to_save": Setting(None, PlainNames | None, frozenset({MERGE})),
    "ensure_weight_tying": Setting(False, bool, NOT_NATIVE),
    "bias": Setting("none", Literal["none", "all", "lora_only"], reason="it learnt biases of the base"),
    "lora_bias": Setting(False, bool, reason="it has biases of its own"),
    "use_dora": Setting(False, bool, reason="DoRA scales whole columns as well, which W + B A does not say"),
    "target_parameters": Setting(None, Names | None, reason="it sits on parameters, not on layers"),
    "trainable_token_indices": Setting(None, Indices | dict[Name, Indices] | None,
                                       reason="it learnt single tokens of the embedding"),
    "alora_invocation_tokens": Setting(None, Indices | None,
                                       reason="it only acts after an invocation, so no fixed weight says the "
                                       "same"),
    # What PEFT never sees from here: it would import modules, repeat layers, decompose the base's weights.
    "megatron_core": Setting("megatron.core"),
    "qalora_group_size": Setting(16),
    "loftq_config": Setting({}),
    "use_qalora": Setting(False),
    "runtime_config": Setting({"ephemeral_gpu_offload": False}, written_by_peft=False),
    **dict.fromkeys("arrow_config auto_mapping corda_config kasa_config layer_replication lora_ga_config "
                    "megatron_config monteclora_config use_bdlora velora_config".split(), Setting()),
}
#: Their values in an adapter that asks for nothing special: to the letter what PEFT's
#: `LoraConfig().to_dict()` is.
PEFT_DEFAULTS: dict[str, Any] = {
    name: setting.default for name, setting in SETTINGS.items() if setting.written_by_peft}

#: A config as far as it is understood here. Strict: a number is a number, and what is not named is refused.
PeftConfig: type[BaseModel] = create_model(
    "PeftConfig", __config__=ConfigDict(extra="forbid", strict=True),
    **{name: (setting.value_type, ... if setting.required else setting.default)
       for name, setting in SETTINGS.items()
       if setting.value_type is not None})  # type: ignore[call-overload]

#: Values with which a setting that is not understood has no effect, besides its own default.
_NO_EFFECT: tuple[Any, ...] = (None, False, [], {}, "")
#: Settings of other programs, or of older ones, with what to do about them.
_HINTS = {
    "enable_lora": "Old adapters of this kind (MergedLinear) have to be saved again with a current peft."}


def changes_base(init: Any) -> bool:
    """Whether training with this `init_lora_weights` began by changing the base's own weights."""
    return init not in (True, False, None, "gaussian", "eva", "orthogonal")


def unsupported_setting(config: Mapping[str, Any], consumer: str) -> str | None:
    """The first setting that the consumer (NATIVE, MERGE or GGUF) does not follow; None where it follows all.

    config: one that is `understood`. How the adapter began is left to `changes_base`.
    """
    return next((name for name, value in sorted(config.items())
                 if name in SETTINGS and consumer not in SETTINGS[name].followed_by
                 and not SETTINGS[name].has_no_effect(value)), None)


def understood(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings that say something, all of them known. config: what stands in `path`.

    Raises IntegrityError naming every setting that is not understood, or the first that is of a wrong kind.
    """
    fields = PeftConfig.model_fields
    unknown = sorted(key for key, value in config.items() if key not in fields and not any(
        value is each or (value == each and type(value) is type(each))
        for each in (*_NO_EFFECT, *([SETTINGS[key].default] if key in SETTINGS else []))))
    if unknown:
        hint = next((_HINTS[key] for key in unknown if key in _HINTS),
                    "An adapter is data: what would run code, or is not known here, is not handed on to "
                    "PEFT.")
        raise IntegrityError(f"{path}: {', '.join(map(_short, unknown[:8]))}: not understood here", hint)
    known = {key: value for key, value in config.items() if key in fields}
    try:
        PeftConfig.model_validate(known)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(each) for each in first["loc"][:1])
        raise IntegrityError(f"{path}: {key} is {_short(known.get(key, 'missing'))}: {first['msg']}",
                             "It was not written by PEFT so.") from None
    return {key: value for key, value in known.items() if value is not None and SETTINGS[key].passed_to_peft}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def patterns_of(config: Mapping[str, Any]) -> list[str]:
    """Every regular expression that PEFT makes of a config, as it makes it."""
    patterns = [value for key in ("target_modules", "exclude_modules")
                if isinstance(value := config.get(key), str)]
    for key in ("rank_pattern", "alpha_pattern"):
        patterns += [rf"(.*\.)?({name})$" for name in config.get(key) or {}]
    return [each for each in patterns if each != "all-linear"]


_MATCHER = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
asked = json.load(sys.stdin)
for pattern in asked["patterns"]:
    print(json.dumps(pattern), flush=True)
    compiled = re.compile(pattern)
    for name in asked["names"]:
        compiled.match(name)
        compiled.fullmatch(name)
"""


def require_bounded(config: Mapping[str, Any], names: Sequence[str], path: Path) -> None:
    """Raise IntegrityError naming a pattern of an adapter that is none, or does not end on the module names.

    Tried in a process that can be stopped, with the same engine that PEFT uses on the same names.
    """
    patterns = [each for each in patterns_of(config)
                if not re.fullmatch(r"(\(\.\*\\\.\)\?\()?[\w.]+(\)\$)?", each)]
    if not patterns:
        return
    try:
        done = subprocess.run([sys.executable, "-I", "-S", "-c", _MATCHER, str(_MATCH_BYTES)], text=True,
                              capture_output=True, timeout=_MATCH_S,
                              input=json.dumps({"patterns": patterns, "names": list(names)}))
        tried, wrong = done.stdout, "not a regular expression" if done.returncode else None
    except subprocess.TimeoutExpired as error:
        tried = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        wrong = f"does not come to an end within {_MATCH_S:.0f} s on the modules of this base"
    if wrong:
        last = json.loads((tried.splitlines() or ['""'])[-1])
        raise IntegrityError(f"{path}: the pattern {_short(last)}: {wrong}", "Name the modules themselves.")
