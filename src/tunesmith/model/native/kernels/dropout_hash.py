"""lowbias32, a 32-bit mixer found by Christopher Wellons, and the keys that dropout's masks hash.

hash-prospector, https://github.com/skeeto/hash-prospector, public domain. `dropout.py` says how a mask comes
of them.
"""

from __future__ import annotations

#: lowbias32's two multipliers, and 2**32 over the golden ratio: mix(0) is 0, which this keeps the salt 0 away
#: from.
MULTIPLIER_1, MULTIPLIER_2, _GOLDEN = 0x7FEB352D, 0x846CA68B, 0x9E3779B9
MASK_32 = 0xFFFFFFFF


def threshold(p: float) -> int:
    """floor(p * 2**32): hashes below it are dropped."""
    return int(p * 2**32)


def salt_keys(salt: int) -> tuple[int, int]:
    """What the salt adds to the two keys, as signed 32-bit numbers. Raises ValueError for a larger salt."""
    if not 0 <= salt <= MASK_32:
        raise ValueError(f"the dropout salt must be in [0, 2**32), but is {salt}")
    first = mix((salt + _GOLDEN) & MASK_32)
    return signed(first), signed(mix((first + _GOLDEN) & MASK_32))


def mix(h: int) -> int:
    """lowbias32 of an unsigned 32-bit number."""
    h = (h ^ h >> 16) * MULTIPLIER_1 & MASK_32
    h = (h ^ h >> 15) * MULTIPLIER_2 & MASK_32
    return h ^ h >> 16


def signed(value: int) -> int:
    """An unsigned 32-bit number as the signed one of the same bits."""
    return value - (1 << 32) if value >= 1 << 31 else value
