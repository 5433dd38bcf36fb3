"""The settings of a PEFT LoRA adapter that are understood here, each with what it may be.

PEFT acts on what an adapter's config says: it imports a module that is named there, compiles patterns, repeats layers of the
base, decomposes its weights. A config may come from anybody, so PEFT sees only what this table knows to be data; everything
else is refused by name, unless it says nothing (null, false, empty, or PEFT's own default).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from tunesmith.errors import IntegrityError

#: More modules than any model has, and longer than any module's name or sensible pattern.
_MOST_NAMES, _MOST_CHARACTERS = 20_000, 1_000
#: How long all patterns of an adapter may take on all module names of a base [s], and the memory for it [bytes].
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


class PeftConfig(BaseModel):
    """A LoRA adapter's config as PEFT writes it (https://huggingface.co/docs/peft), as far as it is understood here."""

    model_config = ConfigDict(extra="forbid", strict=True)

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False
    r: Rank
    lora_alpha: Finite
    lora_dropout: Annotated[Finite, Field(ge=0, lt=1)] = 0.0
    target_modules: Name | Names | None = None
    exclude_modules: Name | Names | None = None
    layers_to_transform: Annotated[int, Field(ge=0, lt=100_000)] | Indices | None = None
    layers_pattern: PlainName | PlainNames | None = None
    rank_pattern: Annotated[dict[Name, Rank], Field(max_length=_MOST_NAMES)] | None = None
    alpha_pattern: Annotated[dict[Name, Finite], Field(max_length=_MOST_NAMES)] | None = None
    modules_to_save: PlainNames | None = None
    target_parameters: Names | None = None
    trainable_token_indices: Indices | dict[Name, Indices] | None = None
    alora_invocation_tokens: Indices | None = None
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    ensure_weight_tying: bool = False
    init_lora_weights: bool | str | None = True
    eva_config: dict[str, Any] | None = None

    @field_validator("init_lora_weights")
    @classmethod
    def _known_start(cls, value: Any) -> Any:
        """Ways to begin that need no data and no long computation; what was learnt is copied over them, or (pissa, olora)
        they split the base's weights as in training."""
        if isinstance(value, str) and not re.fullmatch(r"gaussian|orthogonal|eva|pissa|pissa_niter_[1-9]\d?|olora", value):
            raise ValueError("true, false, gaussian, orthogonal, eva, pissa, pissa_niter_N (N below 100) or olora")
        return value


#: What says how an adapter began, by data that is not there, and nothing of what it is.
_OF_THE_START = ("eva_config",)
#: What a setting that is not understood may be without saying anything. The last two: as PEFT 0.21 writes them by default.
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
_DEFAULTS: dict[str, Any] = {"megatron_core": "megatron.core", "qalora_group_size": 16,
                             "runtime_config": {"ephemeral_gpu_offload": False}}
#: Settings of other programs, or of older ones, with what to do about them.
_HINTS = {"enable_lora": "Old adapters of this kind (MergedLinear) have to be saved again with a current peft."}


def understood(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings that say something, all of them known. config: what stands in `path`.

    Raises IntegrityError naming every setting that is not understood, or the first that is of a wrong kind.
    """
    strange = sorted(key for key, value in config.items() if key not in PeftConfig.model_fields
                     and not any(value is each or (value == each and type(value) is type(each)) for each in _NOTHING)
                     and not (key in _DEFAULTS and value == _DEFAULTS[key]))
    if strange:
        hint = next((_HINTS[key] for key in strange if key in _HINTS),
                    "An adapter is data: what would run code, or is not known here, is not handed on to PEFT.")
        raise IntegrityError(f"{path}: {', '.join(map(_short, strange[:8]))}: not understood here", hint)
    known = {key: value for key, value in config.items() if key in PeftConfig.model_fields}
    try:
        PeftConfig.model_validate(known)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(each) for each in first["loc"][:1])
        raise IntegrityError(f"{path}: {key} is {_short(known.get(key, 'missing'))}: {first['msg']}",
                             "It was not written by PEFT so.") from None
    return {key: value for key, value in known.items() if value is not None and key not in _OF_THE_START}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def patterns_of(config: Mapping[str, Any]) -> list[str]:
    """Every regular expression that PEFT makes of a config, as it makes it."""
    made = [value for key in ("target_modules", "exclude_modules") if isinstance(value := config.get(key), str)]
    for key in ("rank_pattern", "alpha_pattern"):
        made += [rf"(.*\.)?({name})$" for name in config.get(key) or {}]
    return [each for each in made if each != "all-linear"]


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
    """Raise IntegrityError naming a pattern of an adapter that does not come to an end on a base's module names, or is none.

    Tried in a process that can be stopped, with the same engine that PEFT uses on the same names.
    """
    patterns = [each for each in patterns_of(config) if not re.fullmatch(r"(\(\.\*\\\.\)\?\()?[\w.]+(\)\$)?", each)]
    if not patterns:
        return
    try:
        done = subprocess.run([sys.executable, "-I", "-S", "-c", _MATCHER, str(_MATCH_BYTES)], text=True, capture_output=True,
                              timeout=_MATCH_S, input=json.dumps({"patterns": patterns, "names": list(names)}))
        tried, wrong = done.stdout, "not a regular expression" if done.returncode else None
    except subprocess.TimeoutExpired as error:
        tried = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        wrong = f"does not come to an end within {_MATCH_S:.0f} s on the modules of this base"
    if wrong:
        last = json.loads((tried.splitlines() or ['""'])[-1])
        raise IntegrityError(f"{path}: the pattern {_short(last)}: {wrong}", "Name the modules themselves.")
