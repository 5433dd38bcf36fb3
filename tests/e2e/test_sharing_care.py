"""What sharing must not harm: a user's files, cards and licences, private repositories, a base's name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import tunesmith
from hub.server import HubServer
from story import ADAPTER, BASE, PROMPT, RECIPE, as_json
from tunesmith import embedded
from tunesmith.rundir import SEAL_NAME

Env = dict[str, str]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file()}


@pytest.fixture(scope="module")
def once(hub: HubServer, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("once")
    as_json("pull", ADAPTER, "here", cwd=folder,
            env={**hub.environment(), "HF_TOKEN": hub.token, "HF_HOME": str(folder / "cache")})
    return folder / "here"


@pytest.fixture
def pulled(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once, tmp_path / "here"))


@pytest.mark.parametrize("change",
                         ["extra", "nested", "card", "metadata", "other", "other-and-damaged", "no-seal"])
def test_pull_loses_nothing_of_the_user_s(pulled: Path, env: Env, tmp_path: Path, change: str) -> None:
    if change == "extra":
        (pulled / "thesis.txt").write_text("mine")
    elif change == "nested":
        (pulled / "notes").mkdir()
        (pulled / "notes" / "a.txt").write_text("mine")
    elif change == "card":
        (pulled / "README.md").write_text("# my own card")
    elif change == "no-seal":
        (pulled / SEAL_NAME).write_text("{}")
        (pulled / "tunesmith.json").write_text("{}")
    else:  # another adapter, as whoever trained it sealed it
        from tunesmith.rundir import seal

        (pulled / "tunesmith.json").write_text('{"base": "mine"}')
        if change != "metadata":
            (pulled / "adapter_model.safetensors").write_bytes(b"another one")
        seal(pulled, [path.name for path in pulled.iterdir() if path.name != SEAL_NAME])
        if change == "other-and-damaged":
            (pulled / "README.md").write_text("my notes")
    before = everything(pulled)
    done = tunesmith("pull", ADAPTER, "here", cwd=tmp_path, env=env)
    assert done.returncode == 2, done.stderr
    assert "would be lost" in done.stderr
    assert everything(pulled) == before


def test_pull_mends_what_it_pulled(pulled: Path, env: Env, tmp_path: Path) -> None:
    before = everything(pulled)
    (pulled / "adapter_model.safetensors").write_bytes(b"rotten")
    (pulled / "tokenizer.json").unlink()
    as_json("pull", ADAPTER, "here", cwd=tmp_path, env=env)
    assert everything(pulled) == before


@pytest.mark.parametrize("words", [("pull", ADAPTER, "."), ("pull", ADAPTER, ".."), ("merge", "RUN", "."),
                                   ("export", "RUN", ".")])
def test_nobody_s_folder_is_swapped_from_under_them(run: Path, env: Env, tmp_path: Path,
                                                    words: tuple[str, ...]) -> None:
    place = tmp_path / "mine" / "inner"
    place.mkdir(parents=True)
    done = tunesmith(*(str(run) if word == "RUN" else word for word in words), cwd=place, env=env)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "mine").iterdir()) == [place]


def test_a_card_is_for_its_owner_to_edit(hub: HubServer, run: Path, env: Env, tmp_path: Path) -> None:
    """Here and on the Hub: the adapter stays whole, the licence is the one that was chosen."""
    shutil.copytree(run, tmp_path / "run")
    card = tmp_path / "run" / "adapter" / "README.md"
    card.write_text(card.read_text().replace("library_name", "license: mit\nlibrary_name", 1))
    assert as_json("generate", "run", *PROMPT, cwd=tmp_path, env=env)["tokens"]
    as_json("push", "run", "tester/mit", cwd=tmp_path, env=env)
    assert b"license: mit" in hub.files("model", "tester/mit")["README.md"]
    again = as_json("push", str(run), "tester/mit", cwd=tmp_path, env=env)
    assert "license: mit" in again["card"], "what is there is kept where nobody says otherwise"
    done = tunesmith("push", str(run), "tester/mit", "--license", "other", cwd=tmp_path, env=env)
    assert done.returncode == 0
    assert "the card there is replaced" in done.stderr
    assert b"license: other" in hub.files("model", "tester/mit")["README.md"]


def test_a_private_repository_is_not_shown_without_a_word(hub: HubServer, run: Path, env: Env,
                                                          tmp_path: Path) -> None:
    as_json("push", str(run), "tester/hidden", cwd=tmp_path, env=env)
    both = tunesmith("push", str(run), "tester/hidden", "--private", "--public", cwd=tmp_path, env=env)
    assert both.returncode == 2
    dry = tunesmith("push", str(run), "tester/hidden", "--public", "--dry-run", cwd=tmp_path, env=env)
    assert "private now, it would be shown to everyone" in dry.stdout
    assert hub.repositories["model", "tester/hidden"].private
    done = tunesmith("push", str(run), "tester/hidden", "--public", cwd=tmp_path, env=env)
    assert "with its earlier commits" in done.stderr
    assert not hub.repositories["model", "tester/hidden"].private


@pytest.fixture(scope="module")
def local(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of the base, with a wish to be pushed."""
    folder = tmp_path_factory.mktemp("local")
    shutil.copytree(embedded.path_of(embedded.BASE_NAME) or Path(), folder / "base")
    env = {**hub.environment(), "HF_TOKEN": hub.token, "HF_HOME": str(folder / "cache")}
    (folder / "my.yaml").write_text(RECIPE.replace(f"base: {BASE}", f"base: {folder / 'base'}")
                                    + "share: {repo: tester/local}\n")
    done = tunesmith("train", "my.yaml", cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    before, _, _ = done.stderr.partition("step 1/")
    assert "which nobody else can load" in before, "told before it trains"
    assert "--base ORG/NAME" in done.stderr
    return folder / "runs" / "my"


def test_a_named_base_is_the_base(hub: HubServer, run: Path, local: Path, env: Env, tmp_path: Path) -> None:
    wrong = dict(hub.files("model", BASE))
    content = bytearray(wrong["model.safetensors"])
    content[-1] ^= 1
    hub.add("model", "maker/wrong", {**wrong, "model.safetensors": bytes(content)})
    for base, code, says in (("maker/wrong", 9, "other weights"), (ADAPTER, 2, "it is an adapter"),
                             ("maker/none", 8, "--base: maker/none")):
        for trained in (local, run):  # on a folder, and by another id
            done = tunesmith("push", str(trained), "tester/local", "--base", base, cwd=tmp_path, env=env)
            assert done.returncode == code, done.stderr
            assert says in done.stderr
    assert ("model", "tester/local") not in hub.repositories
    as_json("push", str(local), "tester/local", "--base", BASE, cwd=tmp_path, env=env)
    config = json.loads(hub.files("model", "tester/local")["adapter_config.json"])
    assert (config["base_model_name_or_path"],
            config["revision"]) == (BASE, hub.commits("model", BASE)[-1].oid)
    assert as_json("generate", "tester/local", *PROMPT, cwd=tmp_path, env=env)["base"] == BASE


def test_what_the_hub_will_not_take_makes_no_repository(hub: HubServer, run: Path, env: Env,
                                                        tmp_path: Path) -> None:
    done = tunesmith("push", str(run), "tester/odd", "--license", "not a licence", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "not an id of a licence" in done.stderr
    hub.fail("validate", 400, times=None, fields={"errors": [{"message": '"license" is odd'}]})
    done = tunesmith("push", str(run), "tester/odd", "--license", "odd", cwd=tmp_path, env=env)
    hub.clear_faults()
    assert done.returncode == 2, done.stderr
    assert '"license" is odd' in done.stderr
    assert "Trying again" not in done.stderr
    assert ("model", "tester/odd") not in hub.repositories
    done = tunesmith("push", str(run), "tester/odd.git", cwd=tmp_path, env=env)
    assert done.returncode == 2, done.stderr
    hub.fail("info", 429, times=None, retry_after=300, match="tester/odd")
    done = tunesmith("push", str(run), "tester/odd", cwd=tmp_path, env=env)
    hub.clear_faults()
    assert done.returncode == 8
    assert "asks to wait 300 s" in done.stderr


def test_a_checkpoint_is_not_published(run: Path, env: Env, tmp_path: Path) -> None:
    (checkpoint,) = (run / "checkpoints").iterdir()
    done = tunesmith("push", str(checkpoint), "tester/x", cwd=tmp_path, env=env)
    assert done.returncode == 2, done.stderr
    assert "a checkpoint" in done.stderr


def test_an_update_that_broke_off_does_not_hide_the_whole_copy(hub: HubServer, run: Path, env: Env,
                                                               tmp_path: Path) -> None:
    files = {name: content for name, content in hub.files("model", ADAPTER).items()
             if name not in (SEAL_NAME, ".gitattributes")}
    hub.add("model", "tester/moving", files)
    first: dict[str, Any] = as_json("pull", "tester/moving", "one", cwd=tmp_path, env=env)
    repository = hub.repositories["model", "tester/moving"]
    hub.add("model", "tester/other",
            {"adapter_model.safetensors": files["adapter_model.safetensors"][:-1] + b"\x01"})
    newer = hub.commits("model", "tester/other")[-1]
    repository.objects |= hub.repositories["model", "tester/other"].objects
    repository.record({**files, **newer.files}, dict(newer.lfs), "newer", "main")
    hub.fail("lfs-get", 403, times=None)
    assert tunesmith("pull", "tester/moving", "two", cwd=tmp_path, env=env).returncode == 8
    hub.clear_faults()
    down = env | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for name, away in (("three", down), ("four", env | {"HF_HUB_OFFLINE": "1"})):
        assert as_json("pull", "tester/moving", name, cwd=tmp_path, env=away)["commit"] == first["commit"]


def test_one_s_own_adapter_of_stock_peft_claims_nothing(hub: HubServer, run: Path, env: Env,
                                                        tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / "adapter" / name, folder / name)
    card = as_json("push", "theirs", "tester/theirs", cwd=tmp_path, env=env)["card"]
    assert "is not known" in card
    for claim in ("kept in", "not quantised", "held out", "- tunesmith"):
        assert claim not in card
    metadata = json.loads(hub.files("model", "tester/theirs")["tunesmith.json"])
    assert "quantization" not in metadata
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
