"""The real llama.cpp on our GGUF files: the same greedy tokens and the same cuts of texts as transformers.

It needs llama-cpp-python, here or in the Python that TUNESMITH_LLAMA_CPP names; without either these tests
are skipped. pytest -s prints how far the two agree.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import native_bases as bases
import pytest
import torch
import transformers
from gguf_cases import PUBLISHED, SPROUT, adapter_of, tokenizer_folder

from tunesmith import embedded
from tunesmith.model.files import locate_base
from tunesmith.model.tokenizer import load_tokenizer
from tunesmith.share.gguf import write_adapter_gguf, write_model_gguf

RUNNER = """
import json, sys
import llama_cpp, numpy
job = json.load(sys.stdin)
model = llama_cpp.Llama(job["model"], lora_path=job["lora"], n_ctx=job["context"], logits_all=True,
                        verbose=False,
                        n_threads=1, n_threads_batch=1)
tokens = [model.tokenize(text.encode(), add_bos=True, special=True) for text in job["texts"]]
answers = []
for prompt in job["prompts"]:
    model.reset()
    model.eval(prompt)
    answer = []
    for _ in range(job["new"]):
        answer.append(int(numpy.asarray(model.scores[model.n_tokens - 1]).argmax()))
        model.eval(answer[-1:])
    answers.append(answer)
json.dump({"tokens": tokens, "answers": answers}, sys.stdout)
"""


@pytest.fixture(scope="session")
def llama_cpp() -> Any:
    """Runs the real llama.cpp on token ids and texts, through an interpreter that has llama-cpp-python."""
    interpreter = (
        sys.executable if importlib.util.find_spec("llama_cpp") else os.environ.get("TUNESMITH_LLAMA_CPP")
    )
    if interpreter is None:
        pytest.importorskip("llama_cpp",
                            reason="llama-cpp-python is not here; "
                                   "TUNESMITH_LLAMA_CPP may name a Python that has it")

    def run(model: Path, lora: Path | None = None, prompts: Any = (), texts: Any = (),
            new: int = 12) -> dict[str, Any]:
        job = {"model": str(model), "lora": lora and str(lora), "prompts": prompts, "texts": texts,
               "new": new, "context": 256}
        done = subprocess.run([interpreter, "-c", RUNNER], input=json.dumps(job), capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return run


def quotes() -> list[str]:
    path = embedded.path_of(embedded.QUOTES_NAME)
    return [json.loads(line)["quote"] + " ->: " for line in path.read_text().splitlines()[:20]]


@torch.no_grad()
def agreement(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> tuple[float, float]:
    """(how many of its greedy tokens are transformers' too, how far the worst lies below its best in sds)."""
    same, worst = [], 0.0
    for prompt, answer in zip(prompts, answers, strict=True):
        logits_TV = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1:-1].float()
        gap_T = logits_TV.max(-1).values - logits_TV.gather(1, torch.tensor(answer)[:, None])[:, 0]
        same += (gap_T == 0).tolist()
        worst = max(worst, (gap_T.max() / logits_TV.std()).item())
    return sum(same) / len(same), worst


CASES = ["sprout", "stories260K", "bloom", "bloom-6-heads", "bloom-untied", "llama", "llama-biases",
         "llama3-rope", "linear-rope", "yarn-rope", "yarn-rope-own-factor", "mistral", "qwen2", "qwen3"]


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_answers_as_transformers_does(case: str, llama_cpp: Any, tmp_path: Path,
                                                request: Any) -> None:
    if case in bases.FAMILIES:
        base = bases.write_base(tmp_path / case, bases.FAMILIES[case](), dtype=torch.float16, seed=bases.SEED)
    else:
        base = locate_base(str(SPROUT if case == "sprout" else request.getfixturevalue("assets") / case),
                           None)
    tokenizer = load_tokenizer(base)
    prompts = [tokenizer(text)["input_ids"][:60] for text in quotes()]
    model = transformers.AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    strength = 1.5 if case == "stories260K" else 7.5  # of noise; a really trained base drowns in it sooner
    folder, _ = adapter_of(base, tmp_path / "adapter", r=4, alpha=strength)
    plain, lora, merged, q8 = (tmp_path / f"{name}.gguf" for name in ("plain", "lora", "merged", "q8"))
    write_model_gguf(base.folder, plain)
    write_adapter_gguf(folder, base, lora)
    from peft import PeftModel

    told = {"base": agreement(model, prompts, llama_cpp(plain, prompts=prompts)["answers"])}
    tuned = PeftModel.from_pretrained(model, folder)
    answers = llama_cpp(plain, lora, prompts)["answers"]
    told["base + adapter"] = agreement(tuned, prompts, answers)
    with tuned.disable_adapter():
        changed = agreement(tuned, prompts, answers)
    united = tuned.merge_and_unload()
    united.half().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    united.float()
    write_model_gguf(tmp_path / "merged", merged)
    told["merged"] = agreement(united, prompts, llama_cpp(merged, prompts=prompts)["answers"])
    write_model_gguf(tmp_path / "merged", q8, "q8_0")
    eighths = agreement(united, prompts, llama_cpp(q8, prompts=prompts)["answers"])
    for name, (same, worst) in {**told, "merged q8_0": eighths, "adapter ignored": changed}.items():
        print(f"{case}, {name}: {100 * same:.1f}% of greedy tokens equal, "
              f"the worst {worst:.4f} sd below the best")
    for same, worst in told.values():
        assert same >= 0.97, (told, bases.SEED)
        assert worst < 0.03, (told, bases.SEED)  # equal but for ties: llama.cpp multiplies in f16
    assert eighths[0] > 0.8, bases.SEED
    assert changed[0] < 0.9, bases.SEED


PIECES = ["Hello", " world", "  ", "\n", "\n\n", "\t", " 😀", "👩‍👩‍👧‍👦", "é", "naïve", " 12345", "3.14",
          "x=1;", "don't", "WE'LL", "你好", "、", "مرحبا", "हिन्दी", "…", "—", "“quoted”", " a", " ->: ",
          "['a', 'b']", "_", "#", "\xa0", "\u3000", " \n ", "\r\n", "½", "Ⅷ",
          "ﬁ", "Straße", "ЁЖ", "(a)", "|", "!?", "http://x.y/z?a=b&c=d", "🇩🇪", "\u200d", "$100", "100%",
          "<s>", "</s>", " <s> "]


def metaspace(words: dict[str, Any]) -> None:
    words |= {"normalizer": None,
              "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never",
                                                    "split": False}}


@pytest.mark.parametrize("kind", [*PUBLISHED, "stories260K", "stories260K without a space in front",
                                  "qwen2 of transformers"])
def test_llama_cpp_cuts_texts_as_transformers_does(kind: str, llama_cpp: Any, tmp_path: Path,
                                                   request: Any) -> None:
    if kind in PUBLISHED:
        folder = tokenizer_folder(tmp_path / "t", PUBLISHED[kind])
    elif kind == "qwen2 of transformers":
        folder = bases.write_base(tmp_path / "t", bases.FAMILIES["qwen2"]()).folder
    else:
        folder = tmp_path / "t"
        shutil.copytree(request.getfixturevalue("assets") / "stories260K", folder,
                        copy_function=shutil.copyfile)
        folder.chmod(0o755)
        words = json.loads((folder / "tokenizer.json").read_text())
        if kind != "stories260K":
            metaspace(words)
        (folder / "tokenizer.json").write_text(json.dumps(words))
    told = write_model_gguf(folder, tmp_path / "m.gguf")
    tokenizer, draw = load_tokenizer(locate_base(str(folder), None)), random.Random(bases.SEED)
    texts = ["".join(draw.choices(PIECES, k=draw.randint(1, 9))) for _ in range(400)] + quotes()
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    got = llama_cpp(tmp_path / "m.gguf", texts=texts)["tokens"]
    other = [text for text, ids in zip(texts, got, strict=True) if ids != tokenizer(text)["input_ids"]]
    print(f"{kind} ({told['tokenizer']}): {len(texts) - len(other)} of {len(texts)} texts equal")
    assert not other, (other[:5], bases.SEED)
