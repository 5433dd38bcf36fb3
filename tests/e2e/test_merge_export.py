"""merge and export by the command line: one model, GGUF files, or a refusal that leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import RECIPE, tunesmith, tunesmith_json


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    text = RECIPE.replace("quantization: none", "quantization: int8").replace("max_steps: 6", "max_steps: 12")
    (folder / "my.yaml").write_text(text)
    tunesmith_json("train", "my.yaml", cwd=folder)
    return folder / "runs" / "my"


def test_merge_keeps_the_nearer_and_plain_transformers_loads_it(run: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found: dict[str, Any] = tunesmith_json("merge", str(run), "one", cwd=tmp_path)
    assert set(found["candidates"]) == {"16-bit base", "dequantised int8 base"}
    nearest = min(found["candidates"], key=lambda name: found["candidates"][name]["kl"])
    assert found["taken"] == nearest
    assert found["candidates"][nearest]["top1"] > 0.99
    assert found["bare"]["kl"] > 100 * found["candidates"][nearest]["kl"]
    assert "held-out" in found["measured_on"]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "one"),
        AutoTokenizer.from_pretrained(tmp_path / "one"),
    )
    prompt = "“Be yourself.” ->: "
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1]:]
    live: dict[str, Any] = tunesmith_json("generate", str(run), "--prompt", prompt, "--max-new-tokens", "8",
                                          cwd=tmp_path)
    assert tokenizer.decode(answer, skip_special_tokens=True) == live["text"]
    assert tunesmith("verify", "one", cwd=tmp_path).returncode == 0
    again = tunesmith("merge", str(run), "one", cwd=tmp_path)
    assert again.returncode == 2
    assert "something there already" in again.stderr
    # A merged model is exported as it is.
    gguf: dict[str, Any] = tunesmith_json("export", "one", "gguf", "--outtype", "q8_0", cwd=tmp_path)
    assert set(gguf["files"]) == {"model.gguf", "Modelfile"}


def test_rows_that_the_run_dropped_do_not_stop_a_merge(tmp_path: Path) -> None:
    """One row's prompt alone fills max_length: the run drops it, and so does the merge of that run."""
    rows = [{"quote": f"Be {n} times yourself.", "tags": ["self"]}
            for n in range(40)] + [{"quote": "very " * 300, "tags": ["long"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my.yaml").write_text(RECIPE.replace("embedded:quotes", "rows.jsonl").replace(
        "validation: 12", "validation: 12, max_length: 64, overlong: drop"))
    tunesmith_json("train", "my.yaml", cwd=tmp_path)
    found: dict[str, Any] = tunesmith_json("merge", "runs/my", "one", cwd=tmp_path)
    assert "held-out rows" in found["measured_on"]


def test_export_writes_what_llama_cpp_reads(run: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    found: dict[str, Any] = tunesmith_json("export", str(run), "out", cwd=tmp_path)
    assert set(found["files"]) == {"model.gguf", "Modelfile"}
    assert found["merge"]["taken"]
    reader = GGUFReader(tmp_path / "out" / "model.gguf")
    assert reader.fields["general.architecture"].contents() == "bloom"
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert 'TEMPLATE """{{ .Prompt }} ->: """' in text
    assert 'PARAMETER stop "</s>"' in text
    adapter: dict[str, Any] = tunesmith_json("export", str(run), "lora", "--what", "adapter", cwd=tmp_path)
    assert set(adapter["files"]) == {"adapter.gguf", "Modelfile"}
    assert "ADAPTER ./adapter.gguf" in (tmp_path / "lora" / "Modelfile").read_text()


@pytest.mark.parametrize(("words", "code"), [
    (("export", "RUN", "out", "--format", "onnx"), 2), (("export", "RUN", "out", "--outtype", "q4_0"), 2),
    (("export", "RUN", "out", "--what", "all"), 2), (("export", "nowhere", "out"), 2),
    (("merge", "nowhere", "out"), 2), (("merge", "RUN", "out", "--base", "nowhere/"), 3),
    (("merge", "RUN", "taken"), 2), (("export", "RUN", "taken"), 2)])
def test_what_cannot_be_done_leaves_nothing(run: Path, tmp_path: Path, words: tuple[str, ...],
                                            code: int) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    done = tunesmith(*(str(run) if word == "RUN" else word for word in words), "--json", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["exit_code"] == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]
    assert (tmp_path / "taken" / "mine.txt").read_text() == "mine"


def test_a_merge_that_loses_the_adapter_is_refused_with_its_figures(run: Path, tmp_path: Path) -> None:
    """The same adapter, a millionth as strong: in 16 bits nothing of it is left."""
    import shutil

    import safetensors.torch

    shutil.copytree(run / "adapter", tmp_path / "weak")
    (tmp_path / "weak" / "sha256.json").unlink()
    path = tmp_path / "weak" / "adapter_model.safetensors"
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: t * 1e-3 if "lora_B" in name else t for name, t in state.items()},
                                path)
    done = tunesmith("merge", "weak", "one", "--quantization", "none", cwd=tmp_path)
    assert done.returncode == 9, done.stderr + done.stdout
    assert "KL" in done.stderr
    assert not (tmp_path / "one").exists()
