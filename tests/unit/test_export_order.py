"""What GGUF has no place for is said before anything is merged, no message names a folder that is gone."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from native_bases import Bases, tokenizer, write_base
from test_merge_families import trained
from transformers import AutoConfig

import tunesmith
from tunesmith.errors import DiskError, IntegrityError, RecipeError, TunesmithError
from tunesmith.model.files import BaseFiles
from tunesmith.rundir import staging_folder


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was merged: the real merge, watched."""
    module, called = importlib.import_module("tunesmith.verbs.export"), list[Any]()
    real = module.merge
    monkeypatch.setattr(module, "merge", lambda *words, **more: called.append(words) or real(*words, **more))
    return called


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseFiles, Path]:
    folder = tmp_path_factory.mktemp("llama")
    base = Bases(folder)("llama")
    return base, trained(base, folder / "adapter", ["q_proj", "v_proj"])


def spoiled(base: BaseFiles, to: Path, name: str, **words: Any) -> str:
    shutil.copytree(base.folder, to)
    path = to / name
    path.write_text(json.dumps(json.loads(path.read_text()) | words))
    return str(to)


@pytest.mark.filterwarnings("ignore")
def test_an_architecture_that_llama_cpp_has_not_is_refused_first(tmp_path: Path, merges: list[Any]) -> None:
    config = AutoConfig.for_model("gpt_neox", vocab_size=tokenizer().vocab_size + 64, hidden_size=32,
                                  intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
                                  max_position_embeddings=512)
    base = write_base(tmp_path / "base", config)
    adapter = trained(base, tmp_path / "adapter", ["query_key_value"])
    with pytest.raises(RecipeError, match="cannot be written as GGUF") as error:
        tunesmith.export(adapter, tmp_path / "out", base=str(base.folder))
    assert merges == []
    assert ".tmp-" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize("kind", ["tokenizer", "scaling", "ends", "metadata"])
@pytest.mark.filterwarnings("ignore")
def test_so_is_whatever_else_it_has_no_place_for(kind: str, llama: tuple[BaseFiles, Path], tmp_path: Path,
                                                 merges: list[Any]) -> None:
    base, adapter = llama
    place, own = str(base.folder), tmp_path / "adapter"
    shutil.copytree(adapter, own)
    if kind == "tokenizer":
        place = spoiled(base, tmp_path / "base", "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    elif kind == "scaling":
        place = spoiled(base, tmp_path / "base", "config.json",
                        rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0,
                                                                                  "truncate": False})
    elif kind == "ends":
        (own / "generation_config.json").write_text('{"eos_token_id": 99999999}')
    else:
        (own / "tunesmith.json").write_text('{"prompt": 3}')
    with pytest.raises(TunesmithError) as error:
        tunesmith.export(own, tmp_path / "out", base=place)
    assert merges == []
    assert ".tmp-" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ends", ["x", {"a": 1}, [None, "y"], True, -1, 10**400, [[1]], 1.5, float("inf")],
                         ids=lambda value: str(value)[:12])
def test_an_end_that_is_no_token_is_refused_by_name(ends: Any, tmp_path: Path,
                                                    llama: tuple[BaseFiles, Path]) -> None:
    module = importlib.import_module("tunesmith.verbs.export")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(IntegrityError, match=r"generation_config\.json: eos_token_id"):
        module._modelfile("model.gguf", llama[0], tmp_path, None)
    for fine in (None, 2, [1, 2]):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": fine}))
        assert module._modelfile("model.gguf", llama[0], tmp_path, None)[0]


@pytest.mark.filterwarnings("ignore")
def test_an_export_still_works_and_is_called_by_its_own_name(llama: tuple[BaseFiles, Path], tmp_path: Path,
                                                             merges: list[Any]) -> None:
    from gguf import GGUFReader

    base, adapter = llama
    tunesmith.export(adapter, tmp_path / "my-model", base=str(base.folder), device="cpu")
    assert len(merges) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-model"]
    assert sorted(path.name for path in (tmp_path / "my-model").iterdir()) == ["Modelfile", "model.gguf"]
    field = GGUFReader(tmp_path / "my-model" / "model.gguf").fields["general.name"]
    assert field.contents() == "my-model"


def test_no_error_names_the_temporary_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DiskError) as error, staging_folder(out) as staging:
        raise DiskError(f"{staging / '0' / 'model.safetensors'}: the disk is full",
                        f"Free some space for {staging}.")
    assert (error.value.message, error.value.hint) == (f"{out / 'model.safetensors'}: the disk is full",
                                                       f"Free some space for {out}.")
    with (pytest.raises(DiskError) as error, staging_folder(out) as staging,
          staging_folder(staging / "1") as inner):
        raise DiskError(f"{inner / '0'}: the disk is full")
    assert str(error.value) == f"{out}: the disk is full"
