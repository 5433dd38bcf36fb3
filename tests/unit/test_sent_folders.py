"""Runs, adapters and bases that someone sent: only their ordinary files are read, written or published."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tunesmith import embedded
from tunesmith.errors import IntegrityError, TunesmithError
from tunesmith.model.files import fingerprint, locate_base, locate_tokenizer
from tunesmith.recipe import Recipe, parse_recipe
from tunesmith.rundir import SEAL_NAME, RunFolder, canonical_seal, check_seal, read_sealed, verify_path
from tunesmith.rundir.ordinary import parse_json, read_ordinary, require_ordinary
from tunesmith.rundir.seal import read_seal, seal, sha256_file
from tunesmith.share.scan import problems
from tunesmith.verbs.adapters import find_adapter, run_of
from tunesmith.verbs.show import Silent

RECIPE = """
model: {base: "embedded:sprout", quantization: none}
data: {source: "embedded:quotes", prompt: "{quote} ->: ", completion: "{tags}", loss_on: completion,
       validation: 12}
train: {max_steps: 4, batch_size: 4, learning_rate: 5.0e-3, warmup_steps: 1, save_steps: 2, eval_steps: 0}
judge: {max_new_tokens: 4, samples: 1, stop_rows: 2}
"""


def small(**changes: str) -> Recipe:
    return parse_recipe(RECIPE,
                        overrides=[f"{key.replace('__', '.')}={value}" for key, value in changes.items()])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tunesmith

    folder = tmp_path_factory.mktemp("runs") / "small"
    tunesmith.train(small(), run=folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "sent"))


def half_way(run: Path) -> None:
    """Make of a finished run one that was stopped after its first checkpoint."""
    for name in ("adapter", "checkpoints/step-000004"):
        shutil.rmtree(run / name)
    for name in ("result.json", "verdict.json", "samples.jsonl", "report.html"):
        (run / name).unlink()
    RunFolder(run).begin()


def train_again(run: Path, **changes: str) -> dict[str, Any]:
    import tunesmith

    return tunesmith.train(small(**changes), run=run)


# --- links, pipes, devices ---


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "recipe.yaml", "manifest.json", SEAL_NAME,
                                  "samples.jsonl", "extra"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_a_run_with_something_else_in_it_is_refused(run: Path, tmp_path: Path, name: str, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (run / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to(victim if kind == "link" else tmp_path / "not-there")
    with pytest.raises(TunesmithError) as caught:
        train_again(run)
    assert caught.value.exit_code == 9
    assert name in caught.value.message
    with pytest.raises(IntegrityError, match="link|pipe"):
        verify_path(run)
    assert victim.read_text() == "precious\n"
    assert not (tmp_path / "not-there").exists()


def test_folders_that_lead_elsewhere_and_second_names(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (run / "checkpoints").rename(elsewhere)
    (run / "checkpoints").symlink_to(elsewhere)
    before = sorted(path.name for path in elsewhere.iterdir())
    with pytest.raises(IntegrityError, match="checkpoints: a link"):
        train_again(run)
    assert sorted(path.name for path in elsewhere.iterdir()) == before
    (run / "checkpoints").unlink()
    elsewhere.rename(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    (tmp_path / "victim").write_text("precious\n")
    os.link(tmp_path / "victim", run / "metrics.jsonl")
    with pytest.raises(IntegrityError, match="hard link"):
        train_again(run)
    assert (tmp_path / "victim").read_text() == "precious\n"


def test_a_run_behind_a_link_of_the_user_s_own_works(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(run.parent)
    assert train_again(tmp_path / "mine" / run.name)["steps"] == 4
    assert not verify_path(tmp_path / "mine" / run.name).damaged


@pytest.mark.parametrize("name", ["/dev/zero", "../victim", "a\0b", "", "a//b", "a/./b"])
def test_a_seal_names_files_below_its_folder_alone(tmp_path: Path, name: Any) -> None:
    (tmp_path / "it").mkdir()
    (tmp_path / "victim").write_text("x")
    (tmp_path / "it" / SEAL_NAME).write_bytes(canonical_seal({name: "0" * 64}))
    assert check_seal(tmp_path / "it") == [tmp_path / "it" / SEAL_NAME]
    with pytest.raises(IntegrityError, match="damaged"):
        read_sealed(tmp_path / "it")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing"])
def test_a_sealed_name_that_is_no_file_is_damage(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "it"
    folder.mkdir()
    (folder / SEAL_NAME).write_bytes(canonical_seal({"a": "0" * 64}))
    if kind == "pipe":
        os.mkfifo(folder / "a")
    elif kind == "device":
        (folder / "a").symlink_to("/dev/zero")
    elif kind == "folder":
        (folder / "a").mkdir()
    assert check_seal(folder) == [folder / "a"]
    with pytest.raises(IntegrityError):
        read_sealed(folder)


@pytest.mark.parametrize("text", ["[" * 10**6, "9" * 5000, "{", "\xff", '{"a": NaN}', ""])
def test_json_that_is_none(text: str) -> None:
    with pytest.raises(IntegrityError, match="some.json: damaged"):
        parse_json(text.encode("latin-1"), "some.json")


# --- what is published ---


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model",
                                  "generation_config.json", "chat_template.jinja", "added_tokens.json"])
def test_no_link_leaves(run: Path, tmp_path: Path, name: str) -> None:
    from tunesmith.share.card import Card
    from tunesmith.share.push import assemble

    secret = tmp_path / "credentials"
    secret.write_text("[default]\naws_secret_access_key = wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEYxx\n")
    adapter = run / "adapter"
    (adapter / name).unlink(missing_ok=True)
    (adapter / name).symlink_to(secret)
    with pytest.raises(IntegrityError, match="a link to"):
        find_adapter(str(adapter), Silent())
    with pytest.raises(IntegrityError, match="a link to"):
        assemble(adapter, None, Card({"base": "org/base"}))
    base = Path(shutil.copytree(embedded.path_of(embedded.BASE_NAME), tmp_path / "base"))
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(secret)
    for look in (locate_base, locate_tokenizer):
        with pytest.raises(IntegrityError, match="a link to"):
            look(str(base), None)


def test_the_hub_client_s_own_links_are_taken(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc").write_text("{}")
    (tmp_path / "secret").write_text("s")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    require_ordinary(snapshot / "config.json")
    (snapshot / "other.json").symlink_to(tmp_path / "secret")
    with pytest.raises(IntegrityError, match="a link"):
        require_ordinary(snapshot / "other.json")


def test_a_cache_whose_blobs_are_elsewhere_is_none(tmp_path: Path) -> None:
    """Sent as a folder of the client's cache, with `blobs` a link to where the secrets are."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "credentials").write_text("s")
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "blobs").symlink_to(tmp_path / "home")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/credentials")
    with pytest.raises(IntegrityError, match="a link to"):
        require_ordinary(snapshot / "tokenizer.json")
    (snapshot.parent.parent / "blobs").unlink()
    (tmp_path / "home").rename(snapshot.parent.parent / "blobs")
    (tmp_path / "way").symlink_to(tmp_path / "models--org--name")
    # the user's own link to the cache
    require_ordinary(tmp_path / "way" / "snapshots" / snapshot.name / "tokenizer.json")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "generation_config.json", "tokenizer.json"])
def test_no_second_name_of_a_file_leaves(run: Path, tmp_path: Path, name: str) -> None:
    """A hard link cannot be told from the file that it is, so what has two names is not published."""
    from tunesmith.share.card import Card
    from tunesmith.share.push import assemble

    own, card = run / "adapter" / name, Card({"base": "org/base"})
    base = Path(shutil.copytree(embedded.path_of(embedded.BASE_NAME), tmp_path / "base"))
    assemble(run / "adapter", base, card)
    if not own.exists():
        own = base / name
    os.link(own, tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="hard link"):
        assemble(run / "adapter", base, card)
    (tmp_path / "elsewhere").unlink()
    assemble(run / "adapter", base, card)


def test_keys_are_found_in_a_binary_vocabulary() -> None:
    key = b"AKIAIOSFODNN7EXAMPLE"
    assert problems("tokenizer.model", b"\x0a\xff\x80 " + key + b" \xfe") == ["holds an AWS key"]
    assert problems("tokenizer.model", bytes(range(256)) * 8) == []


def test_vocabularies_are_looked_through(assets: Path) -> None:
    key = "AKIAIOSFODNN7EXAMPLE"
    assert problems("vocab.json", json.dumps({key: 3}).encode()) == ["holds an AWS key"]
    assert problems("tokenizer.json", b"aws_secret_access_key = wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEYxx")
    for path in sorted(assets.rglob("*")):
        if path.name.startswith(("tokenizer", "vocab", "merges", "special_tokens",
                                 "added_tokens")) and path.suffix in (".json", ".txt"):
            assert problems(path.name, path.read_bytes()) == [], path


# --- bases ---


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The embedded base with an index, in a folder of its own."""
    folder = Path(shutil.copytree(embedded.path_of(embedded.BASE_NAME), tmp_path / "base"))
    weights = folder / "model.safetensors"
    names = list(safetensors.torch.load_file(weights))
    weights.rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))
    return folder


@pytest.mark.parametrize("place", ["pytorch_model.bin", "../outside.safetensors", "/etc/passwd",
                                   "a\0.safetensors", 3, None, "missing.safetensors",
                                   "sub/model.safetensors"])
def test_an_index_names_safetensors_of_its_folder(base: Path, place: Any) -> None:
    torch.save({"x": torch.zeros(1)}, base / "pytorch_model.bin")
    shutil.copy(base / "model-00001-of-00001.safetensors", base.parent / "outside.safetensors")
    locate_base(str(base), None)
    index = json.loads((base / "model.safetensors.index.json").read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = place
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match="no safetensors file of this folder"):
        locate_base(str(base), None)


def test_a_config_does_not_choose_the_weights(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"transformers_weights": "../outside.bin"}))
    with pytest.raises(IntegrityError, match="transformers_weights"):
        locate_base(str(base), None)


def test_a_base_that_also_holds_an_adapter_is_refused(base: Path, finished: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(finished / "adapter" / name, base / name)
    with pytest.raises(IntegrityError, match="also holds an adapter"):
        locate_base(str(base), None)


# --- what a run was made of ---


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json",
                                  "generation_config.json", "added_tokens.json", "chat_template.jinja",
                                  "config.json"])
def test_a_base_s_words_that_changed_are_another_experiment(base: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    train_again(run, model__base=str(base))
    half_way(run)
    known = fingerprint(locate_base(str(base), None))
    text = (base / name).read_text() if (base / name).exists() else "{}"
    (base / name).write_text(text.rstrip() + " \n")
    assert fingerprint(locate_base(str(base), None)) != known
    with pytest.raises(TunesmithError, match=f"changed since the run began.*{name}"):
        train_again(run, model__base=str(base))


@pytest.mark.parametrize("name", [SEAL_NAME, "manifest.json", "recipe.yaml"])
def test_a_run_that_lost_what_it_was_made_of_does_not_go_on(run: Path, name: str) -> None:
    half_way(run)
    (run / name).unlink()
    with pytest.raises(TunesmithError, match=f"{name}.*missing|not a run folder") as caught:
        train_again(run, train__learning_rate="1e-4" if name == SEAL_NAME else "5.0e-3")
    assert caught.value.exit_code in (2, 9)
    assert verify_path(run).damaged


def test_another_run_s_checkpoint_is_refused_and_is_damage(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train_again(other, train__seed="7")
    half_way(run)
    shutil.rmtree(run / "checkpoints" / "step-000002")
    shutil.copytree(other / "checkpoints" / "step-000004", run / "checkpoints" / "step-000004")
    assert verify_path(run).damaged == [run / "checkpoints" / "step-000004" / "state.json"]
    with pytest.raises(IntegrityError, match="another run"):
        train_again(run)


def test_a_recipe_is_replaced_whole_whenever_the_process_ends(run: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at every operation on files between the old recipe and the new one."""
    half_way(run)
    clean = run.parent / "clean"
    shutil.copytree(run, clean)
    text = (run / "recipe.yaml").read_text().replace("save_steps: 2", "save_steps: 3")

    class Killed(BaseException):
        pass

    for fail_at in range(1, 60):
        shutil.rmtree(run)
        shutil.copytree(clean, run)
        calls = 0

        def count(original: Any, fail_at: int = fail_at) -> Any:
            def call(*args: Any, **more: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls >= fail_at:  # and everything after it: the process is gone
                    raise Killed
                return original(*args, **more)
            return call

        with RunFolder(run) as folder, monkeypatch.context() as patch:
            for name in ("open", "write", "fsync", "replace", "close", "unlink"):
                patch.setattr(os, name, count(getattr(os, name)))
            try:
                folder.replace_recipe(text)
                done = True
            except Killed:
                done = False
        assert verify_path(run).damaged == [], fail_at
        with RunFolder(run) as folder:
            assert folder.begun()
            assert folder.recipe.read_text() in (text, (clean / "recipe.yaml").read_text())
        if done:
            assert (run / "recipe.yaml").read_text() == text
            break
    else:
        pytest.fail("it never came to its end")
    assert fail_at > 8


def test_a_harmless_setting_may_change_at_any_time(run: Path) -> None:
    half_way(run)
    assert train_again(run, train__save_steps="3", train__micro_batch_size="2")["steps"] == 4
    assert "save_steps: 3" in (run / "recipe.yaml").read_text()
    assert not verify_path(run).damaged


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_micro_batch_that_changes_takes_effect_and_is_said(run: Path) -> None:
    import tunesmith

    half_way(run)
    show = Notes()
    tunesmith.train(small(train__micro_batch_size="1"), run=run, show=show)
    assert any("micro_batch_size was auto until this checkpoint and is 1" in note for note in show.notes)
    state = json.loads((run / "checkpoints" / "step-000004" / "state.json").read_text())
    assert state["progress"]["micro_batches"]["rows"] == 1


def test_a_finished_run_judged_otherwise_says_so(run: Path) -> None:
    import tunesmith

    show = Notes()
    tunesmith.train(small(judge__samples="3"), run=run, show=show)
    assert any("tunesmith evaluate" in note and "judge.samples=3" in note for note in show.notes)


def test_a_finished_run_may_be_moved(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "moved")
    result = train_again(moved)
    assert result["run"] == str(moved)
    assert result["adapter"] == str(moved / "adapter")
    assert str(run) not in (moved / "result.json").read_text()


def test_an_adapter_beside_a_recipe_is_not_that_recipe_s(run: Path, tmp_path: Path) -> None:
    assert run_of(run / "adapter") == run
    stray = tmp_path / "project" / "adapter"
    shutil.copytree(run / "adapter", stray)
    (stray.parent / "recipe.yaml").write_text(RECIPE)
    assert find_adapter(str(stray), Silent()).run is None
    other = run / "checkpoints" / "adapter"
    shutil.copytree(run / "adapter", other)
    assert run_of(other) is None
    (run / "adapter" / "adapter_config.json").write_text("{}")
    assert run_of(run / "adapter") is None, "not the adapter that the run sealed"


# --- finished runs that lost something ---


@pytest.mark.parametrize("left", ["adapter", "result.json", "verdict.json", "report.html", "samples.jsonl",
                                  "metrics.jsonl"])
def test_a_run_without_seal_and_checkpoints_is_not_trained_over(run: Path, left: str) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / SEAL_NAME).unlink()
    for name in ("adapter", "result.json", "verdict.json", "report.html", "samples.jsonl", "metrics.jsonl"):
        if name != left:
            shutil.rmtree(run / name) if name == "adapter" else (run / name).unlink()
    before = sorted(run.rglob("*"))
    with pytest.raises(IntegrityError,
                       match=f"{SEAL_NAME}: missing, so nothing says what {left} was made of"):
        train_again(run)
    assert sorted(path for path in run.rglob("*")
                  if path.name != ".lock") == [p for p in before if p.name != ".lock"]


@pytest.mark.parametrize("checkpoints", ["none", "damaged"])
def test_a_damaged_finished_run_without_checkpoints_is_not_trained_again(run: Path, checkpoints: str) -> None:
    for step in (run / "checkpoints").iterdir():
        if checkpoints == "none":
            shutil.rmtree(step)
        else:
            (step / "state.json").write_text("{}")
    (run / "verdict.json").write_text("{}")
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(IntegrityError, match=r"verdict.json: damaged, and no whole checkpoint"):
        train_again(run)
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert not list((run / "checkpoints").glob(".damaged-*"))


def test_a_recipe_that_is_no_text_is_damage(run: Path) -> None:
    (run / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IntegrityError, match=r"recipe.yaml: damaged"):
        train_again(run)


def test_a_blob_of_the_cache_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    os.mkfifo(blobs / "x")
    (snapshot / "config.json").symlink_to("../../blobs/x")
    for reader in (read_ordinary, sha256_file):
        with pytest.raises(IntegrityError, match="a pipe"):
            reader(snapshot / "config.json")


@pytest.mark.parametrize("key",
                         ["engine_reason", "machine", "data.counts", "data.source", "base.name", "started"])
def test_a_manifest_that_lacks_what_the_report_says_is_refused_before_training(run: Path, key: str) -> None:
    half_way(run)
    manifest = json.loads((run / "manifest.json").read_text())
    section, _, name = key.rpartition(".")
    del (manifest[section] if section else manifest)[name]
    (run / "manifest.json").write_text(json.dumps(manifest))
    RunFolder(run).begin()
    with pytest.raises(IntegrityError, match=f"manifest.json: {key}: not as"):
        train_again(run)
    assert not (run / "adapter").exists()


@pytest.mark.parametrize("lost", ["engine", "judgement", "prompt", "seconds"])
def test_a_result_that_lacks_something_is_damage(run: Path, lost: str) -> None:
    result = json.loads((run / "result.json").read_text())
    del result[lost]
    (run / "result.json").write_text(json.dumps(result))
    RunFolder(run).finish()
    with pytest.raises(IntegrityError, match=f"result.json: {lost}: not as"):
        train_again(run)


def test_lines_of_metrics_that_no_step_wrote_are_passed_over(run: Path) -> None:
    log = RunFolder(run).metrics
    whole = log.read()
    assert len(whole) == 4
    for line in ("[]", "{}", "3", '{"step": "1", "loss": 1, "learning_rate": 1}',
                 '{"step": 1, "loss": null, "learning_rate": 1}'):
        with log.path.open("a") as file:
            file.write(line + "\n")
    assert log.read() == whole


def test_names_that_only_look_like_checkpoints(run: Path) -> None:
    half_way(run)
    (run / "checkpoints" / "step-²").mkdir()
    (run / "checkpoints" / "step-000009").write_text("a file\n")
    assert [path.name for path in RunFolder(run).checkpoints().paths()] == ["step-000002", "step-000009"]
    assert train_again(run)["steps"] == 4


def test_an_adapter_that_another_engine_runs_is_said(run: Path) -> None:
    import tunesmith

    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    config["target_modules"] = ".*(" + "|".join(config["target_modules"]) + ")"
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    seal(run / "adapter", read_seal(run / "adapter"))
    RunFolder(run).finish()
    for verb in (lambda show: tunesmith.generate(run, prompt="x", max_new_tokens=2, show=show),
                 lambda show: tunesmith.evaluate(run, show=show)):
        show = Notes()
        verb(show)
        assert any("hf engine instead of the native one: the adapter names its modules by a pattern" in note
                   for note in show.notes)


def rewrite_checkpoint(run: Path, change: Any) -> None:
    """Let `change` edit the progress and moments of a half-way run's checkpoint, which is sealed again."""
    step = run / "checkpoints" / "step-000002"
    state = json.loads((step / "state.json").read_text())
    moments = safetensors.torch.load((step / "optimizer.safetensors").read_bytes())
    change(state["progress"], moments)
    (step / "state.json").write_text(json.dumps(state))
    (step / "optimizer.safetensors").write_bytes(safetensors.torch.save(moments))
    seal(step, read_seal(step))


def first_moments(moments: dict[str, torch.Tensor], kind: str) -> str:
    return next(name for name in moments if name.endswith(f"|{kind}"))


@pytest.mark.parametrize(("change", "words"), [
    (lambda progress, moments: progress.update(samples=9), "2 steps and 9 samples do not fit"),
    (lambda progress, moments: progress.update(step=3, samples=12), "3 steps and 12 samples do not fit"),
    (lambda progress, moments: moments.update(
        {(name := first_moments(moments, "exp_avg")): moments[name].half()}), "does not fit"),
    (lambda progress, moments: moments.update(
        {(name := first_moments(moments, "exp_avg_sq")): moments[name] - 1}), "does not fit"),
    (lambda progress, moments: moments.update({first_moments(moments, "step"): torch.tensor(0.0)}),
     "does not fit"),
])
def test_a_checkpoint_that_this_run_cannot_have_written_is_refused(run: Path, change: Any,
                                                                   words: str) -> None:
    half_way(run)
    rewrite_checkpoint(run, change)
    with pytest.raises(IntegrityError, match=words):
        train_again(run)


def test_a_checkpoint_from_before_cuts_said_what_was_asked_goes_on_as_it_was(run: Path) -> None:
    import tunesmith

    half_way(run)
    rewrite_checkpoint(run, lambda progress, moments: (progress["micro_batches"].pop("asked"),
                                                       progress["micro_batches"].update(rows=2)))
    show = Notes()
    tunesmith.train(small(), run=run, show=show)
    assert not any("micro_batch_size" in note for note in show.notes)
    state = json.loads((run / "checkpoints" / "step-000004" / "state.json").read_text())
    assert state["progress"]["micro_batches"]["rows"] == 2
