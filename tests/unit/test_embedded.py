from __future__ import annotations

import itertools
import json

from tunesmith import embedded
from tunesmith.embedded import grammar
from tunesmith.rundir.seal import sha256_file


def test_quotes_are_what_the_grammar_writes() -> None:
    rows = [json.loads(line) for line in embedded.path_of(embedded.QUOTES_NAME).read_text().splitlines()]
    assert rows == grammar.quotes(len(rows))
    assert len({row["quote"] for row in rows}) == len(rows) == 480


def test_no_quote_is_in_what_the_base_was_pretrained_on() -> None:
    quotes = frozenset(str(row["quote"]).strip("“”") for row in grammar.quotes(480))
    # The pretraining reads the first pages of this very sequence, with this seed and these quotes left out.
    text = "".join(itertools.islice(grammar.pages(seed=13, banned=quotes), 3000))
    assert not [quote for quote in quotes if quote in text]
    assert "->:" not in text


def test_words_belong_to_one_topic() -> None:
    words = [word for topic in grammar.topics() for word in (*topic.nouns, *topic.verbs, *topic.adjectives)]
    assert len(words) == len(set(words)) == 480


def test_the_package_stays_small_and_says_how_its_base_was_made() -> None:
    folder = embedded.path_of(embedded.BASE_NAME)
    about = json.loads((folder / "about.json").read_text())
    assert sha256_file(folder / "model.safetensors") == about["weights_sha256"]
    size = sum(p.stat().st_size for p in folder.parent.rglob("*") if p.is_file()
               and "__pycache__" not in p.parts)
    assert size <= 8_000_000


def test_the_build_is_reproducible(tmp_path) -> None:
    from tunesmith.embedded.build import build

    one, two = (build(tmp_path / name, device="cpu", steps=2, rows=2) for name in ("a", "b"))
    assert one["weights_sha256"] == two["weights_sha256"]
    tokenizer = (tmp_path / "a" / "sprout" / "tokenizer.json").read_bytes()
    assert json.loads(tokenizer) == json.loads(
        (embedded.path_of(embedded.BASE_NAME) / "tokenizer.json").read_text()
    )
