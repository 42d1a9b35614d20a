"""The child process in which grammars are tried out. Started by `grammar_compiler`, by path, on its own.

A grammar is a program that a client sent. llguidance bounds what it spends on one, but a bound may be missed, memory may run out,
and a deeply nested text may overflow the stack: then this process dies, or is killed when it takes too long, and not the engine.

Protocol: messages in msgpack, each behind four bytes with its length (little endian). First comes the vocabulary; from then on grammar
texts come in, and for each an answer goes out: null, or what is wrong. Imports nothing of openglm.
"""

from __future__ import annotations

import resource
import struct
import sys
from typing import Any

import llguidance
import msgspec

MAX_MEMORY = 2 << 30  # bytes of address space; a vocabulary of 150,000 tokens takes about 100 MiB


class _Tokens:
    bos_token_id = None

    def __init__(self, setup: dict[str, Any]) -> None:
        self.tokens: list[bytes] = setup["tokens"]
        self.special_token_ids: list[int] = setup["special"]
        self.eos_token_id: int = setup["end_ids"][0]
        self._ids = {token: i for i, token in enumerate(self.tokens)}

    def __call__(self, text: str) -> list[int]:
        """Byte by byte: which of several spellings is taken does not matter here."""
        return [self._ids[bytes([byte])] for byte in (text.encode() if isinstance(text, str) else text) if bytes([byte]) in self._ids]


def main() -> None:
    """Serve until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    setup = _receive()
    tokenizer = llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(_Tokens(setup)), n_vocab=len(setup["tokens"]), eos_token=list(setup["end_ids"])
    )
    limits = llguidance.LLParserLimits(max_lexer_states=setup["max_lexer_states"], verbose_errors=False)
    _send(None)
    while True:
        text = _receive()
        matcher = llguidance.LLMatcher(tokenizer, text, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the lexer is built when it is first needed
        _send(matcher.get_error() or None)


def _receive() -> Any:
    (length,) = struct.unpack("<I", _read(4))
    return msgspec.msgpack.decode(_read(length))


def _read(count: int) -> bytes:
    data = sys.stdin.buffer.read(count)
    if len(data) < count:
        sys.exit(0)
    return data


def _send(answer: str | None) -> None:
    payload = msgspec.msgpack.encode(answer)
    sys.stdout.buffer.write(struct.pack("<I", len(payload)) + payload)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
