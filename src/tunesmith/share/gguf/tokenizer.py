"""A tokenizer as llama.cpp reads it: from what transformers really uses, recognised by its structure.

llama.cpp knows two kinds that matter here (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md,
"Tokenizer"):
- "gpt2": byte-level BPE by ranked merges; how a text is cut into words first is named by
  tokenizer.ggml.pre, which stands for a list of regular expressions in llama.cpp's source
  (src/llama-vocab.cpp);
- "llama": SentencePiece's BPE, which joins the neighbours whose union has the best score, with bytes for
  the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import IntegrityError, RecipeError
from tunesmith.model.files import BaseFiles
from tunesmith.model.tokenizer import load_tokenizer
from tunesmith.rundir.ordinary import read_json_object

#: GGUF's token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "▁"  # SentencePiece's
#: The score of what no merge makes: SentencePiece would take it last.
_NO_MERGE = -1e6

_WORDS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_START = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_LLAMA3, _QWEN2 = _START + r"\p{N}{1,3}|" + _WORDS, _START + r"\p{N}|" + _WORDS
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_BYTES_ALONE = ("ByteLevel", False)

#: (the steps of the pre-tokenizer, whether a word that is a token is taken whole) to tokenizer.ggml.pre.
_PRES: dict[tuple[tuple[tuple[Any, ...], ...], bool], str] = {
    ((("ByteLevel", True),), False): "gpt-2",
    ((("Digits", True), ("ByteLevel", True)), False): "smollm",
    ((("Split", _BLOOM, "Isolated", False), _BYTES_ALONE), False): "bloom",
    ((("Split", _QWEN2, "Isolated", False), _BYTES_ALONE), False): "qwen2",
    ((("Split", _LLAMA3, "Isolated", False), _BYTES_ALONE), True): "llama-bpe",
    # the same words, merged from bytes
    ((("Split", _LLAMA3, "Isolated", False), _BYTES_ALONE), False): "smaug-bpe",
}


@dataclass
class Vocabulary:
    """What goes into tokenizer.ggml.*; one text and type for each row of the embedding."""

    model: str
    tokens: list[str]
    types: list[int]
    bos: int | None
    eos: int
    unk: int | None
    pad: int | None
    add_bos: bool
    add_eos: bool
    pre: str | None = None
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    space_prefix: bool = False
    more_stops: list[int] = field(default_factory=list)
    chat_template: str | None = None
    notes: list[str] = field(default_factory=list)

    def write(self, writer: Any) -> None:
        """Put it into a gguf.GGUFWriter."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre or "default")
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        # Where nothing is written llama.cpp takes token 11 (gpt2) or 1 (llama): never leave it open.
        writer.add_bos_token_id(self.eos if self.bos is None else self.bos)
        writer.add_eos_token_id(self.eos)
        if self.unk is not None:
            writer.add_unk_token_id(self.unk)
        if self.pad is not None:
            writer.add_pad_token_id(self.pad)
        for add, token in zip((writer.add_eot_token_id, writer.add_eom_token_id), self.more_stops,
                              strict=False):
            add(token)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        writer.add_add_space_prefix(self.space_prefix)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(base: BaseFiles, rows: int) -> Vocabulary:
    """A base's tokenizer. rows: of its embedding; those without a token are filled with unused ones.

    Raises RecipeError naming what llama.cpp has no counterpart for, IntegrityError for one that contradicts
    itself.
    """
    tokenizer = load_tokenizer(base)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(base, f"it is a {type(tokenizer).__name__}, which has no tokenizer.json")
    tokenizer_json = json.loads(backend.to_str())
    model = tokenizer_json["model"]
    if model["type"] != "BPE":
        raise _refused(
            base, f"its kind is {model['type']}; llama.cpp's tokenizers for these families are BPE")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refused(base, f"its {key} is {model[key]!r}")
    tokens, types = _tokens(base, tokenizer_json, rows)
    vocabulary = Vocabulary("gpt2", tokens, types, add_bos=False, add_eos=False,
                            **_special(base, tokenizer, tokenizer_json, rows))
    _ends(base, tokenizer, vocabulary)
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)
              for merge in model["merges"]]
    steps = _steps(tokenizer_json.get("pre_tokenizer"))
    if any(step[0] == "ByteLevel" for step in steps):
        _byte_level(base, tokenizer_json, steps, merges, vocabulary)
    elif model.get("byte_fallback"):
        _sentencepiece(base, tokenizer_json, merges, vocabulary)
    else:
        raise _refused(base, f"its pre-tokenizer is {_named(tokenizer_json.get('pre_tokenizer'))}, and it "
                       "has neither byte-level words nor a fallback to bytes")
    loose = [token["content"] for token in tokenizer_json.get("added_tokens", [])
             if token["lstrip"] or token["rstrip"] or token["single_word"]]
    if loose:
        vocabulary.notes.append(f"llama.cpp does not take the spaces around {', '.join(loose[:3])} into the "
                                "token, as transformers does")
    return vocabulary


def _refused(base: BaseFiles, reason: str) -> RecipeError:
    return RecipeError(
        f"{base.name}: its tokenizer cannot be written as GGUF: {reason}",
        "Known are byte-level BPE as in GPT-2, BLOOM, Qwen 2 / 3, Llama 3 and SmolLM, and SentencePiece's "
        "BPE as in Llama 2 and Mistral 7B. The PEFT adapter works without GGUF.")


def _named(step: dict[str, Any] | None) -> str:
    return "none" if step is None else json.dumps(step, ensure_ascii=False)[:200]


def _tokens(base: BaseFiles, tokenizer_json: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """(texts, types) by id, as long as the embedding. Raises IntegrityError for larger ids, double texts."""
    texts = {number: (text, NORMAL) for text, number in tokenizer_json["model"]["vocab"].items()}
    for token in tokenizer_json.get("added_tokens", []):
        texts[token["id"]] = (token["content"], CONTROL if token["special"] else USER_DEFINED)
    if max(texts) >= rows:
        raise IntegrityError(
            f"{base.name}: its tokenizer has the id {max(texts)}, its embedding only {rows} rows",
            "Resize the model's embedding to its tokenizer first.")
    filled = [texts.get(number, (f"[PAD{number}]", UNUSED)) for number in range(rows)]
    seen: dict[str, int] = {}
    for number, (text, _) in enumerate(filled):
        if seen.setdefault(text, number) != number:
            raise IntegrityError(f"{base.name}: its tokenizer has {text!r} twice, as {seen[text]} and "
                                 f"{number}, which llama.cpp refuses")
    return [text for text, _ in filled], [kind for _, kind in filled]


def _special(base: BaseFiles, tokenizer: Any, tokenizer_json: dict[str, Any], rows: int) -> dict[str, Any]:
    """Special tokens' ids and the chat template. generation_config.json first says what ends an answer.

    Raises RecipeError when nothing ends an answer, IntegrityError for an id beyond the embedding.
    """
    path = base.folder / "generation_config.json"
    generation = read_json_object(path) if path.exists() else {}
    ends = next((each for each in (generation.get("eos_token_id"), tokenizer.eos_token_id,
                                   base.config.get("eos_token_id"))
                 if each is not None), None)
    stops = [] if ends is None else list(ends) if isinstance(ends, list) else [ends]
    if not stops:
        raise _refused(base, "nothing says which token ends an answer (eos_token)")
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id in stops else stops[0]
    more = [token for token in stops if token != eos]
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else base.config.get("bos_token_id")
    beyond = next((token for token in (*stops, bos) if token is not None and not 0 <= token < rows), None)
    if beyond is not None:
        raise IntegrityError(
            f"{base.name}: its special token {beyond} is none of the {rows} of its embedding")
    unk_text = tokenizer_json["model"].get("unk_token")
    unk = tokenizer_json["model"]["vocab"].get(unk_text) if unk_text else tokenizer.unk_token_id
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    notes = ([f"of its {len(stops)} end tokens GGUF has room for three; give the others as stops"]
             if len(more) > 2 else [])
    return {"bos": bos, "eos": eos, "unk": unk, "pad": tokenizer.pad_token_id, "more_stops": more,
            "chat_template": template, "notes": notes}


def _ends(base: BaseFiles, tokenizer: Any, vocabulary: Vocabulary) -> None:
    """What the tokenizer puts in front of and behind every text, as it does it, not as some flag says."""
    plain, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"])
                    for special in (False, True))
    place = next((i for i in range(len(whole)) if whole[i:i + len(plain)] == plain), None)
    prefix_ids, suffix_ids = ([], []) if place is None else (whole[:place], whole[place + len(plain):])
    if place is None or len(prefix_ids) > 1 or suffix_ids not in ([], [vocabulary.eos]):
        raise _refused(
            base, f"around a text it puts other tokens than one in front and its end token: {whole}")
    if prefix_ids:
        vocabulary.add_bos, vocabulary.bos = True, prefix_ids[0]
    vocabulary.add_eos = bool(suffix_ids)


def _steps(step: dict[str, Any] | None) -> list[tuple[Any, ...]]:
    """A pre-tokenizer as a list of what matters of each of its steps."""
    if step is None:
        return []
    kind = step["type"]
    if kind == "Sequence":
        return [each for inner in step["pretokenizers"] for each in _steps(inner)]
    if kind == "Split":
        return [(kind, *step["pattern"].values(), step["behavior"], step["invert"])]
    if kind == "Digits":
        return [(kind, step["individual_digits"])]
    if kind == "ByteLevel":
        return [(kind, step.get("use_regex", True),
                 *(["a space in front"] if step["add_prefix_space"] else []))]
    return [(kind, json.dumps(step, sort_keys=True))]


def _byte_level(base: BaseFiles, tokenizer_json: dict[str, Any], steps: list[tuple[Any, ...]],
                merges: Iterable[tuple[str, ...]], vocabulary: Vocabulary) -> None:
    """Byte-level BPE. Raises RecipeError for a normalizer or pre-tokenizer that llama.cpp does not know."""
    whole = bool(tokenizer_json["model"].get("ignore_merges"))
    pre = _PRES.get((tuple(steps), whole))
    if pre is None:
        more = " with ignore_merges" if whole else ""
        raise _refused(base, "its pre-tokenizer is not one of those known: "
                       f"{_named(tokenizer_json['pre_tokenizer'])}{more}")
    normalizer = tokenizer_json.get("normalizer")
    if normalizer is not None:
        if normalizer["type"] != "NFC":
            raise _refused(base, f"its normalizer is {_named(normalizer)}")
        vocabulary.notes.append(
            "llama.cpp does not bring text into Unicode's form NFC first, as transformers does: give it NFC")
    vocabulary.pre, vocabulary.merges = pre, [" ".join(merge) for merge in merges]


def _sentencepiece(base: BaseFiles, tokenizer_json: dict[str, Any], merges: list[tuple[str, ...]],
                   vocabulary: Vocabulary) -> None:
    """SentencePiece's BPE: a token's score is the rank of the first merge that makes it, negative."""
    model, vocab = tokenizer_json["model"], tokenizer_json["model"]["vocab"]
    vocabulary.model, vocabulary.space_prefix = "llama", _space_prefix(base, tokenizer_json, vocabulary)
    for byte in range(256):
        name = f"<0x{byte:02X}>"
        if name not in vocab:
            raise _refused(base, f"it falls back to bytes, but has no {name}")
        vocabulary.types[vocab[name]] = BYTE
    if model.get("unk_token") in vocab:
        vocabulary.types[vocab[model["unk_token"]]] = UNKNOWN
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, []).append(rank)
    vocabulary.scores = [-float(ranks[text][0]) if text in ranks else _NO_MERGE for text in vocabulary.tokens]
    known = set(merges)
    # Llama 2's merges of runs of spaces are out of order, and give the same runs all the same.
    apart = sum(places[-1] - places[0] >= len(places) for text, places in ranks.items() if text.strip(_SPACE))
    missing = sum((text[:cut], text[cut:]) not in known for text in ranks for cut in range(1, len(text))
                  if text[:cut] in vocab and text[cut:] in vocab)
    if apart or missing:
        vocabulary.notes.append(
            f"its merges are not all that SentencePiece makes of its tokens ({missing} are missing, {apart} "
            "tokens out of order), so llama.cpp may cut a rare word otherwise")


def _space_prefix(base: BaseFiles, tokenizer_json: dict[str, Any], vocabulary: Vocabulary) -> bool:
    """Whether a space goes before a text. Raises RecipeError where spaces become no SentencePiece mark."""
    normalizer, pre = tokenizer_json.get("normalizer"), tokenizer_json.get("pre_tokenizer")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    inner = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    if pre is None and inner in ([prepend, replace], [replace]):
        return bool(inner[0] == prepend)
    if (inner == [] and pre is not None and pre["type"] == "Metaspace" and pre["replacement"] == _SPACE
            and not pre["split"]):
        if pre["prepend_scheme"] == "never":
            return False
        vocabulary.notes.append(
            "in front of a text that begins with a space llama.cpp puts another one, transformers does not")
        if pre["prepend_scheme"] == "first":
            vocabulary.notes.append(
                "behind a special token inside a text llama.cpp puts a space, transformers does not")
        return True
    raise _refused(base, f"its normalizer is {_named(normalizer)}, its pre-tokenizer {_named(pre)}")
