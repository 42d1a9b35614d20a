"""Which experts stay in host memory when a model is larger than its device, and how fast a token then is. Pure arithmetic on bytes.

Experts are taken as equally likely, so what matters is how the ones in host memory are spread over layers:

    concentrated: as few layers as possible wait for the host, once each, and read all of their experts there
    spread: every layer has a few, so that device and host read at the same time, but every layer waits for the host

The plan is the faster of the two at one sequence. A token's k experts in a layer of E, of which n are in host memory, hit j of those n with
hypergeometric probability; the layer then takes the longer of the two sides, exactly as `openglm.ops.triton` runs it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from openglm.config.model import ModelConfig
from openglm.errors import ConfigError

HOST_ROUND_TRIP_S = 40e-6  # two small copies, an event, and the kernels' start after it; an assumption until it is measured


@dataclass(frozen=True)
class Bandwidths:
    """Bytes per second at which weights are read, and what a layer pays for asking the host at all."""

    device: float
    host: float
    round_trip_s: float = HOST_ROUND_TRIP_S


@dataclass(frozen=True)
class OffloadPlan:
    """How many experts of each KV layer (the MTP layer last) stay in host memory, and what that means."""

    host_experts: tuple[int, ...]
    device_bytes: int
    """Weights on the device."""
    host_bytes: int
    """Weights in host memory."""
    seconds_per_token: float
    """Predicted at one sequence without drafts and with a short context: reading weights, and waiting for the host."""

    @property
    def tokens_per_second(self) -> float:
        """Predicted, as `seconds_per_token` is."""
        return 1 / self.seconds_per_token


def plan_offload(
    model: ModelConfig,
    *,
    layer_weight_bytes: float,
    table_weight_bytes: float,
    device_bytes: int,
    host_bytes: int,
    bandwidths: Bandwidths,
    drafts: bool,
) -> OffloadPlan:
    """Keep in host memory what `device_bytes` have no room for.

    `layer_weight_bytes` is the size of a number in the layers' matrices, `table_weight_bytes` of one in embedding and head. With `drafts`
    the MTP layer is the last to leave the device, without them the first. Raises `ConfigError` when device and host are too small.
    """
    if min(bandwidths.device, bandwidths.host) <= 0 or bandwidths.round_trip_s < 0:
        raise ConfigError("bandwidths must be positive")
    sizes = _Sizes.of(model, layer_weight_bytes, table_weight_bytes)
    moe = [i for i in range(model.num_kv_layers) if model.is_moe_layer(i)]
    count = max(0, math.ceil((sizes.total - device_bytes) / sizes.expert))
    if count > len(moe) * model.n_routed_experts:
        least = sizes.total - len(moe) * model.n_routed_experts * sizes.expert
        raise ConfigError(
            f"the device has {_gib(device_bytes)} for weights, and even without a single expert {_gib(least)} are needed; "
            "raise its share of memory or shorten the KV cache"
        )
    if count * sizes.expert > host_bytes:
        raise ConfigError(
            f"{_gib(count * sizes.expert)} of experts do not fit the device's {_gib(device_bytes)} for weights, and host memory may take "
            f"{_gib(host_bytes)}; raise cpu_offload_gb or the device's share, or use a smaller weight format"
        )
    trunk = [i for i in moe if i < model.num_hidden_layers]
    mtp = [i for i in moe if i >= model.num_hidden_layers]
    best: tuple[float, tuple[int, ...]] | None = None
    for spread in (False, True):
        split = [0] * model.num_kv_layers
        left = count
        for group in (trunk, mtp) if drafts else (mtp, trunk):
            left = _place(split, group, left, model.n_routed_experts, spread=spread)
        seconds = _seconds(model, sizes, split, bandwidths)
        if best is None or seconds < best[0]:
            best = seconds, tuple(split)
    assert best is not None
    moved = int(count * sizes.expert)
    return OffloadPlan(best[1], device_bytes=int(sizes.total) - moved, host_bytes=moved, seconds_per_token=best[0])


@dataclass(frozen=True)
class _Sizes:
    """Bytes of weights."""

    expert: float
    shared: float
    always: float  # read for every token: attention, routers, dense MLPs, head
    total: float

    @classmethod
    def of(cls, model: ModelConfig, layer_bytes: float, table_bytes: float) -> _Sizes:
        h, table = model.hidden_size, model.vocab_size * model.hidden_size * table_bytes
        expert = model.expert_parameters * layer_bytes
        shared = model.n_shared_experts * expert
        attention = model.attention_parameters * layer_bytes
        router, dense = model.n_routed_experts * h * table_bytes, model.dense_mlp_parameters * layer_bytes
        read, total = table, 2 * table + model.num_nextn_predict_layers * 2 * h * h * table_bytes
        for layer in range(model.num_kv_layers):
            is_moe = model.is_moe_layer(layer)
            fixed = attention + (router if is_moe else dense)
            total += fixed + (model.n_routed_experts * expert + shared if is_moe else 0)
            read += fixed if layer < model.num_hidden_layers else 0
        return cls(expert, shared, read, total)


def _place(split: list[int], layers: list[int], count: int, most: int, *, spread: bool) -> int:
    """Put up to `count` experts of these layers into host memory, the last layers first; what is left over."""
    here = min(count, most * len(layers))
    for place, layer in enumerate(reversed(layers)):
        split[layer] = here // len(layers) + (place < here % len(layers)) if spread else min(most, max(0, here - place * most))
    return count - here


def _seconds(model: ModelConfig, sizes: _Sizes, split: list[int], bandwidths: Bandwidths) -> float:
    """One token through the trunk."""
    chosen, experts = model.num_experts_per_tok, model.n_routed_experts
    seconds = sizes.always / bandwidths.device
    for layer in range(model.num_hidden_layers):
        if not model.is_moe_layer(layer):
            continue
        on_host = split[layer]
        for hit in range(max(0, chosen - (experts - on_host)), min(chosen, on_host) + 1):
            probability = math.comb(on_host, hit) * math.comb(experts - on_host, chosen - hit) / math.comb(experts, chosen)
            device = ((chosen - hit) * sizes.expert + sizes.shared) / bandwidths.device
            host = hit * sizes.expert / bandwidths.host + (bandwidths.round_trip_s if on_host else 0.0)
            seconds += probability * max(device, host)
    return seconds


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
