"""What `glm serve` says once it can answer: where it listens, how to try it, what fits, and which choices were made for the user."""

from __future__ import annotations

from openglm.config.engine import PAGE_SIZE
from openglm.config.server import ServerConfig
from openglm.engine.protocol import EngineInfo
from openglm.server.served_model import ServedModel


def base_url(config: ServerConfig, port: int) -> str:
    """The address that a client on this machine uses."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def banner(
    config: ServerConfig,
    model: ServedModel,
    info: EngineInfo,
    *,
    port: int,
    num_pages: int,
    seconds: float,
) -> str:
    """The text, without a final newline. `seconds` is how long the start took."""
    url = base_url(config, port)
    key = " -H 'Authorization: Bearer KEY'" if config.api_keys else ""
    body = f'{{"model": "{model.name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    tokens = num_pages * PAGE_SIZE
    conversations = max(1, tokens // info.max_model_len)
    drafts = f"up to {info.num_speculative_tokens} draft token(s) per step" if info.num_speculative_tokens else "no speculation"
    lines = [
        f"{model.name} is ready ({seconds:.1f} s) on {info.device}, {info.dtype}, {drafts}",
        "",
        f"  OpenAI base URL   {url}",
        f"  try it            curl {url}/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'",
        f"  chat              glm chat --url {url}, or in a browser {url.removesuffix('v1')}",
        f"  KV cache          {tokens:,} tokens: room for {conversations} conversation(s) of {info.max_model_len:,} tokens,"
        f" {info.max_num_seqs} at once, {info.kv_cache_dtype}",
        f"  chat template     {model.template.description}",
    ]
    if info.num_host_pages:
        lines.append(f"  host tier         {info.num_host_pages * PAGE_SIZE:,} tokens of cached prefixes in host memory")
    if info.request_timeout_s is not None:
        lines.append(f"  time limit        {info.request_timeout_s:g} s per request")
    if len(model.names) > 1:
        lines.append(f"  model names       {', '.join(model.names)}")
    lines += [f"  {'chosen for you' if i == 0 else '':17} {reason}" for i, reason in enumerate(info.reasons)]
    if not config.is_loopback and not config.api_keys:
        lines += ["", f"WARNING: anyone who can reach {config.host}:{port} may use this server; set --api-key, or keep --host 127.0.0.1"]
    return "\n".join(lines)
