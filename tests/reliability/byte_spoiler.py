"""Good bytes, spoiled: for the black-box corpus and for tests that hand bodies to the application. Everything follows from a seed."""

from __future__ import annotations

import random

SNIPPETS = (
    *(b"null", b"true", b"false", b"-1", b"-0.0", b"1.5", b"1e400", b"1e-320", b"NaN", b"Infinity", b"9" * 30),
    *(b"2147483648", b"9223372036854775808", b"{}", b"[]", b"[[[[", b'""', b'{"type":"x"}', b",,", b"//"),
    *(b'"\\ud800"', b'"\\u0000"', b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
)


def spoiled_bytes(source: random.Random, good: bytes) -> bytes:
    """`good` with bytes exchanged, flipped, cut, inserted and doubled in one to four places; perhaps nothing is left."""
    data = bytearray(good)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(data) or 1)
        match source.randrange(7):
            case 0:
                data[at : at + 1] = bytes([source.randrange(256)])
            case 1 if data:
                data[at] ^= 1 << source.randrange(8)
            case 2:
                del data[at : at + source.randrange(20)]
            case 3:
                data[at:at] = source.choice(SNIPPETS)
            case 4:
                data[at : at + 4] = source.choice(SNIPPETS)
            case 5:
                data[at:at] = data[max(0, at - 30) : at]
            case _:
                del data[at:]
    return bytes(data)
