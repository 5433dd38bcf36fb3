"""What must not leave this machine: secrets, local paths, pickles. Every file is checked before a push."""

from __future__ import annotations

import json
import os
import re
import struct

from tunesmith.errors import IntegrityError
from tunesmith.paths import expanded
from tunesmith.secrets import secrets_in

_PATHS = re.compile(
    r"(?:/home/|/Users/|/root/|/mnt/|/tmp/|/private/var/|[A-Za-z]:\\Users\\|file:///?|~/)[\w.-][^\s\"'`,)]*"
)
_PICKLE_NAMES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
#: Files of others' making whose text is full of words: of places, only this user's own are looked for there.
_VOCABULARIES = ("tokenizer", "vocab", "merges", "added_tokens", "special_tokens")


def refuse_private(files: dict[str, bytes]) -> None:
    """Raise IntegrityError naming every file that must not leave, and why; a secret is not repeated."""
    if refusals := [f"{name}: {problem}" for name, content in sorted(files.items())
                    for problem in problems(name, content)]:
        all_generated = all(each.startswith(("README.md:", "tunesmith.json:")) for each in refusals)
        raise IntegrityError("not published:\n  " + "\n  ".join(refusals),
                             "These files are made from the recipe: change data.prompt there, and train "
                             "again." if all_generated else
                             "Take it out of these files, then push again.")


def problems(name: str, content: bytes) -> list[str]:
    """What of a file should not leave."""
    if name.endswith(_PICKLE_NAMES) or _is_pickle(content):
        return ["a pickle, which can run any code"]
    if name.endswith(".safetensors"):
        header = _header(content)
        return ["not a whole safetensors file"] if header is None else _in_text(header, vocabulary=False)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        if not name.endswith(".model"):
            return ["neither text nor safetensors"]
        text = content.decode("latin-1")  # a vocabulary of SentencePiece's, which holds its words as they are
    return _in_text(text, vocabulary=name.startswith(_VOCABULARIES))


def _in_text(text: str, *, vocabulary: bool) -> list[str]:
    reasons = [f"holds {what}" for what in secrets_in(text)]
    if (token := _own_token()) and token in text:
        reasons.append("holds your Hub token")
    places = [place for place in _own_places() if place in text]
    if not places and not vocabulary and (path := _PATHS.search(text)):
        places = [path[0][:60]]
    return reasons + [f"names a place on this machine, {place}" for place in places[:1]]


def _own_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _own_places() -> list[str]:
    """This user's home and the current folder, where they are long enough to be told from ordinary words."""
    return [place for place in {str(expanded("~")), os.getcwd()} if place.count("/") > 1]


def _is_pickle(content: bytes) -> bool:
    """By its first bytes: protocol 2 and later, or torch's zip of one."""
    return (re.match(rb"\x80[\x02-\x05]", content) is not None
            or (content[:2] == b"PK" and b"data.pkl" in content[:4096]))


def _header(content: bytes) -> str | None:
    """A safetensors file's header as text."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = content[8:8 + length].decode("utf-8")
        return header if isinstance(json.loads(header), dict) else None
    except (struct.error, UnicodeDecodeError, ValueError):
        return None
