"""What the routes for tokens and for operators answer, as types (`reply_shape`)."""

# ruff: noqa: D101  # the names are the wire's own

from __future__ import annotations

from typing import Any, Literal

from openglm.server.reply_shape import Shape


class Tokenized(Shape):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Shape):
    prompt: str
    content: str


class TokenizerInfo(Shape):
    tokenizer_class: str
    eos_token: str
    pad_token: str
    bos_token: None
    unk_token: None
    vocab_size: int
    model_max_length: int
    chat_template: str | None
    additional_special_tokens: list[str]
    stop_token_ids: list[int]


class Version(Shape):
    version: str


class ModelInfo(Shape):
    model_path: str
    tokenizer_path: str
    served_model_names: list[str]
    is_generation: bool
    max_model_len: int
    preferred_sampling_params: dict[str, float]


class IgnoredFieldCounts(Shape):
    total: int
    by_name: dict[str, int]


class InternalState(Shape):
    avg_spec_accept_length: float | None
    stats: dict[str, Any]


class ServerInfo(Shape):
    version: str
    status: Literal["starting", "ready", "restarting", "dead", "draining"]
    served_model_name: str
    max_model_len: int
    max_total_num_tokens: int
    page_size: int
    max_queued_requests: int
    default_thinking: bool
    reasoning_field: str
    ignored_fields: IgnoredFieldCounts
    internal_states: list[InternalState]


class Load(Shape):
    dp_rank: int
    num_running_reqs: int
    num_waiting_reqs: int
    num_total_reqs: int
    num_used_tokens: int
    max_total_num_tokens: int
    token_usage: float
    cache_hit_rate: float
    max_running_requests: int
    utilization: float
    queues: dict[str, int]


class Loads(Shape):
    timestamp: str
    version: str
    dp_rank_count: int
    loads: list[Load]
    aggregate: dict[str, int]


class DrainState(Shape):
    draining: bool
    ready: bool
    in_flight: int


class Aborted(Shape):
    aborted: int
