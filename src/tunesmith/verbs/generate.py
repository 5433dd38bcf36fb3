"""`tunesmith generate`: one answer from an adapter on its quantised base."""

from __future__ import annotations

import os
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.verbs.adapters import adapter_base, base_option, find_adapter, require_base, require_choices
from tunesmith.verbs.show import Show, Silent


def generate(adapter: str | os.PathLike[str], *, prompt: str, max_new_tokens: int = 64,
             base: str | None = None, quantization: str | None = None, device: str = "auto",
             show: Show | None = None) -> dict[str, Any]:
    """Answer a prompt greedily with an adapter, on the base and in the quantisation that its files name.

    adapter: an adapter folder, a run folder or a Hub id. prompt: exactly as in training, template included;
    for an adapter trained on chats, what the user says, which the chat template then wraps. Returns text,
    tokens (generated), stopped (whether the answer ended by itself), base, quantization, and modules (how
    many of the base's modules the adapter sits on). Raises UsageError, IntegrityError, RecipeError,
    NetworkError, EnvironmentFault.
    """
    show = show or Silent()
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens is {max_new_tokens}: at least 1")
    require_choices(quantization=quantization, device=device)
    if not prompt:
        raise UsageError("--prompt is empty")
    adapter_files = find_adapter(os.fspath(adapter), show)
    show.stage("starting torch")
    base_spec = adapter_base(adapter_files, base=base, quantization=quantization)
    from tunesmith.model.build import build_with_adapter, count_modules
    from tunesmith.model.files import locate_base
    from tunesmith.model.placement import choose_device, place_base
    from tunesmith.model.tokenizer import load_tokenizer
    from tunesmith.serve import answer_prompts, encode_prompt

    choose_device(device)  # before anything is downloaded
    with base_option(adapter_files.folder, named=base is not None):
        files = locate_base(base_spec["base"], base_spec["revision"], show.note)
    require_base(adapter_files, files, show, named=base is not None)
    show.stage(f"loading {base_spec['base']}")
    placement = place_base(files, quantization=base_spec["quantization"], device=device,
                           adapter=adapter_files.folder)
    engine = build_with_adapter(files, load_tokenizer(files), adapter_files.folder, placement)
    for note in engine.notes:
        show.note(note)
    ids = encode_prompt(engine, prompt, chat=base_spec["template_kwargs"] if base_spec["messages"] else None,
                        special_tokens=base_spec["special_tokens"])
    positions_left = max_new_tokens if engine.positions is None else engine.positions - len(ids)
    if positions_left < 1:
        raise UsageError(f"--prompt has {len(ids)} tokens, and the base has {engine.positions} positions",
                         "Shorten the prompt.")
    if positions_left < max_new_tokens:
        show.note(f"The base has {engine.positions} positions: "
                  f"the answer ends after {positions_left} tokens at the latest.")
    show.stage("answering")
    answer = answer_prompts(engine, [ids], min(positions_left, max_new_tokens))[0]
    return {"text": answer.text, "tokens": answer.tokens, "stopped": answer.stopped,
            "base": base_spec["base"], "quantization": base_spec["quantization"],
            "modules": count_modules(engine)}
