"""How results are worded for people."""

from __future__ import annotations

import shlex
from typing import Any

from tunesmith.cli.common import program, relative
from tunesmith.model.quantization import WAYS
from tunesmith.rundir.verdict import loss_digits, verdict_sentence


def judgement_lines(judgement: dict[str, Any]) -> list[str]:
    """Before and after: loss, stop rate, lists."""
    digits = loss_digits(judgement)
    lines = [f"  held-out loss        {judgement['loss_base']:.{digits}f} -> "
             f"{judgement['loss_tuned']:.{digits}f}"]
    if judgement["stop_rate_tuned"] is not None:
        lines.append(f"  answers that stop    {100 * judgement['stop_rate_base']:.0f}% -> "
                     f"{100 * judgement['stop_rate_tuned']:.0f}%  "
                     f"(within {judgement['max_new_tokens']} tokens, {judgement['stop_rows']} prompts)")
        lines.append(f"  answers that are right  {judgement['right_base']} -> {judgement['right_tuned']} of "
                     f"{judgement['stop_rows']}  (the data's, word for word)")
    if judgement["list_f1_tuned"] is not None:
        lines.append(f"  list items right     {judgement['list_f1_base']:.2f} -> "
                     f"{judgement['list_f1_tuned']:.2f}  (F1)")
    return lines


def verdict_line(judgement: dict[str, Any]) -> str:
    """The verdict in a sentence."""
    return f"  {verdict_sentence(judgement)}."


def sample_lines(samples: list[dict[str, Any]], most: int) -> list[str]:
    """Held-out prompts with the answers before and after."""
    lines = []
    for sample in samples[:most]:
        before, after = (sample[side].replace("\n", " ") + ("" if sample[f"{side}_stopped"] else " ...")
                         for side in ("before", "after"))
        lines += ["", f"  {_short(sample['prompt'])}", f"    before   {_short(before)}",
                  f"    after    {_short(after)}"]
    return lines


def _short(text: str, width: int = 110) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def train_text(result: dict[str, Any]) -> str:
    """What `tunesmith train` ends with."""
    lines, judgement = [""], result["judgement"]
    if judgement is None:
        lines += ["  Nothing was held out, so nothing says whether it helped. (data.validation)"]
    else:
        lines += [*judgement_lines(judgement), verdict_line(judgement)]
        if judgement["verdict"] in ("helps", "loss only") and judgement["stop_rate_tuned"] == 0:
            lines += ["  But no answer stops yet: train longer, with data.append_eos: true."]
    adapter = relative(result["adapter"])
    lines += ["", f"  adapter  {adapter}", f"  report   {relative(result['run'])}/report.html"]
    if pushed := result.get("pushed"):
        lines.append(_pushed_line(pushed))
    return "\n".join([*lines, "", _try(adapter, result.get("prompt"))])


def _try(adapter: str, prompt: str | None) -> str:
    """The command that asks an adapter something."""
    return f"  Try:     {program()} generate {shlex.quote(adapter)} --prompt {shlex.quote(prompt or '...')}"


def _pushed_line(pushed: dict[str, Any]) -> str:
    already = "" if pushed["changed"] else "; all of it was there already"
    return f"  pushed   {pushed['url']} ({_visibility(pushed)}) at {pushed['commit'][:12]}{already}"


def demo_text(result: dict[str, Any]) -> str:
    """What `tunesmith demo` ends with."""
    adapter = relative(result["adapter"])
    first = result["samples"][0]["prompt"]
    return "\n".join([
        "", *judgement_lines(result["judgement"]), *sample_lines(result["samples"], 2), "",
        verdict_line(result["judgement"]), "",
        "  The base is a toy: 3 M parameters and a made-up language, small enough for any laptop. "
        "For real work name a",
        "  model of the Hub in your recipe, such as bigscience/bloom-7b1.", "",
        f"  adapter  {adapter}   (PEFT format: loads in peft)",
        f"  report   {relative(result['report'])}", "",
        _try(adapter, first),
        f"  Yours:   {program()} init my.yaml    then  {program()} train my.yaml"])


def evaluate_text(result: dict[str, Any]) -> str:
    """What `tunesmith evaluate` prints."""
    kept = ["", f"  kept     {relative(result['kept'])}"] if result["kept"] else []
    return "\n".join([*judgement_lines(result), *sample_lines(result["samples"], 3), "", verdict_line(result),
                      *kept])


def plan_text(result: dict[str, Any]) -> str:
    """What `tunesmith plan` prints."""
    return "\n".join([
        f"  base       {result['base']} ({result['architecture']})",
        f"  trainable  {result['trainable_parameters']:,} parameters",
        f"  all        {result['all_parameters']:,} parameters",
        f"  share      {result['trainable_percent']:.4f} %",
        f"  adapter    {result['adapter_bytes'] / 1e6:,.1f} MB on disk",
        *([] if not WAYS[result["quantization"]].quantised else
          [f"  kept       {result['quantised_percent']:.0f}% of the base's "
           f"values in {result['quantization']}"]),
        *(f"  note       {note}" for note in result["notes"])])


def verify_text(result: dict[str, Any]) -> str:
    """What `tunesmith verify` prints."""
    lines = [f"{path}: damaged or missing" for path in result["damaged"]]
    if result["unsealed"]:
        lines.append(f"{len(result['unsealed'])} files that nothing vouches for, "
                     f"such as {result['unsealed'][0]}")
    if result["whole"]:
        lines.append(f"{result['target']}: whole, {result['checked']} files checked.{_state(result)}")
    else:
        lines.append(f"{result['target']}: {len(result['damaged'])} of "
                     f"{result['checked']} files are not what was written. "
                     + ("The same train command falls back to the newest whole checkpoint."
                        if result["run"] else "Copy or pull it again."))
    return "\n".join(lines)


def _state(result: dict[str, Any]) -> str:
    """Of a run that is not finished, what it is doing, or how its last process ended."""
    phrase = {"running": "is running", "stopped": "was stopped", "failed": "failed"}.get(result["state"])
    reason = f": {result['reason'].rstrip('.')}" if result["reason"] else ""
    return f" The run {phrase}{reason}." if phrase else ""


def doctor_text(result: dict[str, Any]) -> str:
    """What `tunesmith doctor` prints."""
    lines = [f"  machine   {result['machine']}",
             f"  versions  {', '.join(f'{name} {version}' for name, version in result['versions'].items())}",
             f"  disk      {result['disk_free_bytes'] / 1e9:,.1f} GB free here"]
    for gpu in result["gpus"]:
        lines.append(f"  gpu       {gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, capability "
                     f"{gpu['capability']}{'' if gpu['bfloat16'] else ', no bfloat16 (float16 is used)'}")
    if not result["gpus"]:
        lines.append("  gpu       none that torch sees; everything runs on the CPU")
    hub = result["hub"]
    lines.append(f"  hub       {hub['endpoint']}, {'offline' if hub['offline'] else 'online'}, "
                 f"{'logged in' if hub['logged_in'] else 'not logged in'}, cache {hub['cache']}")
    lines.append("")
    for check in result["checks"]:
        lines.append(f"  {'works ' if check['works'] else 'BROKEN'}  {check['name']}: {check['detail']}")
        if check["advice"]:
            lines.append(f"          {check['advice']}")
    lines += ["",
              "  All well." if result["healthy"] else "  Something that a run needs is broken; see above."]
    return "\n".join(lines)


def push_text(result: dict[str, Any], *, dry_run: bool) -> str:
    """What `tunesmith push` ends with."""
    if not dry_run:
        return f"{_pushed_line(result)}\n\n{_try(result['repo'], result['prompt'])}"
    files = [f"  {name:<28} {size_text(size)}" for name, size in result["files"].items()]
    kind = {True: ", which is there already", False: ", which would be made", None: ""}[result["exists"]]
    if result["private_before"] and not result["private"]:
        kind = "; private now, it would be shown to everyone with its earlier commits"
    heading = f"Nothing was pushed. To {result['repo']} ({_visibility(result)}{kind}) would go:"
    return "\n".join([heading, *files, "", result["card"]])


def _visibility(result: dict[str, Any]) -> str:
    return {True: "private", False: "public", None: "private or public: not known"}[result["private"]]


def pull_text(result: dict[str, Any]) -> str:
    """What `tunesmith pull` ends with."""
    return (f"  pulled   {result['repo']} at {result['commit'][:12]} into {relative(result['folder'])}\n"
            f"  base     {result['base']}\n\n{_try(relative(result['folder']), result['prompt'])}")


def size_text(size_bytes: int) -> str:
    """A size as people say it."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:,.0f} {unit}" if unit == "B" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1000  # type: ignore[assignment]
    return f"{size_bytes:,.1f} GB"


def merge_text(result: dict[str, Any]) -> str:
    """What `tunesmith merge` ends with: each way that was tried, against the live adapter."""
    lines = [f"  against the live adapter, on {result['measured_on']}", "",
             f"  {'':<26}{'KL, nats a token':>18}{'same top token':>16}{'same answer':>13}{'loss':>9}"]
    for name, figures in [*result["candidates"].items(), ("the bare base", result["bare"])]:
        mark = " *" if name == result["taken"] else ""
        lines.append(f"  {name + mark:<26}{figures['kl']:>18.2e}{100 * figures['top1']:>15.1f}%"
                     f"{100 * figures['greedy']:>12.0f}%{figures['loss']:>9.4f}")
    kept = f"  kept     {result['taken']}, {size_text(result['bytes'])}, in {relative(result['out'])}"
    return "\n".join([*lines, "", kept])


def export_text(result: dict[str, Any]) -> str:
    """What `tunesmith export` ends with."""
    files = [f"  {name:<20} {size_text(size)}" for name, size in result["files"].items()]
    folder = relative(result["out"])
    start = (f"  llama.cpp   llama-cli -m {folder}/model.gguf" if result["what"] == "model"
             else f"  llama.cpp   llama-cli -m BASE.gguf --lora {folder}/adapter.gguf")
    lines = [*files, "", start, f"  Ollama      ollama create NAME -f {folder}/Modelfile"]
    if result["what"] == "adapter":
        lines += [
            "",
            "  BASE.gguf is the base itself as GGUF: llama.cpp's convert_hf_to_gguf.py makes it of the base.",
            f"  For Ollama, put it into {folder} as base.gguf."]
    return "\n".join(lines)
