"""`ServerConfig`: where the HTTP server listens, who may use it, and every bound on what it accepts.

Owns plain values and their checks. What the engine may use (pages, batch sizes, drafts) is the engine's configuration;
how a limit is enforced is the server's business.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal

from openglm.errors import ConfigError

ReasoningField = Literal["reasoning_content", "reasoning", "both"]


@dataclass(frozen=True)
class RequestLimits:
    """Bounds on one request, checked before anything is tokenized. Sizes are bytes, times seconds, the rest counts."""

    body_bytes: int = 8 << 20
    body_read_s: float = 30.0
    json_depth: int = 64
    messages: int = 4096
    tools: int = 128
    stop_strings: int = 16
    stop_string_chars: int = 256
    stop_token_ids: int = 128
    top_logprobs: int = 20
    choices: int = 8
    prompts: int = 128
    """Of one body that brings several, times the choices of each."""
    logit_biases: int = 300
    bad_words: int = 128
    bad_word_chars: int = 64
    regex_chars: int = 2048
    grammar_chars: int = 16 << 10
    answer_choices: int = 1000
    schema_chars: int = 512 << 10
    """Of one JSON schema, or of all tools together where calls are constrained."""


@dataclass(frozen=True)
class ServerConfig:
    """One HTTP server in front of one engine. Times are seconds."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    """Names accepted in `model`; the first is echoed. Empty: the name of the model directory."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    max_queued_requests: int = 512
    """Requests that may wait beyond those the engine runs at once; one more is answered 503 with Retry-After."""
    ready_wait_s: float = 30.0
    """How long a chat request waits for a model that is still loading before it is answered 503."""
    drain_timeout_s: float = 30.0
    keep_alive_s: float = 10.0
    """A stream that has been silent this long sends an SSE comment, so that proxies do not cut a long prefill."""
    default_thinking: bool = True
    parse_special: bool = False
    """Whether the text of raw prompts may hold control tokens, for requests that do not say so themselves."""
    reasoning_field: ReasoningField = "reasoning_content"
    limits: RequestLimits = field(default_factory=RequestLimits)

    def __post_init__(self) -> None:
        """Refuse values with which no server can run, naming the flag."""
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must lie between 0 and 65535, got {self.port}")
        if self.max_queued_requests < 0:
            raise ConfigError(f"--max-queued-requests must not be negative, got {self.max_queued_requests}")
        if self.drain_timeout_s < 0:
            raise ConfigError(f"--shutdown-timeout must not be negative, got {self.drain_timeout_s}")
        if any(not key or key != key.strip() for key in self.api_keys):
            raise ConfigError("--api-key must not be empty or begin or end with white space")
        if any(not name for name in self.served_model_names):
            raise ConfigError("--served-model-name must not be empty")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request gets for the sampling parameters it leaves out."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that no request could set either."""
        checks = (
            (0.0 <= self.temperature <= 2.0, "temperature must lie between 0 and 2", self.temperature),
            (0.0 < self.top_p <= 1.0, "top_p must lie above 0 and at most 1", self.top_p),
            (self.top_k >= 0, "top_k must not be negative", self.top_k),
            (0.0 <= self.min_p <= 1.0, "min_p must lie between 0 and 1", self.min_p),
        )
        for holds, message, value in checks:
            if not holds:
                raise ConfigError(f"sampling defaults: {message}, got {value}")
