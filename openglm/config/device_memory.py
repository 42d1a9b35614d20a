"""How much of a GPU's memory the KV cache gets, by either of the two usual rules. Pure arithmetic on bytes.

    gpu_memory_utilization (vLLM): a share of the *whole* memory, which weights, activations, graphs and KV cache have to share.
        KV = share * total - weights - activations - graphs; refused when so much is not free at the start
    mem_fraction_static (SGLang): a share of what is *free before loading*, for weights and KV cache alone.
        KV = share * free - weights; activations and graphs must find room in the rest, which is checked
    neither: 0.9 of what is free, for everything

Activations and graphs are estimated from the shapes of the largest step, generously: what the cache takes it never gives back.
"""

from __future__ import annotations

from dataclasses import dataclass

from openglm.config.model import ModelConfig
from openglm.errors import ConfigError

DEFAULT_SHARE = 0.9
_WORKSPACE = 256 << 20  # of libraries and kernels
_GRAPH_LAUNCHES = 512 << 20  # nodes and arguments of all graphs


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a GPU: all of them, and those free before anything is loaded."""

    total: int
    free: int


def cache_bytes(
    memory: DeviceMemory,
    *,
    weights: int,
    working: int,
    graphs: int,
    gpu_memory_utilization: float | None,
    mem_fraction_static: float | None,
) -> tuple[int, str]:
    """Bytes for the KV cache, which may be less than none, and what they are in words. Raises `ConfigError` when the share is not there."""
    if gpu_memory_utilization is not None:
        asked = int(gpu_memory_utilization * memory.total)
        if asked > memory.free:
            raise ConfigError(
                f"gpu_memory_utilization {gpu_memory_utilization:g} of {_gib(memory.total)} is {_gib(asked)}, and "
                f"{_gib(memory.free)} are free; lower it or free the GPU"
            )
        room = asked - weights - working - graphs
        share = f"gpu_memory_utilization {gpu_memory_utilization:g} of {_gib(memory.total)}"
        return room, f"what {share} leaves beside {_used(weights, working, graphs)}"
    if mem_fraction_static is not None:
        rest = memory.free - int(mem_fraction_static * memory.free)
        if rest < working + graphs:
            raise ConfigError(
                f"mem_fraction_static {mem_fraction_static:g} leaves {_gib(rest)} for activations and graphs, which need about "
                f"{_gib(working + graphs)}; lower it, max_num_batched_tokens or max_num_seqs"
            )
        room = int(mem_fraction_static * memory.free) - weights
        return (
            room,
            f"what mem_fraction_static {mem_fraction_static:g} of {_gib(memory.free)} free leaves beside {_gib(weights)} of weights",
        )
    room = int(DEFAULT_SHARE * memory.free) - weights - working - graphs
    return room, f"what {DEFAULT_SHARE:.0%} of {_gib(memory.free)} free leaves beside {_used(weights, working, graphs)}"


def working_bytes(model: ModelConfig, *, tokens: int, logit_rows: int) -> int:
    """Activations of the largest step: `tokens` through one layer at a time, and `logit_rows` that are sampled."""
    wide = max(model.query_dim + 2 * model.kv_dim, 2 * model.intermediate_size)
    routed = (model.num_experts_per_tok + model.n_shared_experts) * (2 * model.moe_intermediate_size + model.hidden_size)
    layer = tokens * (6 * model.hidden_size + 2 * wide + routed) * 2
    sampling = 4 * logit_rows * model.vocab_size * 4  # logits, adjusted, probabilities, sums
    return layer + sampling + _WORKSPACE


def graph_bytes(model: ModelConfig, *, rows: int) -> int:
    """Of all graphs together, the largest with so many rows: they share memory, as one runs at a time."""
    return working_bytes(model, tokens=rows, logit_rows=rows) - _WORKSPACE + _GRAPH_LAUNCHES


def _used(weights: int, working: int, graphs: int) -> str:
    parts = f"{_gib(weights)} of weights and {_gib(working)} of activations"
    return f"{parts} and {_gib(graphs)} of graphs" if graphs else parts


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
