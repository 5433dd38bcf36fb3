"""GGUF files read back against what they were made from, refusals, writes that fail, and Modelfiles.

That llama.cpp itself runs them is in test_gguf_llama_cpp.py.
"""

from __future__ import annotations

import itertools
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import native_bases as bases
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from gguf_cases import LLAMA3, PUBLISHED, SPROUT, adapter_of, split_words, tokenizer_folder
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DiskError, IntegrityError, RecipeError
from tunesmith.model.files import BaseFiles
from tunesmith.share.gguf import modelfile, write_adapter_gguf, write_model_gguf

WITHOUT_GGUF = ("qwen3-biases", "smollm3", "granite", "phi3")
FAMILIES = [name for name in bases.FAMILIES if not name.startswith(WITHOUT_GGUF)]
BLOOM_NAMES = {"word_embeddings_layernorm": "token_embd_norm", "word_embeddings": "token_embd",
               "ln_f": "output_norm", "lm_head": "output", "self_attention.query_key_value": "attn_qkv",
               "self_attention.dense": "attn_output", "mlp.dense_h_to_4h": "ffn_up",
               "mlp.dense_4h_to_h": "ffn_down", "input_layernorm": "attn_norm",
               "post_attention_layernorm": "ffn_norm"}
LINE_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
              "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
              "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
              "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
              "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
              "post_attention_layernorm": "ffn_norm"}


@pytest.fixture(scope="module")
def random_bases(tmp_path_factory: pytest.TempPathFactory) -> bases.Bases:
    return bases.Bases(tmp_path_factory.mktemp("bases"))


def source_name(name: str, base: BaseFiles) -> str:
    """The name in llama.cpp of a tensor of a checkpoint, from a table of this test's own."""
    name = name.removeprefix("transformer.").removeprefix("model.")
    layer = re.match(r"(?:h|layers)\.(\d+)\.(.*)", name)
    module, _, part = (layer[2] if layer else name).rpartition(".")
    short = (BLOOM_NAMES if base.architecture == "bloom" else LINE_NAMES)[module]
    return f"blk.{layer[1]}.{short}.{part}" if layer else f"{short}.{part}"


def undone(name: str, array: np.ndarray, base: BaseFiles) -> np.ndarray:
    """A tensor of the GGUF with its rows as transformers has them."""
    words = base.config
    heads = words.get("n_head") or words.get("num_attention_heads")
    part = name.split(".")[2] if name.startswith("blk.") else ""
    if part == "attn_qkv":
        width = array.shape[0] // heads // 3
        return array.reshape(3, heads, width, -1).swapaxes(0, 1).reshape(array.shape)
    if part in ("attn_q", "attn_k") and base.architecture in ("llama", "mistral"):
        heads = heads if part == "attn_q" else words.get("num_key_value_heads", heads)
        return array.reshape(heads, array.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(array.shape)
    return array


def source_tensors(base: BaseFiles) -> dict[str, torch.Tensor]:
    return {name: tensor for path in base.weights
            for name, tensor in safetensors.torch.load_file(path).items()}


def read_back(path: Path) -> tuple[gguf.GGUFReader, dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    return reader, {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def field(reader: gguf.GGUFReader, key: str) -> Any:
    found = reader.get_field(key)
    return None if found is None else found.contents()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_read_back_is_the_checkpoint(family: str, random_bases: bases.Bases, tmp_path: Path) -> None:
    base, steps = random_bases(family), []
    told = write_model_gguf(base.folder, tmp_path / "m.gguf",
                            "f16", lambda done, total: steps.append((done, total)))
    reader, tensors = read_back(tmp_path / "m.gguf")
    source = source_tensors(base)
    for name, tensor in source.items():
        ours = source_name(name, base)
        kept = tensor.float() if tensor.ndim == 1 else tensor.half().float()
        assert np.array_equal(undone(ours, tensors.pop(ours), base), kept.numpy()), (name, bases.SEED)
    assert set(tensors) == ({"rope_freqs.weight"} if family == "llama3-rope" else set())
    assert all(a <= b for a, b in itertools.pairwise(steps))
    assert steps[-1][0] == steps[-1][1]
    assert told["bytes"] == (tmp_path / "m.gguf").stat().st_size
    assert told["tensors"] == len(reader.tensors)
    arch, words = field(reader, "general.architecture"), base.config
    assert arch == {"mistral": "llama"}.get(base.architecture, base.architecture)
    assert field(reader, f"{arch}.embedding_length") == words["hidden_size"]
    assert field(reader, f"{arch}.block_count") == 2
    assert field(reader,
                 f"{arch}.vocab_size") == len(field(reader, "tokenizer.ggml.tokens")) == bases.VOCABULARY
    if arch != "bloom":
        windowed = family in ("mistral-window", "qwen2-window", "qwen2-mixed-windows")
        assert field(reader, f"{arch}.context_length") == (bases.WINDOW if windowed else 2048)
        assert any("sliding_window" in note for note in told["notes"]) == windowed
        assert field(reader, f"{arch}.attention.head_count_kv") == words["num_key_value_heads"]
        assert field(reader, f"{arch}.rope.dimension_count") == words["head_dim"]
        assert field(reader, f"{arch}.rope.freq_base") == words["rope_parameters"]["rope_theta"]
        kind = words["rope_parameters"]["rope_type"]
        assert field(reader, f"{arch}.rope.scaling.type") == (kind if kind in ("yarn", "linear") else None)


def test_q8_0_is_within_half_a_step_of_each_block(random_bases: bases.Bases, tmp_path: Path) -> None:
    base = random_bases("bloom")
    write_model_gguf(base.folder, tmp_path / "m.gguf", "q8_0")
    reader, tensors = read_back(tmp_path / "m.gguf")
    for name, tensor in source_tensors(base).items():
        got, want = undone(source_name(name, base), tensors[source_name(name, base)],
                           base), tensor.float().numpy()
        if tensor.ndim == 1:
            assert np.array_equal(got, want)
            continue
        steps = np.abs(want.reshape(-1, 32)).max(1, keepdims=True) / 127
        assert (np.abs(got - want).reshape(-1, 32) <= 0.51 * steps
                + 1e-3 * np.abs(want.reshape(-1, 32))).all(), bases.SEED
    kinds = {(len(t.shape), t.tensor_type.name) for t in reader.tensors}
    assert kinds == {(1, "F32"), (2, "Q8_0")}
    told = write_model_gguf(random_bases("llama").folder, tmp_path / "narrow.gguf", "q8_0")
    assert "blocks of 32" in told["notes"][0]  # its rows are 48 and 80 wide


@pytest.mark.parametrize("family", ["bloom", "bloom-no-prefix-fp16", "llama", "llama-biases", "mistral",
                                    "qwen2", "qwen3"])
@pytest.mark.parametrize("change",
                         [{}, {"use_rslora": True}, {"alpha_pattern": {"dense_h_to_4h|.*k_proj": 3.0}}])
def test_an_adapter_read_back_is_peft_s(family: str, change: dict[str, Any], random_bases: bases.Bases,
                                        tmp_path: Path) -> None:
    base = random_bases(family)
    folder, _ = adapter_of(base, tmp_path / "a", r=4, alpha=6.0)
    words = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(words | change))
    told = write_adapter_gguf(folder, base, tmp_path / "a.gguf")
    reader, tensors = read_back(tmp_path / "a.gguf")
    assert [field(reader, key)
            for key in ("general.type", "adapter.type", "adapter.lora.alpha")] == ["adapter", "lora", 6.0]
    from peft import PeftModel

    model = transformers.AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    deltas = {name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().numpy()
              for name, module in PeftModel.from_pretrained(model, folder).named_modules()
              if hasattr(module, "get_delta_weight")}
    assert told["modules"] == len(deltas) == len(tensors) / 2 > 4
    for module, delta in deltas.items():
        name = source_name(f"{module}.weight", base)
        a_RI, b_OR = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        got = undone(name, b_OR @ a_RI * (6.0 / 4), base)
        np.testing.assert_allclose(got, delta, rtol=2e-5, atol=2e-6)


def test_adapters_that_llama_cpp_cannot_hold_are_refused_by_name(random_bases: bases.Bases,
                                                                 tmp_path: Path) -> None:
    base = random_bases("llama-tied-shards")
    folder, _ = adapter_of(base, tmp_path / "a")
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    words, state = json.loads(config.read_text()), safetensors.torch.load_file(weights)
    for key, value in {"use_dora": True, "modules_to_save": ["lm_head"], "bias": "all",
                       "init_lora_weights": "pissa_niter_4", "fan_in_fan_out": True,
                       "trainable_token_indices": [1]}.items():
        config.write_text(json.dumps({**words, key: value}))
        with pytest.raises(RecipeError, match=key):
            write_adapter_gguf(folder, base, tmp_path / "a.gguf")
    config.write_text(json.dumps(words))
    first = next(iter(state))

    def refused(changed: dict[str, torch.Tensor], error: type, match: str) -> None:
        safetensors.torch.save_file(changed, weights)
        with pytest.raises(error, match=match):
            write_adapter_gguf(folder, base, tmp_path / "a.gguf")

    head = {f"base_model.model.lm_head.lora_{half}.weight": torch.ones(3, 3) for half in "AB"}
    refused({**state, **head}, RecipeError, "lm_head")
    table = {f"base_model.model.model.embed_tokens.lora_embedding_{half}": torch.ones(3, 3) for half in "AB"}
    refused({**state, **table}, RecipeError, "lora_embedding_A")
    refused({**state, first: state[first][:, :-1].contiguous()}, IntegrityError, "does not fit")
    refused({**state, first: state[first] * torch.nan}, IntegrityError, "NaN")
    refused({name: t for name, t in state.items() if name != first}, IntegrityError, "has no lora_A")
    refused({name.replace("q_proj", "x_proj"): t for name, t in state.items()}, IntegrityError,
            "not in this base")
    refused({}, IntegrityError, "attach to nothing")
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize("pre", PUBLISHED)
def test_byte_level_tokenizers_are_recognised(pre: str, tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "t", PUBLISHED[pre], {"chat_template": "{{ messages }}"})
    assert write_model_gguf(folder, tmp_path / "m.gguf")["tokenizer"] == pre
    reader, _ = read_back(tmp_path / "m.gguf")
    words = json.loads((folder / "tokenizer.json").read_text())
    assert [field(reader, f"tokenizer.ggml.{key}") for key in (
        "model", "pre", "bos_token_id", "eos_token_id", "padding_token_id", "add_bos_token", "add_eos_token")
    ] == ["gpt2", pre, 1, 2, None, False, False]
    vocabulary = sorted(words["model"]["vocab"], key=words["model"]["vocab"].get)
    assert field(reader, "tokenizer.ggml.tokens") == vocabulary
    assert field(reader, "tokenizer.ggml.token_type") == [3] * 4 + [1] * (len(vocabulary) - 4)
    assert field(reader, "tokenizer.ggml.merges") == [" ".join(pair) for pair in words["model"]["merges"]]
    assert field(reader, "tokenizer.chat_template") == "{{ messages }}"


def lowercased(words: dict[str, Any]) -> None:
    words["normalizer"] = {"type": "Lowercase"}


def spaced(words: dict[str, Any]) -> None:
    words["pre_tokenizer"]["add_prefix_space"] = True


def unigram(words: dict[str, Any]) -> None:
    words["model"] = {"type": "Unigram", "unk_id": 0,
                      "vocab": [[text, -1.0] for text in words["model"]["vocab"]], "byte_fallback": False}


def words_alone(words: dict[str, Any]) -> None:
    words["pre_tokenizer"] = {"type": "Whitespace"}


@pytest.mark.parametrize(("change", "named"), [
    (split_words(r"\w+"), r"\\w\+"), (lowercased, "Lowercase"), (spaced, "ByteLevel"), (unigram, "Unigram"),
    (words_alone, "Whitespace"), (split_words(LLAMA3.replace("{1,3}", ""), whole=True), "ignore_merges")])
def test_unknown_tokenizers_are_refused_by_name(change: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=named):
        write_model_gguf(tokenizer_folder(tmp_path / "t", change), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_end_tokens_beginnings_and_added_tokens(tmp_path: Path) -> None:
    def change(words: dict[str, Any]) -> None:
        words["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<s>", "type_id": 0}})
        words["post_processor"]["special_tokens"] = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
        text = next(text for text, number in words["model"]["vocab"].items() if number == 700)
        words["added_tokens"].append({**words["added_tokens"][0], "id": 700, "content": text,
                                      "special": False})

    folder = tokenizer_folder(tmp_path / "t", change)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 2]}))
    write_model_gguf(folder, tmp_path / "m.gguf")
    reader, _ = read_back(tmp_path / "m.gguf")
    ends = [field(reader, f"tokenizer.ggml.{key}")
            for key in ("eos_token_id", "eot_token_id", "add_bos_token")]
    assert ends == [2, 3, True]
    assert field(reader, "tokenizer.ggml.token_type")[698:702] == [1, 1, 4, 1]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1536]}))
    with pytest.raises(IntegrityError, match="special token 1536"):
        write_model_gguf(folder, tmp_path / "m.gguf")
    shutil.rmtree(folder)
    tokenizer_folder(
        folder,
        lambda words: words["added_tokens"].append(
            {**words["added_tokens"][0], "id": 1536, "content": "<x>"}
        ),
    )
    with pytest.raises(IntegrityError, match="the id 1536"):
        write_model_gguf(folder, tmp_path / "m.gguf")
    bases.rewrite_config(folder, lambda words: {**words, "vocab_size": 1539})
    bases.rewrite_tensors(folder, lambda tensors: {name: torch.cat([tensor, tensor[:3]])
                                                   if "word_embeddings.w" in name else tensor
                                                   for name, tensor in tensors.items()})
    write_model_gguf(folder, tmp_path / "m.gguf")
    reader, _ = read_back(tmp_path / "m.gguf")
    assert field(reader, "tokenizer.ggml.tokens")[-3:] == ["<x>", "[PAD1537]", "[PAD1538]"]
    assert field(reader, "tokenizer.ggml.token_type")[-3:] == [3, 5, 5]


def test_checkpoints_that_are_not_whole_are_refused(random_bases: bases.Bases, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="attention_bias"):
        write_model_gguf(random_bases("qwen3-biases").folder, tmp_path / "m.gguf")
    with pytest.raises(RecipeError, match="q4_k"):
        write_model_gguf(random_bases("llama").folder, tmp_path / "m.gguf", "q4_k")
    broken = random_bases.copy("llama", tmp_path / "broken").folder
    name = "model.layers.1.mlp.up_proj.weight"
    bases.rewrite_tensors(broken, lambda tensors: {**tensors, name: tensors[name] * 1e6})
    with pytest.raises(IntegrityError, match="beyond what f16 holds"):
        write_model_gguf(broken, tmp_path / "m.gguf")
    bases.rewrite_tensors(broken, lambda tensors: {**tensors, name: tensors[name] * torch.nan})
    with pytest.raises(IntegrityError, match="NaN"):
        write_model_gguf(broken, tmp_path / "m.gguf")
    bases.rewrite_tensors(broken, lambda tensors: {**tensors, name: tensors[name][1:].contiguous(),
                                                   "more": torch.ones(1)})
    with pytest.raises(IntegrityError, match=r"(?s)calls for \[80, 48\].*does not call for"):
        write_model_gguf(broken, tmp_path / "m.gguf")
    gemma = bases.rewrite_config(broken, lambda words: {**words, "model_type": "gemma"})
    with pytest.raises(RecipeError, match="gemma"):
        write_model_gguf(gemma.folder, tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"old")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_model_gguf(SPROUT, out, "f16", stop)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (4_000, 400_000, 5_000_000):  # in the head, in the first tensor, later
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(DiskError, match="m.gguf"):
                write_model_gguf(SPROUT, out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_nothing_imports_gguf_before_it_is_needed() -> None:
    code = (
        "import sys, tunesmith.share.gguf; sys.exit('gguf' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- Modelfiles
# -------------------------------------------------------------------------------------------------------


def parsed(text: str) -> list[tuple[str, str]]:
    """(command, value) as Ollama's parser/parser.go takes them."""
    found, position = [], 0
    while position < len(text):
        line = text[position:].split("\n", 1)[0]
        if not line or line.startswith("#"):
            position += len(line) + 1
            continue
        command = re.match(r"PARAMETER \w+ |\w+ ", text[position:])[0]
        position, buffer = position + len(command), ""
        while True:
            char = text[position]
            position += 1
            value = buffer.strip()
            quote = '"""' if value.startswith('"""') else '"' if value.startswith('"') else ""
            closed = not quote or (len(value) >= 2 * len(quote) and value.endswith(quote))
            if char == "\n" and closed:
                break
            if char.isprintable() or char in "\n\t":
                buffer += char
        found.append((command.strip(), value[len(quote):len(value) - len(quote)]))
    return found


def went(template: str, prompt: str) -> str:
    """What Go makes of a template whose only actions are .Prompt and strings."""
    pieces = re.split(r"\{\{ (.*?) \}\}", template)
    return "".join(piece if number % 2 == 0 else prompt if piece == ".Prompt" else json.loads(
        re.sub(r"\\U0000(....)", r"\\u\1", piece)) for number, piece in enumerate(pieces))


@given(st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"], exclude_characters="\0"),
               max_size=30) | st.just('{"""}'),
       st.text(st.sampled_from('"{}\n ->:\t\x07\xa0.'), max_size=12))
def test_the_prompt_stands_around_the_user_s_text(front: str, behind: str) -> None:
    prompt = "{quote}".join(part.replace("{", "{{").replace("}", "}}") for part in (front, behind))
    text = modelfile("m.gguf", template=None, prompt=prompt, stop=[], adapter_name=None)
    assert [command for command, _ in parsed(text)] == ["FROM", "TEMPLATE"]
    assert went(dict(parsed(text))["TEMPLATE"], "USER") == front + "USER" + behind


def test_a_modelfile_carries_all_it_should() -> None:
    text = modelfile("m.gguf", template=None, prompt="{quote} ->: ", stop=["</s>", '"end"', "\n\n", " a "],
                     adapter_name="a.gguf")
    assert parsed(text) == [("FROM", "./m.gguf"), ("ADAPTER", "./a.gguf"), ("TEMPLATE", "{{ .Prompt }} ->: "),
                            *(("PARAMETER stop", each) for each in ("</s>", '"end"', "\n\n", " a "))]
    two = modelfile("m.gguf", template=None, prompt="{a} and {b}", stop=[], adapter_name=None)
    assert two.startswith("# The prompts of the recipe have 2 columns")
    for stop in ('"""', "a\x07", ""):
        with pytest.raises(RecipeError, match="stop text"):
            modelfile("m.gguf", template=None, prompt=None, stop=[stop], adapter_name=None)
    with pytest.raises(RecipeError, match="file name"):
        modelfile("my model.gguf", template=None, prompt=None, stop=[], adapter_name=None)


CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' "
          "}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA3_CHAT = ("{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
               "'<|end_header_id|>\n\n' + "
               "m['content'] | trim + '<|eot_id|>' }}{% endfor %}{{ "
               "'<|start_header_id|>assistant<|end_header_id|>\n\n' }}")


def test_known_chat_templates_become_ollama_s() -> None:
    def template(jinja: str) -> str | None:
        return dict(parsed(modelfile("m.gguf", template=jinja, prompt=None, stop=[],
                                     adapter_name=None))).get("TEMPLATE")

    chatml = ("{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end "
              "}}<|im_start|>assistant\n")
    assert template(CHATML) == template("{% generation %}" + CHATML + "{% endgeneration %}") == chatml
    default = ("{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind {.<|im_end|>\n' }}"
               "{% endif %}")
    kind = '<|im_start|>system\nBe kind {{ "{" }}.<|im_end|>\n'
    assert template(default + CHATML) == "{{ if not .System }}" + kind + "{{ end }}" + chatml
    assert template(LLAMA3_CHAT) == ("{{ range .Messages }}<|start_header_id|>{{ .Role "
                                     "}}<|end_header_id|>\n\n{{ .Content }}"
                                     "<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n")
    for unknown in ("{{ strange() }}", "{% if %}", CHATML.replace("im_end", "im_over"), CHATML + " ",
                    "{{ raise_exception('no') }}"):
        text = modelfile("m.gguf", template=unknown, prompt=None, stop=[], adapter_name=None)
        assert text.startswith("# The chat template")
        assert [command for command, _ in parsed(text)] == ["FROM"]
