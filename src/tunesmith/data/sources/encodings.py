"""Which encoding a text has that is not UTF-8: by its mark, or, for advice alone, by what its bytes look
like.
"""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

from tunesmith.visible import on_one_line

_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
#: What western texts have beyond ASCII; other 8-bit encodings use these bytes for other letters.
_WESTERN = set("àâäáãåæçèéêëìíîïñòóôõöøùúûüßÀÂÄÁÃÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜœŒŸ“”‘’‚„–—…€«»‹›°·•©®™¡¿£§´ºª\xa0½¼×")
#: The encodings that text files without a mark have, besides UTF-8.
_COMMON = ("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874",
           "koi8_r", "mac_roman", "cp932", "euc_jp", "gb18030", "big5", "cp949")
#: Python's names of encodings that iconv calls otherwise; of all others it knows the name in capitals.
_ICONV = {"mac_roman": "MACINTOSH", "cp1252": "WINDOWS-1252",
          "utf_16_le": "UTF-16LE", "utf_16_be": "UTF-16BE"}
_UNPACK = {".gz": "gzip", ".zst": "zstd"}


def by_mark(head: bytes) -> str | None:
    """Python's name of the encoding whose byte-order mark a file begins with; None where there is none."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def without_mark(head: bytes) -> str | None:
    """UTF-16 without its mark: of the beginning, more than half of every second byte is zero, and no
    other.
    """
    even, odd = head[0:256:2].count(0), head[1:256:2].count(0)
    most = len(head[:256]) // 4
    return "utf_16_le" if odd > most and not even else "utf_16_be" if even > most and not odd else None


def fitting(sample: bytes) -> str | None:
    """Python's name of the 8-bit or East Asian encoding of bytes that are not UTF-8; None if none fits."""
    beyond = [byte for byte in sample if byte > 127]
    try:
        western = {each for each in sample.decode("cp1252") if not each.isascii()} <= _WESTERN
    except UnicodeDecodeError:
        western = False
    if western and len(beyond) < 0.25 * len(sample):
        return "cp1252"
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=list(_COMMON)).best()
    return best.encoding if best is not None else None


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def advice(path: Path, sample: bytes, line: bytes) -> str:
    """What to do about a file that is not UTF-8. sample: its first bytes; line: the one that is not."""
    lines = [each for each in sample.split(b"\n") if not each.isascii()]
    if any(map(_is_utf8, lines)):  # whatever mends the line breaks these
        return ("Other lines are UTF-8, so the file is put together from several, or cut short: mend this "
                "line, or copy or download the file again.")
    encoding = fitting(b"\n".join([*lines[:-1], line]))
    if encoding is None:
        return "Save the file as UTF-8 in the program that wrote it."
    return (f"Its bytes look like {_iconv_name(encoding)}; this line then reads: "
            f"{on_one_line(_around(line, encoding))}\n  {iconv(path, encoding)}")


def _around(line: bytes, encoding: str) -> str:
    """Some of a line on both sides of its first byte beyond ASCII."""
    first = next((at for at, byte in enumerate(line) if byte > 127), 0)
    before = line[:first].decode("ascii")[-30:]
    return (before + line[first:first + 200].decode(encoding, "replace"))[:70]


def iconv(path: Path, encoding: str) -> str:
    """The command that writes the file anew as UTF-8."""
    compression = path.suffix.lower() if path.suffix.lower() in _UNPACK else ""
    stem = path.name.removesuffix(path.suffix) if compression else path.name
    name, dot, ending = stem.rpartition(".")
    new = path.with_name(
        f"{name or stem}.utf8{dot}{ending if name else ''}{path.suffix if compression else ''}"
    )
    old_word, new_word = shlex.quote(str(path)), shlex.quote(str(new))
    convert = f"iconv -f {_iconv_name(encoding)} -t UTF-8"
    if compression:
        tool = _UNPACK[compression]
        return f"{tool} -dc < {old_word} | {convert} | {tool} > {new_word}"
    return f"{convert} {old_word} > {new_word}"


def _iconv_name(encoding: str) -> str:
    return _ICONV.get(encoding, encoding.replace("_", "-").upper())
