"""Good bodies, spoiled."""

import random

SNIPPETS = (b"null", b"-1", b"1e400", b'"\\ud800"', b"[[[[", b"{}", b"NaN", b"\x00", b'""', b"true", b"9" * 30, b"[]", b'{"type":"x"}')


def mutated(source: random.Random, good: bytes) -> bytes:
    """`good` with bytes flipped, cut, exchanged, doubled and inserted in one to four places."""
    data = bytearray(good)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(data))
        match source.randrange(5):
            case 0:
                data[at] = source.randrange(256)
            case 1:
                del data[at : at + source.randrange(20)]
            case 2:
                data[at:at] = source.choice(SNIPPETS)
            case 3:
                data[at : at + 4] = source.choice(SNIPPETS)
            case 4:
                data[at:at] = data[max(0, at - 30) : at]
        data = data or bytearray(b"{")
    return bytes(data)
