"""`ServerConfig`: where the HTTP server listens, who may use it, and every bound on what it accepts.

Owns plain values and their checks. What the engine may use (pages, batch sizes, drafts) is the engine's configuration;
how a limit is enforced is the server's business.
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from openglm.errors import ConfigError

ReasoningField = Literal["reasoning_content", "reasoning", "both"]
MetricsCompat = Literal["vllm", "sglang"]


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

    def __post_init__(self) -> None:
        """Refuse a limit that is no limit, naming the flag."""
        _check_limits(self, lowest=0)


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds on connections and on what HTTP itself costs, before a request means anything. Sizes are bytes, times seconds."""

    head_bytes: int = 32 << 10
    """Request line and headers together; one of them may have `head_line_bytes`."""
    head_line_bytes: int = 8 << 10
    head_lines: int = 100
    head_read_s: float = 10.0
    """From a connection, or from the first byte of a further request, to the end of its headers."""
    body_chunks: int = 65_536
    """Of a body sent in chunks: each costs work, however small it is."""
    idle_s: float = 75.0
    """How long a connection is kept between requests."""
    write_stall_s: float = 60.0
    """How long a client may leave what it was sent unread before its request is aborted."""
    connections: int = 2048
    connections_per_peer: int = 256
    """From one address. Behind a proxy or a router all clients share one: raise both there."""

    def __post_init__(self) -> None:
        """Refuse a limit with which nobody can be served, naming the flag."""
        _check_limits(self, lowest=0.001)


def limit_flag(name: str) -> str:
    """The flag of a limit: `body_bytes` -> `--limit-body-bytes`."""
    return "--limit-" + name.replace("_", "-")


def _check_limits(limits: RequestLimits | ConnectionLimits, *, lowest: float) -> None:
    for each in fields(limits):
        value = getattr(limits, each.name)
        if not lowest <= value < math.inf:
            raise ConfigError(f"{limit_flag(each.name)} must be a number of at least {lowest:g}, got {value}")


@dataclass(frozen=True)
class ServerConfig:
    """One HTTP server in front of one engine. Times are seconds."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    """Names accepted in `model`; the first is echoed. Empty: the name of the model directory."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Keys of the control routes, which are not there for anybody else. Such a key opens the other routes too."""
    admin_socket: str | None = None
    """Path of a Unix socket over which every route, control routes included, needs no key: its file's owner may use it."""
    public_metrics: bool | None = None
    """Whether /metrics needs no key; None: only while the server listens on loopback."""
    share_prefix_cache: bool = False
    """Whether holders of different keys find each other's prefixes in the cache, and so can tell what others asked."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in the Host header that are accepted, besides local ones and addresses, where names are checked (`checks_hosts`)."""
    allowed_origins: tuple[str, ...] = ()
    """Origins whose pages may call this server from a browser ("*": any). Empty: none but its own."""
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    metrics_compat: MetricsCompat = "vllm"
    """Whose names /metrics has: vLLM's always, "sglang" adds SGLang's."""
    otlp_traces_endpoint: str | None = None
    """Where spans are sent (OTLP over HTTP); None: nowhere, and OpenTelemetry is not even imported."""
    max_queued_requests: int = 512
    """Requests that may wait beyond those the engine runs at once; one more is answered 503 with Retry-After."""
    max_queued_tokens: int | None = None
    """Prompt tokens of all requests that wait; None: four times what the KV cache holds."""
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
    connection_limits: ConnectionLimits = field(default_factory=ConnectionLimits)

    def __post_init__(self) -> None:
        """Refuse values with which no server can run, naming the flag."""
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must lie between 0 and 65535, got {self.port}")
        if self.max_queued_requests < 0:
            raise ConfigError(f"--max-queued-requests must not be negative, got {self.max_queued_requests}")
        for flag, seconds in (("--shutdown-timeout", self.drain_timeout_s), ("--ready-wait", self.ready_wait_s)):
            if not 0 <= seconds < math.inf:
                raise ConfigError(f"{flag} must not be negative, got {seconds}")
        if not 0 < self.keep_alive_s < math.inf:
            raise ConfigError(f"--keep-alive must be more than 0 seconds, got {self.keep_alive_s}")
        for flag, keys in (("--api-key", self.api_keys), ("--admin-api-key", self.admin_api_keys)):
            if any(not key or key != key.strip() or not (key.isascii() and key.isprintable()) for key in keys):
                raise ConfigError(f"{flag} must be printable ASCII, not empty, and neither begin nor end with white space")
        if set(self.api_keys) & set(self.admin_api_keys):
            raise ConfigError("--admin-api-key must differ from every --api-key")
        if self.max_queued_tokens is not None and self.max_queued_tokens < 1:
            raise ConfigError(f"--max-queued-tokens must be at least 1, got {self.max_queued_tokens}")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ConfigError("TLS needs both --ssl-certfile and --ssl-keyfile")
        for origin in self.allowed_origins:
            scheme, separator, rest = origin.partition("://")
            if origin != "*" and (not scheme or not separator or not rest or "/" in rest):
                raise ConfigError(f"--allowed-origins takes origins such as https://chat.example.org, got {origin!r:.80}")
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

    @property
    def checks_hosts(self) -> bool:
        """Whether a request must name a host of ours. A page that makes its own name resolve to this machine (DNS rebinding) could
        otherwise use a server that only listens on loopback."""
        return self.is_loopback or bool(self.allowed_hosts)

    @property
    def metrics_are_public(self) -> bool:
        """Whether /metrics needs no key."""
        return self.is_loopback if self.public_metrics is None else self.public_metrics


def read_key_file(path: str) -> tuple[str, ...]:
    """Keys from a file, one a line; empty lines and lines that begin with # are skipped. Raises `ConfigError` without quoting any."""
    try:
        lines = Path(path).expanduser().read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot read keys: {reason}") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise ConfigError(f"{path}: holds no key; write one a line")
    return keys


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
