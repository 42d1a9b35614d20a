"""`EngineConfig`: what a user may say about the engine, and `resolve`, which turns every "auto" into a number with a reason.

`EngineConfig` is what flags and keyword arguments fill; None (or "auto") means "choose for me". `ResolvedEngineConfig` is what the
engine runs with. `resolve` is pure: the same inputs give the same answer, nothing is probed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from openglm.config.device_memory import DeviceMemory, cache_bytes, graph_bytes, working_bytes
from openglm.config.model import ModelConfig
from openglm.config.offload import Bandwidths, OffloadPlan, plan_offload
from openglm.errors import ConfigError

DType = Literal["float32", "bfloat16", "float16"]
KVCacheDType = Literal["float32", "bfloat16", "float16", "fp8_e4m3"]
LoadFormat = Literal["auto", "dummy"]
SpeculativeMethod = Literal["mtp", "ngram"]
Quantization = Literal["fp8", "int8", "int4", "w8a8"]

PAGE_SIZE = 64  # tokens per KV page, everywhere
ROW_TILE = 16  # rows of every matrix product in deterministic mode
SMALL_MODEL_PARAMETERS = 1_000_000_000
ONE_THREAD_PARAMETERS = 50_000_000
MAX_SPECULATIVE_TOKENS = 8
NATIVE_MAX_HEAD_DIM = 256
NATIVE_MAX_GROUP = 48  # query heads per KV head
NATIVE_MAX_EXPERTS = 1024
MAX_HOST_GIB = 1 << 20
ADAPTIVE_SPECULATIVE_TOKENS = 3
FP8_SHARE = 0.75  # a checkpoint smaller than this part of its parameters in 16 bits has its layers in FP8
MAX_PROMPT_LOOKUP = 32
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
_INT4_BYTES = 17 / 32  # four bits, and two bf16 numbers for 128 of them
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8_e4m3": 1}
_DTYPES = ("float32", "bfloat16", "float16")
_KV_CACHE_DTYPES = ("auto", "float32", "bfloat16", "fp8", "fp8_e4m3")
_SCALE_BYTES = 4


@dataclass(frozen=True)
class EngineConfig:
    """What the user asked for. None means automatic, where a field allows it."""

    model: str | None = None
    """A model directory; None is the embedded glm-nano. With load_format "dummy": the name of a variant."""
    load_format: LoadFormat = "auto"
    """"dummy" runs random weights of a named variant, to measure or to test without a checkpoint."""
    device: str = "auto"
    dtype: Literal["auto"] | DType = "auto"
    num_speculative_tokens: int | None = None
    """Draft tokens per step; 0 turns speculation off, None lets measurements decide at every step."""
    speculative_method: SpeculativeMethod = "mtp"
    """Who drafts: the model's MTP layer, or "ngram": what followed the same tokens earlier in the sequence."""
    prompt_lookup_max: int | None = None
    """Tokens that an n-gram match may span, and must span; one of the two alone means exactly so many."""
    prompt_lookup_min: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    """Tokens per step over all requests: the size of a prefill chunk."""
    kv_cache_tokens: int | None = None
    kv_cache_dtype: Literal["auto", "fp8"] | KVCacheDType = "auto"
    """"auto" is the model's dtype. "fp8" (e4m3, one scale per token and head) holds about twice the tokens of bf16, not bit for bit."""
    kv_offloading_size: float = 0.0
    """GiB of host memory for pages that the KV cache has no room for any more."""
    gpu_memory_utilization: float | None = None
    """Share of the GPU's whole memory that the engine may take: weights, KV cache, activations and graphs. None is 0.9 of what is free."""
    mem_fraction_static: float | None = None
    """Share of the memory that is free before loading for weights and KV cache alone; activations and graphs live in the rest."""
    enforce_eager: bool = False
    """Launch every kernel of every step instead of replaying graphs."""
    overlap_scheduling: bool = True
    """Where graphs are replayed: launch the next step before the tokens of the one before it are read."""
    cpu_offload_gb: float = 0.0
    """GiB of experts that stay in host memory and are computed there, which leaves the GPU so much more room."""
    enable_prefix_caching: bool = True
    deterministic: bool | None = None
    """Results of a request do not depend, bit for bit, on what else is in the batch."""
    threads: int | None = None
    """Of the CPU kernels. None means all cores, but for a model that is fast anyway only those that clients and server can spare."""
    owns_machine: bool = False
    """No server and no clients need the other cores."""
    native_kernels: bool | None = None
    """Run on the native CPU kernels (`openglm.ops.cpu`); None means where they can run."""
    quantization: Quantization | None = None
    """Round the layers' matrices while loading; FP8 checkpoints are used as they are without it. "fp8" (e4m3) and "int8" have one scale per
    output, "int4" sixteen steps for 128 inputs at a time. "w8a8" is int8 that rounds activations too, a scale per token: faster prompts,
    and not the tokens of the weight-only formats."""
    seed: int | None = None
    """Seed of requests without one; None draws a fresh one at every start."""
    max_queued_requests: int = 512
    max_preemptions: int = 4
    request_timeout_s: float | None = None
    """Time limit of requests that bring none, from arrival to the last token; None is no limit."""

    def __post_init__(self) -> None:
        """Refuse values that no model and machine could make right, naming the field."""
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} must be at least {low}, got {value}")
        if self.num_speculative_tokens is not None and self.num_speculative_tokens > MAX_SPECULATIVE_TOKENS:
            raise ConfigError(f"num_speculative_tokens must be at most {MAX_SPECULATIVE_TOKENS}, got {self.num_speculative_tokens}")
        if self.speculative_method not in ("mtp", "ngram"):
            raise ConfigError(f"speculative_method must be mtp or ngram; got {self.speculative_method!r}")
        self._check_prompt_lookup()
        if self.dtype not in ("auto", *_DTYPES):
            raise ConfigError(f"dtype must be auto, {', '.join(_DTYPES)}; got {self.dtype!r}")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ConfigError(f"quantization must be one of {', '.join(QUANTIZATIONS)}; got {self.quantization!r}")
        if self.kv_cache_dtype not in _KV_CACHE_DTYPES:
            raise ConfigError(f"kv_cache_dtype must be one of {', '.join(_KV_CACHE_DTYPES)}; got {self.kv_cache_dtype!r}")
        if not 0 <= self.kv_offloading_size <= MAX_HOST_GIB:
            raise ConfigError(f"kv_offloading_size must lie between 0 and {MAX_HOST_GIB} GiB, got {self.kv_offloading_size}")
        for name in ("gpu_memory_utilization", "mem_fraction_static"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ConfigError(f"{name} must be more than 0 and at most 1, got {share}")
        if self.gpu_memory_utilization is not None and self.mem_fraction_static is not None:
            raise ConfigError("gpu_memory_utilization and mem_fraction_static each size the KV cache, by different rules; give one of them")
        if not 0 <= self.cpu_offload_gb <= MAX_HOST_GIB:
            raise ConfigError(f"cpu_offload_gb must lie between 0 and {MAX_HOST_GIB} GiB, got {self.cpu_offload_gb}")
        if self.request_timeout_s is not None and not 0 < self.request_timeout_s < math.inf:
            raise ConfigError(f"request_timeout_s must be more than 0 seconds, got {self.request_timeout_s}")
        if self.load_format not in ("auto", "dummy"):
            raise ConfigError(f"load_format must be auto or dummy; got {self.load_format!r}")
        if self.load_format == "dummy" and self.model is None:
            raise ConfigError("load_format dummy needs the name of a variant as model, such as glm-nano")

    def _check_prompt_lookup(self) -> None:
        longest, shortest = self.prompt_lookup_max, self.prompt_lookup_min
        for name, value in (("prompt_lookup_max", longest), ("prompt_lookup_min", shortest)):
            if value is None:
                continue
            if self.speculative_method != "ngram":
                raise ConfigError(f"{name} belongs to speculative_method ngram, and this is {self.speculative_method}")
            if value > MAX_PROMPT_LOOKUP:
                raise ConfigError(f"{name} must be at most {MAX_PROMPT_LOOKUP}, got {value}")
        if longest is not None and shortest is not None and shortest > longest:
            raise ConfigError(f"prompt_lookup_min {shortest} is more than prompt_lookup_max {longest}")


@dataclass(frozen=True)
class ResolvedEngineConfig:
    """What the engine runs with: every choice made."""

    device: str
    dtype: DType
    num_speculative_tokens: int
    """At most so many drafts per sequence and step; exactly so many unless `adaptive_drafts`."""
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_pages: int
    kv_cache_dtype: KVCacheDType
    num_host_pages: int
    enable_prefix_caching: bool
    row_tile: int | None
    threads: int | None
    torch_threads: int | None
    """Of torch's own operations, which between native kernels are too small to share."""
    native_kernels: bool
    quantization: Quantization | None
    seed: int | None
    max_queued_requests: int
    max_preemptions: int
    request_timeout_s: float | None
    adaptive_drafts: bool = False
    speculative_method: SpeculativeMethod = "mtp"
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2
    enforce_eager: bool = False
    overlap_scheduling: bool = True
    device_kernels: bool = False
    """The GPU kernels (`openglm.ops.triton`) run the model."""
    host_experts: tuple[int, ...] | None = None
    """How many experts of each KV layer stay in host memory (see `config.offload`); None is none."""


@dataclass(frozen=True)
class Machine:
    """What the engine may use: the device's name ("cpu", "cuda"), processor cores, and memory of that device in bytes.

    `native_kernels` names the instruction set of the native CPU kernels, None where there are none; `device_kernels` says whether those of
    the GPU can be compiled, for which Triton must be installed.
    """

    device: str
    cores: int
    memory_bytes: int
    native_kernels: str | None = None
    device_kernels: bool = False
    total_bytes: int = 0
    """Memory of a GPU with what others hold of it; 0 where it is as much as `memory_bytes`, which then is free."""
    host_bytes: int = 0
    """Memory beside a GPU's own, for experts."""
    bandwidths: Bandwidths | None = None
    """At which weights are read from the GPU's memory and from the host's, where that was measured."""

    @property
    def multiplies_bf16(self) -> bool:
        """Whether the native kernels multiply bf16 numbers directly, at twice the rate of fp32."""
        return self.native_kernels in ("amx", "avx512_bf16")


def resolve(
    config: EngineConfig, model: ModelConfig, machine: Machine, *, stored_bytes: int | None = None
) -> tuple[ResolvedEngineConfig, tuple[str, ...]]:
    """Make every automatic choice; each one that was not dictated comes with a line saying why.

    `stored_bytes` is the size of the checkpoint's weights, which FP8 checkpoints keep on a GPU.
    """
    reasons: list[str] = []
    on_cpu = machine.device == "cpu"
    parameters = num_parameters(model)
    small = parameters < SMALL_MODEL_PARAMETERS

    dtype: DType
    if config.dtype != "auto":
        dtype = config.dtype
    elif on_cpu and small and not (machine.multiplies_bf16 and model.dtype == "bfloat16"):
        dtype = "float32"
        reasons.append(f"dtype float32: {_count(parameters)} parameters fit easily, and this processor multiplies bf16 no faster")
    else:
        dtype = model.dtype  # type: ignore[assignment]  # ModelConfig admits only these names
        reasons.append(f"dtype {dtype}: as stored in the checkpoint")

    max_num_seqs = config.max_num_seqs or (16 if on_cpu else 64)
    drafts = _num_drafts(config, model, max_num_seqs, reasons)
    needed = max_num_seqs * (1 + drafts)
    budget = config.max_num_batched_tokens
    if budget is None:
        budget = max(512 if on_cpu else 4096, needed + PAGE_SIZE)
        reasons.append(f"max_num_batched_tokens {budget}: bounds the pause a long prompt causes in other streams")
    elif budget < needed:
        raise ConfigError(
            f"max_num_batched_tokens {budget} is less than max_num_seqs {max_num_seqs} x (1 + {drafts} drafts) = {needed}; "
            "raise it or lower max_num_seqs"
        )

    on_gpu = _device_kernels(config, model, machine, reasons)
    native = not on_gpu and _native_kernels(config, model, machine, dtype, reasons)

    kv_cache_dtype = _kv_cache_dtype(config, dtype)
    weights = _weight_bytes(config, model, dtype)
    stored_as_fp8 = on_gpu and not config.quantization and stored_bytes is not None and stored_bytes < FP8_SHARE * weights
    if stored_as_fp8 and stored_bytes is not None:
        weights = stored_bytes
    layer_bytes = 1 if stored_as_fp8 or config.quantization == "fp8" else _BYTES[dtype]
    offload = _offload(config, model, machine, dtype, drafts, layer_bytes, on_gpu=on_gpu, reasons=reasons)
    weights -= offload.host_bytes if offload is not None else 0
    demand = CacheDemand(max_num_seqs, 1 + drafts, budget, weights, graphs=on_gpu and offload is None and not config.enforce_eager)
    max_model_len, num_pages = cache_size(config, model, machine, kv_cache_dtype, demand, reasons)
    num_host_pages = _host_pages(config, model, machine, kv_cache_dtype)

    deterministic = config.deterministic
    if deterministic is None:
        deterministic = on_cpu and small
        if deterministic and not native:
            reasons.append("deterministic: fixed row tiles cost little at this size; the same request gives the same tokens in any batch")
    threads = config.threads
    if threads is None and on_cpu:
        light = parameters < ONE_THREAD_PARAMETERS
        threads = 1 if light and not (native and config.owns_machine) else machine.cores
        if light and threads == 1:
            reasons.append("threads 1: at this size waiting for other threads costs what they would save; the other cores serve clients")
    resolved = ResolvedEngineConfig(
        device=machine.device,
        dtype=dtype,
        num_speculative_tokens=drafts,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        num_pages=num_pages,
        kv_cache_dtype=kv_cache_dtype,
        num_host_pages=num_host_pages,
        enable_prefix_caching=config.enable_prefix_caching,
        row_tile=ROW_TILE if deterministic else None,
        threads=threads,
        torch_threads=1 if native and parameters < ONE_THREAD_PARAMETERS else threads,
        native_kernels=native,
        quantization=config.quantization,
        seed=config.seed,
        max_queued_requests=config.max_queued_requests,
        max_preemptions=config.max_preemptions,
        request_timeout_s=config.request_timeout_s,
        adaptive_drafts=config.num_speculative_tokens is None and drafts > 0,
        speculative_method=config.speculative_method,
        prompt_lookup_max=config.prompt_lookup_max or config.prompt_lookup_min or 4,
        prompt_lookup_min=config.prompt_lookup_min or config.prompt_lookup_max or 2,
        enforce_eager=config.enforce_eager,
        overlap_scheduling=config.overlap_scheduling,
        device_kernels=on_gpu,
        host_experts=offload.host_experts if offload is not None else None,
    )
    return resolved, tuple(reasons)


def model_directory(model: str | None) -> Path:
    """Where a model lies: the given directory, or the embedded glm-nano inside this package."""
    return Path(__file__).resolve().parent.parent / "nano" if model is None else Path(model).expanduser()


def num_parameters(model: ModelConfig) -> int:
    """Parameters of all layers, the MTP layer included."""
    h, expert = model.hidden_size, model.expert_parameters
    moe = model.n_routed_experts * (expert + h) + model.n_shared_experts * expert
    layers = range(model.num_kv_layers)
    mlps = sum(moe if model.is_moe_layer(i) else model.dense_mlp_parameters for i in layers)
    return 2 * model.vocab_size * h + len(layers) * model.attention_parameters + mlps + model.num_nextn_predict_layers * 2 * h * h


def _num_drafts(config: EngineConfig, model: ModelConfig, max_num_seqs: int, reasons: list[str]) -> int:
    """Drafts per sequence and step for which room is kept."""
    asked = config.num_speculative_tokens
    if config.speculative_method == "mtp" and not model.has_mtp:
        if asked:
            raise ConfigError("num_speculative_tokens needs an MTP layer, and this model has none; use 0, or speculative_method ngram")
        return 0
    if asked is not None:
        return asked
    most = ADAPTIVE_SPECULATIVE_TOKENS
    if config.max_num_batched_tokens is not None:
        most = max(0, min(most, config.max_num_batched_tokens // max_num_seqs - 1))
        if not most:
            reasons.append(f"num_speculative_tokens 0: max_num_batched_tokens leaves no room for drafts of {max_num_seqs} sequences")
            return 0
    reasons.append(
        f"num_speculative_tokens 0 to {most}: the depth follows measured acceptance and time; deeper drafts are hardly ever right"
    )
    return most


def _device_kernels(config: EngineConfig, model: ModelConfig, machine: Machine, reasons: list[str]) -> bool:
    """Whether the GPU kernels run this model; the torch reference does where they do not."""
    if machine.device == "cpu" or config.native_kernels:
        return False
    obstacle = None
    if config.native_kernels is False:
        obstacle = "native_kernels is False"
    elif config.deterministic:
        obstacle = "deterministic asks for the fixed row tiles of the torch reference"
    elif not machine.device_kernels:
        obstacle = "Triton is not installed; install openglm[gpu]"
    elif model.n_group > 1 or model.n_shared_experts > 1:
        obstacle = "the model's shape is outside what they cover"
    if obstacle is not None:
        if config.quantization:
            raise ConfigError(f"quantization needs the GPU kernels, which cannot run here: {obstacle}")
        reasons.append(f"torch reference instead of the GPU kernels: {obstacle}")
        return False
    if config.quantization not in (None, "fp8"):
        raise ConfigError(f"quantization {config.quantization} is one of the CPU kernels'; on {machine.device} use fp8")
    reasons.append("GPU kernels: Triton is installed and they cover this model")
    return True


def _native_kernels(config: EngineConfig, model: ModelConfig, machine: Machine, dtype: DType, reasons: list[str]) -> bool:
    """Whether the native CPU kernels run this model."""
    if config.native_kernels is False and not config.quantization:
        return False
    obstacle = None
    if config.native_kernels is False:
        obstacle = "native_kernels is False"
    elif machine.device != "cpu":
        obstacle = f"the device is {machine.device}"
    elif machine.native_kernels is None:
        obstacle = "none were built for this processor"
    elif dtype == "float16":
        obstacle = "they compute in float32 and bfloat16"
    elif (
        model.head_dim % 16
        or model.head_dim > NATIVE_MAX_HEAD_DIM
        or model.num_attention_heads // model.num_key_value_heads > NATIVE_MAX_GROUP
        or model.n_routed_experts > NATIVE_MAX_EXPERTS
        or model.n_group > 1
    ):
        obstacle = "the model's shape is outside what they cover"
    if obstacle is None:
        reasons.append(f"native kernels {machine.native_kernels}: same tokens in any batch by construction")
        return True
    if config.native_kernels:
        raise ConfigError(f"native_kernels cannot run here: {obstacle}")
    if config.quantization:
        raise ConfigError(f"quantization needs the native kernels, which cannot run here: {obstacle}")
    if machine.device == "cpu":
        reasons.append(f"torch reference instead of native kernels: {obstacle}")
    return False


def kv_token_bytes(model: ModelConfig, dtype: KVCacheDType) -> int:
    """Bytes of KV per token in all layers, the MTP layer included; in fp8 with the scales."""
    per_head = model.head_dim * _BYTES[dtype] + (_SCALE_BYTES if dtype == "fp8_e4m3" else 0)
    return 2 * model.num_key_value_heads * per_head * model.num_kv_layers


def _kv_cache_dtype(config: EngineConfig, dtype: DType) -> KVCacheDType:
    match config.kv_cache_dtype:
        case "auto":
            return dtype
        case "fp8":
            return "fp8_e4m3"
        case asked:
            return asked


def _host_pages(config: EngineConfig, model: ModelConfig, machine: Machine, kv_cache_dtype: KVCacheDType) -> int:
    """Pages of the host tier."""
    size = int(config.kv_offloading_size * 2**30)
    if not size:
        return 0
    if not config.enable_prefix_caching:
        raise ConfigError(
            "kv_offloading_size keeps cached prefixes in host memory, and prefix caching is off; turn it on or leave the size out"
        )
    if machine.device == "cpu" and size > machine.memory_bytes // 4:
        raise ConfigError(
            f"kv_offloading_size {config.kv_offloading_size:g} GiB is more than a quarter of this machine's memory "
            f"({machine.memory_bytes / 2**30:.1f} GiB), which also holds weights and KV cache; lower it"
        )
    page_bytes = PAGE_SIZE * kv_token_bytes(model, kv_cache_dtype)
    if size < page_bytes:
        raise ConfigError(f"kv_offloading_size {config.kv_offloading_size:g} GiB holds not even one page of {page_bytes} bytes; raise it")
    return size // page_bytes


def resize_cache(
    resolved: ResolvedEngineConfig, config: EngineConfig, model: ModelConfig, machine: Machine, *, weights: int
) -> tuple[ResolvedEngineConfig, tuple[str, ...]]:
    """Size the KV cache of a GPU anew from what the weights really took, in bytes; `machine` is as it was before they were loaded.

    Raises `ConfigError` when that leaves no room.
    """
    demand = CacheDemand(
        resolved.max_num_seqs,
        1 + resolved.num_speculative_tokens,
        resolved.max_num_batched_tokens,
        weights,
        graphs=resolved.device_kernels and resolved.host_experts is None and not resolved.enforce_eager,
    )
    reasons: list[str] = []
    max_model_len, num_pages = cache_size(config, model, machine, resolved.kv_cache_dtype, demand, reasons)
    return replace(resolved, max_model_len=max_model_len, num_pages=num_pages), tuple(reasons)


@dataclass(frozen=True)
class CacheDemand:
    """What the size of the KV cache follows from beside the machine."""

    max_num_seqs: int
    rows_each: int  # of a sequence in a verify step
    max_num_batched_tokens: int
    weights: int  # bytes on the device: estimated, or measured once they are there
    graphs: bool


def _weight_bytes(config: EngineConfig, model: ModelConfig, dtype: DType) -> int:
    """Bytes of all weights, from the number of parameters."""
    weights = num_parameters(model) * _BYTES[dtype]
    if config.quantization:
        table = model.vocab_size * model.hidden_size  # the embedding stays; the head is 8 bits wide with the integer formats
        layers = num_parameters(model) - 2 * table
        weights -= int(layers * (_BYTES[dtype] - (_INT4_BYTES if config.quantization == "int4" else 1)))
        weights -= table * (_BYTES[dtype] - 1) if config.quantization != "fp8" else 0
    return weights


def _offload(
    config: EngineConfig,
    model: ModelConfig,
    machine: Machine,
    dtype: DType,
    drafts: int,
    layer_bytes: int,
    *,
    on_gpu: bool,
    reasons: list[str],
) -> OffloadPlan | None:
    """Which experts stay in host memory, as many as `cpu_offload_gb` holds; None without."""
    if not config.cpu_offload_gb:
        return None
    if machine.device == "cpu":
        reasons.append("cpu_offload_gb has no effect: on a CPU all weights are in host memory")
        return None
    if not on_gpu or machine.native_kernels is None:
        raise ConfigError("cpu_offload_gb needs the GPU kernels and the CPU kernels, and they are not both here; leave it out")
    if machine.bandwidths is None:
        raise ConfigError("cpu_offload_gb needs the bandwidths of device and host, and they could not be measured")
    host_bytes = int(config.cpu_offload_gb * 2**30)
    if machine.host_bytes and host_bytes > machine.host_bytes * 3 // 4:
        raise ConfigError(
            f"cpu_offload_gb {config.cpu_offload_gb:g} is more than three quarters of the host's {machine.host_bytes / 2**30:.1f} GiB"
        )
    expert = model.expert_parameters * layer_bytes
    sizes = {"layer_weight_bytes": layer_bytes, "table_weight_bytes": _BYTES[dtype]}
    whole = plan_offload(model, **sizes, device_bytes=1 << 60, host_bytes=0, bandwidths=machine.bandwidths, drafts=drafts > 0)
    fit = host_bytes // expert
    if not fit:
        raise ConfigError(f"cpu_offload_gb {config.cpu_offload_gb:g} holds not even one expert of {expert / 2**20:.1f} MiB; raise it")
    left = max(whole.device_bytes - fit * expert, 0)
    plan = plan_offload(model, **sizes, device_bytes=left, host_bytes=host_bytes + expert, bandwidths=machine.bandwidths, drafts=drafts > 0)
    reasons.append(
        f"cpu_offload_gb {config.cpu_offload_gb:g}: {sum(plan.host_experts)} experts ({plan.host_bytes / 2**30:.1f} GiB) are computed by "
        f"the CPU; at most {plan.tokens_per_second:.1f} tok/s are predicted for one request without drafts, "
        f"{whole.tokens_per_second:.1f} without offload"
    )
    return plan


def cache_size(
    config: EngineConfig,
    model: ModelConfig,
    machine: Machine,
    kv_cache_dtype: KVCacheDType,
    demand: CacheDemand,
    reasons: list[str],
) -> tuple[int, int]:
    """`max_model_len` and the number of pages: as many full-length requests as may run, as far as memory goes."""
    max_num_seqs, weights = demand.max_num_seqs, demand.weights
    max_model_len = config.max_model_len or model.max_position_embeddings
    if max_model_len > model.max_position_embeddings:
        raise ConfigError(f"max_model_len {max_model_len} exceeds the model's max_position_embeddings {model.max_position_embeddings}")
    per_token = kv_token_bytes(model, kv_cache_dtype)
    if machine.device == "cpu":
        room, rule = int(0.5 * machine.memory_bytes - weights), "what 50% of memory leaves beside the weights"
        for name in ("gpu_memory_utilization", "mem_fraction_static"):
            if getattr(config, name) is not None:
                reasons.append(f"{name} has no effect: the device is cpu")
    else:
        graph_rows = max_num_seqs * demand.rows_each
        room, rule = cache_bytes(
            DeviceMemory(machine.total_bytes or machine.memory_bytes, machine.memory_bytes),
            weights=weights,
            working=working_bytes(model, tokens=demand.max_num_batched_tokens, logit_rows=graph_rows),
            graphs=graph_bytes(model, rows=graph_rows) if demand.graphs else 0,
            gpu_memory_utilization=config.gpu_memory_utilization,
            mem_fraction_static=config.mem_fraction_static,
        )
    fits = room // per_token // PAGE_SIZE * PAGE_SIZE
    tokens = config.kv_cache_tokens
    if tokens is None:
        wanted = max_num_seqs * -(-max_model_len // PAGE_SIZE) * PAGE_SIZE
        tokens = min(wanted, fits)
        if tokens < PAGE_SIZE:
            raise ConfigError(
                f"the weights need {weights / 2**30:.1f} GiB of {machine.memory_bytes / 2**30:.1f} GiB and leave no room for a KV cache"
            )
        why = f"{max_num_seqs} requests of full length" if tokens == wanted else rule
        reasons.append(f"kv_cache_tokens {tokens} ({tokens * per_token / 2**20:.0f} MiB): {why}")
    num_pages = -(-tokens // PAGE_SIZE)
    if num_pages * PAGE_SIZE < max_model_len:
        if config.max_model_len is not None:
            raise ConfigError(f"max_model_len {max_model_len} does not fit a KV cache of {tokens} tokens; lower one or raise the other")
        max_model_len = num_pages * PAGE_SIZE
        reasons.append(f"max_model_len {max_model_len}: the KV cache holds no longer request")
    return max_model_len, num_pages


_LOWEST = {
    "num_speculative_tokens": 0,
    "prompt_lookup_max": 1,
    "prompt_lookup_min": 1,
    "max_model_len": 2,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "kv_cache_tokens": PAGE_SIZE,
    "threads": 1,
    "max_queued_requests": 0,
    "max_preemptions": 0,
}


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
