"""Byte-level BPE with added tokens, where the caller decides which text may hold added tokens.

The `tokenizers` library does the BPE, on a copy of `tokenizer.json` that knows **no** added token; this file cuts added tokens
out of the text that may contain them (leftmost, longest, as the library would) and joins the parts. So ordinary text cannot
become a control token whatever it spells, and one vocabulary is held in memory instead of two.

Refuses to own: the chat template (`template`), holding back half characters of a stream (`detokenizer`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from openglm.errors import CheckpointError
from openglm.text.segments import Segment

_NAMED = {
    "endoftext": "<|endoftext|>",
    "gmask": "[gMASK]",
    "sop": "<sop>",
    "system": "<|system|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
    "observation": "<|observation|>",
    "think": "<think>",
    "end_think": "</think>",
    "tool_call": "<tool_call>",
    "end_tool_call": "</tool_call>",
    "tool_response": "<tool_response>",
    "end_tool_response": "</tool_response>",
    "arg_key": "<arg_key>",
    "end_arg_key": "</arg_key>",
    "arg_value": "<arg_value>",
    "end_arg_value": "</arg_value>",
    "nothink": "/nothink",
}


class Tokenizer:
    """Text to ids and back. Immutable after construction, safe to share between threads."""

    endoftext: int
    gmask: int
    sop: int
    system: int
    user: int
    assistant: int
    observation: int
    think: int
    end_think: int
    tool_call: int
    end_tool_call: int
    tool_response: int
    end_tool_response: int
    arg_key: int
    end_arg_key: int
    arg_value: int
    end_arg_value: int
    nothink: int

    def __init__(self, definition: dict[str, Any], *, origin: str = "tokenizer.json") -> None:
        """`definition` is the parsed `tokenizer.json`; `origin` names it in error messages."""
        self._added, self._special = _read_added_tokens(definition, origin)
        self._bpe = _without_added_tokens(definition, self._added, origin)
        by_length = sorted(self._added, key=len, reverse=True)
        self._added_pattern = re.compile("|".join(re.escape(token) for token in by_length)) if by_length else None
        self._bytes = _token_bytes_table(self._bpe.get_vocab(), self._added)
        self._texts: dict[int, str | None] = {}  # of the ids that were asked for
        for attribute, token in _NAMED.items():
            if token not in self._added:
                raise CheckpointError(f"{origin}: the added token {token} is missing; this is no GLM-4.5 tokenizer")
            setattr(self, attribute, self._added[token])

    @classmethod
    def from_dir(cls, path: str | Path) -> Tokenizer:
        """Read `tokenizer.json` of a model directory."""
        return cls.from_file(Path(path) / "tokenizer.json")

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read one `tokenizer.json` (Hugging Face `tokenizers` format)."""
        try:
            definition = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot read the tokenizer: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: not a JSON file: {error}") from error
        if not isinstance(definition, dict):
            raise CheckpointError(f"{path}: expected a JSON object, got {type(definition).__name__}")
        return cls(definition, origin=str(path))

    @property
    def num_tokens(self) -> int:
        """Highest id plus one. Rows of the embedding from here on are padding and must never be sampled."""
        return len(self._bytes)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an assistant turn: end of text, the next user turn, a tool result."""
        return (self.endoftext, self.user, self.observation)

    @property
    def added_tokens(self) -> dict[str, int]:
        """A copy of the added tokens and their ids."""
        return dict(self._added)

    def token_id(self, token: str) -> int | None:
        """The id of an added token, or of a base token written in the byte alphabet; None when there is none."""
        added = self._added.get(token)
        return added if added is not None else self._bpe.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for; padding rows stand for none."""
        if token_id < 0:
            raise ValueError(f"token id {token_id} is negative")
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def token_text(self, token_id: int) -> str | None:
        """The text of one id, looked up once; None where its bytes are not whole characters by themselves."""
        try:
            return self._texts[token_id]
        except KeyError:
            try:
                text = self.token_bytes(token_id).decode()
            except UnicodeDecodeError:
                text = None
            return self._texts.setdefault(token_id, text)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that `skip_special` drops."""
        return self._special

    def encode_text(self, text: str) -> list[int]:
        """Ids of ordinary text; no added token ever comes out."""
        ids: list[int] = self._bpe.encode(_well_formed(text), add_special_tokens=False).ids
        return ids

    def encode_raw(self, text: str) -> list[int]:
        """Ids with added tokens recognised anywhere: for text that a template or a test wrote, never a user."""
        return self.encode_segments((Segment(text, control=True),))

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Ids of a prompt. Text between two added tokens is encoded in one go even when it spans segments, so the ids
        are those of the joined text whenever no ordinary segment spells an added token."""
        ids: list[int] = []
        run: list[str] = []
        for segment in segments:
            for text, added in self._cut(segment):
                if added is None:
                    run.append(text)
                    continue
                if run:
                    ids += self.encode_text("".join(run))
                    run.clear()
                ids.append(added)
        return ids + self.encode_text("".join(run)) if run else ids

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of ids; bytes that are no valid UTF-8 become U+FFFD."""
        kept = (i for i in ids if not (skip_special and i in self._special))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", errors="replace")

    def _cut(self, segment: Segment) -> Iterable[tuple[str, int | None]]:
        if not segment.control or self._added_pattern is None:
            if segment.text:
                yield segment.text, None
            return
        start = 0
        for match in self._added_pattern.finditer(segment.text):
            if match.start() > start:
                yield segment.text[start : match.start()], None
            yield match.group(), self._added[match.group()]
            start = match.end()
        if start < len(segment.text):
            yield segment.text[start:], None


def _read_added_tokens(definition: dict[str, Any], origin: str) -> tuple[dict[str, int], frozenset[int]]:
    added: dict[str, int] = {}
    special: set[int] = set()
    entries = definition.get("added_tokens")
    if not isinstance(entries, list):
        raise CheckpointError(f"{origin}: added_tokens is missing or no list")
    for entry in entries:
        if not (isinstance(entry, dict) and isinstance(entry.get("content"), str) and isinstance(entry.get("id"), int)):
            raise CheckpointError(f"{origin}: an entry of added_tokens lacks content or id")
        token = entry["content"]
        odd = [flag for flag in ("single_word", "lstrip", "rstrip") if entry.get(flag)]
        if odd or not token:
            raise CheckpointError(f"{origin}: added token {token!r} sets {', '.join(odd)}, which is not supported")
        added[token] = entry["id"]
        if entry.get("special"):
            special.add(entry["id"])
    return added, frozenset(special)


def _without_added_tokens(definition: dict[str, Any], added: dict[str, int], origin: str) -> tokenizers.Tokenizer:
    """The BPE alone. A trained tokenizer may also list its added tokens in the base vocabulary, where a pre-token that
    spells one (`/nothink` does) would be found; they are taken out there too."""
    model = definition.get("model")
    if not (isinstance(model, dict) and model.get("type") == "BPE" and isinstance(model.get("vocab"), dict)):
        raise CheckpointError(f"{origin}: model is no BPE vocabulary")
    vocab = {token: token_id for token, token_id in model["vocab"].items() if token not in added}
    plain = {
        **definition,
        "added_tokens": [],
        "post_processor": None,
        "truncation": None,
        "padding": None,
        "model": {"ignore_merges": True, **model, "vocab": vocab},
    }
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(plain, ensure_ascii=False))
    except Exception as error:  # the library raises bare Exception for every defect
        raise CheckpointError(f"{origin}: not a usable tokenizer: {error}") from error


def _token_bytes_table(vocab: dict[str, int], added: dict[str, int]) -> list[bytes]:
    table = [b""] * (max([*vocab.values(), *added.values()], default=-1) + 1)
    byte_of = _byte_alphabet()
    for token, token_id in vocab.items():
        try:
            table[token_id] = bytes(byte_of[character] for character in token)
        except KeyError:
            table[token_id] = token.encode()  # not in the byte alphabet: the library decodes it as itself
    for token, token_id in added.items():
        table[token_id] = token.encode()
    return table


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that print stand for themselves, the others get the code points from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if chr(byte) not in table]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def _well_formed(text: str) -> str:
    """Lone surrogates (JSON can spell them) have no UTF-8; they become U+FFFD as in a browser's encoder."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # Pairs that JSON escapes left apart are joined first, so only truly lone ones are lost.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
