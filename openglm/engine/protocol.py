"""What the engine process and its clients say to each other: msgpack messages in length-prefixed frames over a Unix socket.

A frame is four bytes (length, little endian) and one message. A frame whose content is no message is answered with
`Refused` and forgotten; a length over the limit means that the two sides have lost step, and the connection is closed. No
pickle: nothing that arrives can become code.
"""

from __future__ import annotations

import struct

import msgspec

from openglm.engine.request import EngineOutput, GenerationRequest
from openglm.engine.stats import EngineStats
from openglm.errors import EngineError

MAX_FRAME_BYTES = 64 << 20
HEADER_BYTES = 4


class Submit(msgspec.Struct, tag="submit", frozen=True):
    """Run a request; its outputs come on the same connection."""

    request: GenerationRequest


class Abort(msgspec.Struct, tag="abort", frozen=True):
    """End a request of this connection; it still gets its terminal output."""

    request_id: str


class StopThinking(msgspec.Struct, tag="stop_thinking", frozen=True):
    """Close the reasoning of a request of this connection; unknown requests are ignored."""

    request_id: str


class AskStats(msgspec.Struct, tag="ask_stats", frozen=True):
    """Answered by `Stats` with the same number."""

    query: int


class FlushCache(msgspec.Struct, tag="flush_cache", frozen=True):
    """Forget every cached prefix; running requests keep their pages. Answered by `Stats` with the same number, once it is done."""

    query: int


class EngineInfo(msgspec.Struct, frozen=True):
    """What a client must know about the engine that became ready."""

    model: str
    num_tokens: int
    max_model_len: int
    max_num_seqs: int
    num_speculative_tokens: int
    dtype: str
    device: str
    reasons: tuple[str, ...]
    """One line per automatic choice."""
    kv_cache_dtype: str = "float32"
    num_host_pages: int = 0
    """Pages of the host tier behind the KV cache."""
    request_timeout_s: float | None = None


class Phase(msgspec.Struct, tag="phase", frozen=True):
    """What the engine does on its way to being ready."""

    name: str


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """Requests are welcome."""

    info: EngineInfo


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The engine cannot start, or a step failed as a whole, and it is about to exit. `kind` is the name of the error's class."""

    kind: str
    message: str


class Outputs(msgspec.Struct, tag="outputs", frozen=True):
    """What one step produced for this connection's requests."""

    items: list[EngineOutput]


class Stats(msgspec.Struct, tag="stats", frozen=True):
    """The answer to `AskStats` or `FlushCache`."""

    query: int
    stats: EngineStats


class Progress(msgspec.Struct, tag="progress", frozen=True):
    """The engine works, though it had nothing to say for a while (a long prompt)."""

    num_steps: int


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """A frame was not understood."""

    message: str


ToEngine = Submit | Abort | StopThinking | AskStats | FlushCache
FromEngine = Phase | Ready | Failed | Outputs | Stats | Progress | Refused

to_engine = msgspec.msgpack.Decoder(ToEngine)
from_engine = msgspec.msgpack.Decoder(FromEngine)
_encoder = msgspec.msgpack.Encoder()


class FrameError(EngineError):
    """The other side announced a frame that no message can have."""


def frame(message: ToEngine | FromEngine) -> bytes:
    """One message, ready to send."""
    payload = _encoder.encode(message)
    return struct.pack("<I", len(payload)) + payload


def frame_length(header: bytes) -> int:
    """The number of bytes that follow this header; `FrameError` when that is absurd."""
    (length,) = struct.unpack("<I", header)
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes was announced; the limit is {MAX_FRAME_BYTES}")
    return int(length)


class FrameBuffer:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that are complete now; `FrameError` when the stream makes no sense."""
        self._bytes += data
        payloads = []
        start = 0
        while len(self._bytes) - start >= HEADER_BYTES:
            end = start + HEADER_BYTES + frame_length(bytes(self._bytes[start : start + HEADER_BYTES]))
            if len(self._bytes) < end:
                break
            payloads.append(bytes(self._bytes[start + HEADER_BYTES : end]))
            start = end
        del self._bytes[:start]
        return payloads
