"""Counts the fields of requests that no dialect reads. They are ignored, as clients expect, but whoever runs the server can see which
ones are asked for. Names come from clients, so their number and length are bounded, and a metric's label is only ever one of a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_MAX_NAMES: Final = 256
_MAX_NAME_CHARS: Final = 64

KNOWN_FIELDS: Final = frozenset(
    # OpenAI's chat, completions and responses
    """
    audio function_call functions metadata modalities moderation prediction prompt_cache_key prompt_cache_options prompt_cache_retention
    safety_identifier service_tier store user verbosity web_search_options context_management max_tool_calls stream_options truncation
    """.split()
    # Anthropic's messages
    + "betas cache_control container inference_geo mcp_servers output_format speed".split()
    # vLLM
    + """
    add_special_tokens documents early_stopping include_reasoning length_penalty mm_processor_kwargs prompt_logprobs response_prefix
    return_tokens_as_token_ids spaces_between_special_tokens truncate_prompt_tokens vllm_xargs
    """.split()
    # SGLang
    + """
    custom_params lora_path no_stop_trim return_hidden_states return_routed_experts separate_reasoning session_params
    stream_interval stream_reasoning log_metrics background
    """.split()
    # llama.cpp and ollama
    + """
    cache_prompt id_slot keep_alive mirostat mirostat_eta mirostat_tau n_keep n_predict n_probs options repeat_last_n repeat_penalty
    return_progress samplers timings_per_token top_a typical_p xtc_probability xtc_threshold dry_multiplier dry_base dry_allowed_length
    """.split()
    # Z.ai, and agents
    + "device_id meta request_id session_id sensitive_word_check user_id".split()
)
"""What clients are known to send that some dialect here does not read: the labels of the metric."""
OTHER: Final = "other"


class IgnoredFields:
    """`total` counts all; `by_name` the first few hundred names that came; `by_label` those of the table, and all others as one."""

    def __init__(self) -> None:
        self.total = 0
        self.by_name: dict[str, int] = {}
        self.by_label: dict[str, int] = {OTHER: 0}

    def note(self, names: Iterable[str]) -> None:
        """Count fields that a request brought for nothing."""
        for name in names:
            self.total += 1
            label = name if name in KNOWN_FIELDS else OTHER
            self.by_label[label] = self.by_label.get(label, 0) + 1
            known = name if len(name) <= _MAX_NAME_CHARS and name.isascii() and name.isprintable() else "(odd name)"
            if known in self.by_name or len(self.by_name) < _MAX_NAMES:
                self.by_name[known] = self.by_name.get(known, 0) + 1
