"""`glm serve`: the server of one model, from flags to exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openglm.cli.flags import TranslatedCommand
from openglm.cli.limit_flags import with_limit_flags
from openglm.config.server import ConnectionLimits, RequestLimits, ServerConfig, read_key_file
from openglm.errors import ConfigError

if TYPE_CHECKING:
    from openglm.text.template import TemplateStyle

COMMAND_CLASS = TranslatedCommand

_MODEL, _ADDRESS, _ACCESS, _MEMORY, _SPEED, _ANSWERS, _LOG = (
    "Model",
    "Address",
    "Who may use it",
    "Context, memory and batching",
    "Speed and exactness",
    "Answers",
    "Process and observation",
)
EMBEDDED_NAME = "glm-nano"


@with_limit_flags
def command(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Model directory. Default: the embedded glm-nano.")] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help="Name(s) that requests may use; the first is echoed. Default: MODEL as given.", rich_help_panel=_MODEL),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=_MODEL)] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MODEL)] = "auto",
    chat_template: Annotated[
        str | None,
        typer.Option(help="glm-4.5 or glm-4.7. Default: the checkpoint's own template, else glm-4.5.", rich_help_panel=_MODEL),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every interface.", rich_help_panel=_ADDRESS)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 picks a free one.", rich_help_panel=_ADDRESS)] = 8000,
    ssl_certfile: Annotated[
        str | None, typer.Option(metavar="PEM", help="Certificate chain; serves HTTPS.", rich_help_panel=_ADDRESS)
    ] = None,
    ssl_keyfile: Annotated[str | None, typer.Option(metavar="PEM", help="Its private key.", rich_help_panel=_ADDRESS)] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that clients may call this server by; on loopback only local names and addresses are.", rich_help_panel=_ADDRESS
        ),
    ] = None,
    allowed_origins: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Origin whose web pages may call (CORS); a JSON list works too.", rich_help_panel=_ADDRESS),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="Key that clients must send; may be given several times.", rich_help_panel=_ACCESS),
    ] = None,
    api_key_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="More such keys, one a line; # begins a comment.", rich_help_panel=_ACCESS)
    ] = None,
    admin_api_key: Annotated[
        list[str] | None, typer.Option(help="Key of the control routes (/drain ...), which need one to exist.", rich_help_panel=_ACCESS)
    ] = None,
    admin_socket: Annotated[
        str | None, typer.Option(metavar="PATH", help="Unix socket with the control routes, for its owner.", rich_help_panel=_ACCESS)
    ] = None,
    public_metrics: Annotated[
        bool | None,
        typer.Option(
            "--public-metrics/--no-public-metrics",
            help="Whether /metrics needs no key.",
            rich_help_panel=_ACCESS,
            show_default="only on loopback",
        ),
    ] = None,
    share_prefix_cache: Annotated[
        bool,
        typer.Option(
            "--share-prefix-cache/--no-share-prefix-cache",
            help="Let holders of different keys find each other's prefixes cached.",
            rich_help_panel=_ACCESS,
        ),
    ] = False,
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest prompt plus answer, in tokens.", rich_help_panel=_MEMORY, show_default="what fits")
    ] = None,
    kv_cache_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens that the KV cache holds for all requests.", rich_help_panel=_MEMORY, show_default="what fits"),
    ] = None,
    kv_cache_dtype: Annotated[
        str,
        typer.Option(
            help="auto (the model's), float32, bfloat16 or fp8: e4m3 with a scale per token and head, about half of bfloat16.",
            rich_help_panel=_MEMORY,
        ),
    ] = "auto",
    quantization: Annotated[
        str | None,
        typer.Option(
            metavar="fp8|int8|int4|w8a8",
            help="Round the layers' matrices while loading (a GPU has fp8); FP8 checkpoints stay FP8 anyway. w8a8 rounds activations too.",
            rich_help_panel=_MEMORY,
            show_default="as stored",
        ),
    ] = None,
    kv_offloading_size: Annotated[
        float, typer.Option(metavar="GIB", help="Host memory for cached prefixes that had to leave the KV cache.", rich_help_panel=_MEMORY)
    ] = 0.0,
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of a GPU's whole memory: weights, KV cache, activations and graphs together.",
            rich_help_panel=_MEMORY,
            show_default="0.9 of what is free",
        ),
    ] = None,
    mem_fraction_static: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of a GPU's memory that is free before loading: weights and KV cache alone. Instead of --gpu-memory-utilization.",
            rich_help_panel=_MEMORY,
            show_default="none",
        ),
    ] = None,
    cpu_offload_gb: Annotated[
        float,
        typer.Option(metavar="GIB", help="Experts that stay in host memory and are computed by the CPU.", rich_help_panel=_MEMORY),
    ] = 0.0,
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="Capture no CUDA graphs.", rich_help_panel=_MEMORY)] = False,
    disable_overlap_schedule: Annotated[
        bool,
        typer.Option(
            "--disable-overlap-schedule", help="Read every step's tokens before the next step is launched.", rich_help_panel=_MEMORY
        ),
    ] = False,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Requests that run at once.", rich_help_panel=_MEMORY, show_default="by device")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens per step: the size of a prefill chunk.", rich_help_panel=_MEMORY, show_default="by device"),
    ] = None,
    max_queued_requests: Annotated[
        int, typer.Option(help="Requests that may wait; one more is answered 503.", rich_help_panel=_MEMORY)
    ] = 512,
    max_queued_tokens: Annotated[
        int | None,
        typer.Option(help="Prompt tokens that may wait.", rich_help_panel=_MEMORY, show_default="four KV caches"),
    ] = None,
    request_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds that a request may take, waiting included; then it ends with 504.", rich_help_panel=_MEMORY, show_default="none"
        ),
    ] = None,
    enable_prefix_caching: Annotated[
        bool, typer.Option(help="Reuse the KV cache of equal prompt beginnings.", rich_help_panel=_MEMORY)
    ] = True,
    num_speculative_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens drafted per step; 0 is off, left out it follows measurements.", rich_help_panel=_SPEED, show_default="auto"
        ),
    ] = None,
    speculative_method: Annotated[
        str, typer.Option(help="Who drafts: mtp (the model's own layer) or ngram (prompt lookup).", rich_help_panel=_SPEED)
    ] = "mtp",
    prompt_lookup_max: Annotated[
        int | None, typer.Option(help="Longest match that ngram looks for, in tokens.", rich_help_panel=_SPEED, show_default="4")
    ] = None,
    prompt_lookup_min: Annotated[
        int | None, typer.Option(help="Shortest match that ngram uses, in tokens.", rich_help_panel=_SPEED, show_default="2")
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(
            "--deterministic/--no-deterministic",
            help="Answers do not depend on what else is in the batch.",
            rich_help_panel=_SPEED,
            show_default="auto",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", rich_help_panel=_SPEED, show_default="all cores")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of requests that bring none.", rich_help_panel=_SPEED, show_default="random")
    ] = None,
    thinking: Annotated[
        bool, typer.Option("--thinking/--no-thinking", help="Think unless a request says otherwise.", rich_help_panel=_ANSWERS)
    ] = True,
    reasoning_field: Annotated[
        str, typer.Option(help="Where thinking goes: reasoning_content, reasoning or both.", rich_help_panel=_ANSWERS)
    ] = "reasoning_content",
    parse_special: Annotated[
        bool,
        typer.Option(
            "--parse-special/--no-parse-special",
            help="Read control tokens in the text of raw prompts; only if you trust whoever writes them.",
            rich_help_panel=_ANSWERS,
        ),
    ] = False,
    generation_config: Annotated[
        str,
        typer.Option(help="auto: sampling defaults of the model's generation_config.json; vllm or openai: none.", rich_help_panel=_ANSWERS),
    ] = "auto",
    override_generation_config: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='Sampling defaults to change, such as {"temperature": 0.6}.', rich_help_panel=_ANSWERS),
    ] = None,
    default_chat_template_kwargs: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='{"enable_thinking": false} is --no-thinking.', rich_help_panel=_ANSWERS),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="YAML file with a flag a line (port: 8000); the line and GLM_* variables win over it.",
            rich_help_panel=_LOG,
        ),
    ] = None,
    ready_wait: Annotated[
        float, typer.Option(help="Seconds that a request waits for a model that still loads.", rich_help_panel=_LOG)
    ] = 30.0,
    keep_alive: Annotated[float, typer.Option(help="Seconds after which a silent stream sends a comment.", rich_help_panel=_LOG)] = 10.0,
    shutdown_timeout: Annotated[
        float, typer.Option(help="Seconds that running answers get after SIGTERM or Ctrl-C.", rich_help_panel=_LOG)
    ] = 30.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.", rich_help_panel=_LOG)] = "warning",
    log_format: Annotated[str, typer.Option(help="text or json.", rich_help_panel=_LOG)] = "text",
    access_log: Annotated[bool, typer.Option(help="A line per HTTP request, at level info.", rich_help_panel=_LOG)] = True,
    metrics_compat: Annotated[
        str, typer.Option(metavar="vllm|sglang", help="Names in /metrics: vLLM's, or SGLang's besides.", rich_help_panel=_LOG)
    ] = "vllm",
    otlp_traces_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send a span per answer there (OTLP/HTTP); needs the extra otel.", rich_help_panel=_LOG),
    ] = None,
    *,
    limits: RequestLimits,
    connection_limits: ConnectionLimits,
) -> None:
    """Serve a model over the OpenAI API: POST /v1/chat/completions, GET /v1/models, /health, /ready and /metrics.

    Thinking and tool calls need no flags. Flags have vLLM's names; those of SGLang and llama.cpp are understood too. Every
    flag can be set by a variable (--max-model-len is GLM_MAX_MODEL_LEN) or in a file (--config).

    glm serve                                     the embedded glm-nano on http://127.0.0.1:8000/v1

    glm serve ./GLM-4.5-Air --served-model-name glm-4.5-air --host 0.0.0.0 --api-key SECRET

    glm serve ./GLM-4.6 --max-model-len 65536 --num-speculative-tokens 3
    """
    from openglm.config.engine import EngineConfig, model_directory
    from openglm.log import set_up_logging
    from openglm.server.serve import run_server
    from openglm.server.served_model import load_served_model

    _one_of("--log-level", log_level, ("debug", "info", "warning", "error"))
    _one_of("--log-format", log_format, ("text", "json"))
    _one_of("--reasoning-field", reasoning_field, ("reasoning_content", "reasoning", "both"))
    _one_of("--metrics-compat", metrics_compat, ("vllm", "sglang"))
    _one_of("--generation-config", generation_config, ("auto", "model", "vllm", "openai"))
    names = _names(served_model_name, model)
    set_up_logging(log_level, log_format, access=access_log)  # type: ignore[arg-type]  # checked above
    del config  # what it holds came here as flags
    settings = ServerConfig(
        host=host,
        port=port,
        served_model_names=names,
        api_keys=(*(api_key or ()), *(read_key_file(api_key_file) if api_key_file is not None else ())),
        admin_api_keys=tuple(admin_api_key or ()),
        admin_socket=admin_socket,
        public_metrics=public_metrics,
        share_prefix_cache=share_prefix_cache,
        allowed_hosts=tuple(allowed_host or ()),
        allowed_origins=_origins(allowed_origins or []),
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        metrics_compat=metrics_compat,  # type: ignore[arg-type]  # checked above
        otlp_traces_endpoint=otlp_traces_endpoint,
        max_queued_requests=max_queued_requests,
        max_queued_tokens=max_queued_tokens,
        ready_wait_s=ready_wait,
        keep_alive_s=keep_alive,
        drain_timeout_s=shutdown_timeout,
        parse_special=parse_special,
        limits=limits,
        connection_limits=connection_limits,
        default_thinking=_thinking(default_chat_template_kwargs, thinking),
        reasoning_field=reasoning_field,  # type: ignore[arg-type]  # checked above
    )
    engine = EngineConfig(
        model=model,
        device=device,
        dtype=dtype,  # type: ignore[arg-type]  # EngineConfig checks it
        num_speculative_tokens=num_speculative_tokens,
        speculative_method=speculative_method,  # type: ignore[arg-type]  # EngineConfig checks it
        prompt_lookup_max=prompt_lookup_max,
        prompt_lookup_min=prompt_lookup_min,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_tokens=kv_cache_tokens,
        quantization=None if quantization == "compressed-tensors" else quantization,  # type: ignore[arg-type]  # EngineConfig checks it
        kv_cache_dtype=kv_cache_dtype,  # type: ignore[arg-type]  # EngineConfig checks it
        kv_offloading_size=kv_offloading_size,
        gpu_memory_utilization=gpu_memory_utilization,
        mem_fraction_static=mem_fraction_static,
        cpu_offload_gb=cpu_offload_gb,
        enforce_eager=enforce_eager,
        overlap_scheduling=not disable_overlap_schedule,
        enable_prefix_caching=enable_prefix_caching,
        deterministic=deterministic,
        threads=threads,
        seed=seed,
        max_queued_requests=max_queued_requests,
        request_timeout_s=request_timeout,
    )
    served = load_served_model(
        model_directory(model),
        names=names,
        style=_style(chat_template),
        overrides=_json_object("--override-generation-config", override_generation_config),
        use_generation_config=generation_config in ("auto", "model"),
    )
    code = run_server(settings, engine, served, announce=typer.echo)
    raise typer.Exit(code)


def _names(given: list[str] | None, model: str | None) -> tuple[str, ...]:
    if not given:
        return (EMBEDDED_NAME,) if model is None else (model,)
    swallowed = next((name for name in given[1:] if Path(name).is_dir()), None)
    if model is None and swallowed is not None:
        raise ConfigError(f"--served-model-name took {swallowed!r} as one more name; write the model directory before the flags")
    return tuple(dict.fromkeys(given))


def _origins(given: list[str]) -> tuple[str, ...]:
    """`--allowed-origins` as it is, or as vLLM's JSON list."""
    origins: list[str] = []
    for text in given:
        if not text.lstrip().startswith("["):
            origins.append(text)
            continue
        try:
            listed = json.loads(text)
        except ValueError:
            listed = None
        if not isinstance(listed, list) or not all(isinstance(origin, str) for origin in listed):
            raise ConfigError("--allowed-origins: a list must be JSON, of strings")
        origins += listed
    return tuple(origin for origin in dict.fromkeys(origins) if origin)


def _style(name: str | None) -> TemplateStyle | None:
    match name:
        case None:
            return None
        case "glm-4.5" | "glm-4.6":
            return "glm-4.5"
        case "glm-4.7":
            return "glm-4.7"
    raise ConfigError(f"--chat-template {name:.60}: give glm-4.5 or glm-4.7; a file goes into the model directory as chat_template.jinja")


def _thinking(template_kwargs: str | None, thinking: bool) -> bool:
    for key, value in _json_object("--default-chat-template-kwargs", template_kwargs).items():
        if key != "enable_thinking" or not isinstance(value, bool):
            raise ConfigError('--default-chat-template-kwargs takes only {"enable_thinking": true} or false')
        thinking = value
    return thinking


def _json_object(flag: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{flag}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{flag}: expected a JSON object")
    return value


def _one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{flag} must be one of {', '.join(allowed)}; got {value!r:.40}")
