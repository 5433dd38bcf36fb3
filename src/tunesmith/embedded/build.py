"""Make the embedded base: write a corpus and quotes, train a tokenizer, pretrain a small BLOOM model.

    python -m tunesmith.embedded.build OUTDIR [--device cpu|cuda] [--steps N]

Nothing is downloaded. On one device the same call gives the same files, bit for bit; `about.json` beside the
model says on which device, with which versions and to which loss it was trained. Minutes on a GPU, hours on a
laptop.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BloomConfig, BloomForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from tunesmith.embedded import grammar

QUOTE_COUNT = 480
VOCABULARY = 1536
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
DOCUMENTS_FOR_TOKENIZER = 20_000
ROW_TOKENS = 128


def train_tokenizer(banned: frozenset[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `VOCABULARY` entries with BLOOM's four special tokens, of the corpus."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(itertools.islice(grammar.corpus(banned=banned), DOCUMENTS_FOR_TOKENIZER),
                                  trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>",
                                   eos_token="</s>", pad_token="<pad>", model_max_length=512,
                                   clean_up_tokenization_spaces=False)


def batches(tokenizer: PreTrainedTokenizerFast, banned: frozenset[str], rows: int) -> Iterator[torch.Tensor]:
    """Endless [rows, ROW_TOKENS + 1] batches of the corpus, pages joined by the end token."""
    pages = grammar.pages(seed=13, banned=banned)
    end = tokenizer.eos_token_id
    stream: list[int] = []
    need = rows * (ROW_TOKENS + 1)
    while True:
        while len(stream) < need:
            texts = list(itertools.islice(pages, 64))
            for ids in tokenizer(texts)["input_ids"]:
                stream += [*ids, end]
        yield torch.from_numpy(np.array(stream[:need], dtype=np.int64).reshape(rows, ROW_TOKENS + 1))
        stream = stream[need:]


def pretrain(tokenizer: PreTrainedTokenizerFast, banned: frozenset[str], *, device: str, steps: int,
             rows: int, learning_rate: float = 3e-3) -> tuple[BloomForCausalLM, float]:
    """Train a 3 M parameter BLOOM model from scratch; returns it and its mean loss over the last 50 steps."""
    torch.manual_seed(17)
    others: dict[str, Any] = {"seq_length": 512, "unk_token_id": 0}  # which its declaration lacks
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=192, n_layer=6, n_head=8, bos_token_id=1,
                         eos_token_id=2, pad_token_id=3, **others)
    model = BloomForCausalLM(config)
    torch.nn.Module.to(model, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.1)
    losses: list[float] = []
    source = batches(tokenizer, banned, rows)
    for step in range(steps):
        share = step / steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * share))
        tokens = next(source).to(device)
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=device.startswith("cuda")):
            logits = model(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= steps - 50 or step % 200 == 0:
            losses.append(loss.item())
        if step % 200 == 0:
            print(f"step {step}/{steps}  loss {losses[-1]:.3f}", flush=True)
    return model, sum(losses[-50:]) / min(50, len(losses))


def build(out: Path, *, device: str, steps: int, rows: int) -> dict[str, object]:
    """Write `sprout/` (the model) and `quotes.jsonl` into `out`; returns what `about.json` says."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    quotes = grammar.quotes(QUOTE_COUNT)
    banned = frozenset(str(row["quote"]).strip("“”") for row in quotes)
    tokenizer = train_tokenizer(banned)
    model, loss = pretrain(tokenizer, banned, device=device, steps=steps, rows=rows)
    folder = out / "sprout"
    model.half().cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=3).save_pretrained(folder)
    with open(out / "quotes.jsonl", "w", encoding="utf-8") as file:
        for row in quotes:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    about: dict[str, object] = {
        "name": "sprout", "architecture": "BLOOM", "parameters": sum(p.numel() for p in model.parameters()),
        "pretrained_tokens": steps * rows * ROW_TOKENS, "pretraining_loss_nats": round(loss, 4),
        "device": torch.cuda.get_device_name() if device.startswith("cuda")
        else platform.processor() or "cpu",
        "torch": torch.__version__, "seconds": round(time.perf_counter() - started),
        "command": f"python -m tunesmith.embedded.build OUTDIR --device {device} "
                   f"--steps {steps} --rows {rows}",
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    }
    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    return about


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--rows", type=int, default=128)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    about = build(arguments.out, device=arguments.device, steps=arguments.steps, rows=arguments.rows)
    print(json.dumps(about, indent=2))


if __name__ == "__main__":
    main()
