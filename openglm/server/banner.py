"""What `glm serve` says once it can answer: where it listens, how to try it, what fits, and which choices were made for the user."""

from __future__ import annotations

from openglm.config.engine import PAGE_SIZE
from openglm.config.server import ServerConfig
from openglm.engine.protocol import EngineInfo
from openglm.server.served_model import ServedModel

_SESSION_TOKENS = 32 << 10  # a long conversation: what capacity is counted in where the context allows it


def root_url(config: ServerConfig, port: int) -> str:
    """The address that a client on this machine uses: the base URL of Anthropic's clients."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    scheme = "http" if config.ssl_certfile is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def base_url(config: ServerConfig, port: int) -> str:
    """The base URL of OpenAI's clients."""
    return root_url(config, port) + "/v1"


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
    root, url = root_url(config, port), base_url(config, port)
    key = " -H 'Authorization: Bearer KEY'" if config.api_keys else ""
    body = f'{{"model": "{model.name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    drafts = f"up to {info.num_speculative_tokens} draft token(s) per step" if info.num_speculative_tokens else "no speculation"
    lines = [
        f"{model.name} is ready ({seconds:.1f} s) on {info.device}, {info.dtype}, {drafts}",
        "",
        f"  OpenAI base URL   {url}",
        f"  Anthropic base    {root}",
        f"  try it            curl {url}/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'",
        f"  chat              glm chat --url {url}, or in a browser {root}/",
        f"  Claude Code       {_claude_line(config, root, model.name)}",
        f"  KV cache          {_capacity(info, num_pages * PAGE_SIZE)}",
        f"  chat template     {model.template.description}",
        f"  access            {_access(config)}",
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


def _claude_line(config: ServerConfig, root: str, model: str) -> str:
    token = "KEY" if config.api_keys else "none"
    return f"ANTHROPIC_BASE_URL={root} ANTHROPIC_AUTH_TOKEN={token} ANTHROPIC_MODEL={model} claude   (or: glm launch claude --url {root})"


def _capacity(info: EngineInfo, tokens: int) -> str:
    session = min(_SESSION_TOKENS, info.max_model_len)
    named = f"{session // 1024}K" if session % 1024 == 0 else f"{session:,}"
    room = f"{tokens:,} tokens: room for {max(1, tokens // session)} session(s) of {named} tokens"
    return f"{room}, each up to {info.max_model_len:,}, {info.max_num_seqs} at once, {info.kv_cache_dtype}"


def _access(config: ServerConfig) -> str:
    keys = f"{len(config.api_keys)} API key(s)" if config.api_keys else "no key needed"
    reach = "from this machine only" if config.is_loopback else f"from whoever reaches {config.host}"
    parts = [keys, reach]
    if config.admin_api_keys:
        parts.append("control routes with an admin key")
    if config.admin_socket is not None:
        parts.append(f"control routes on {config.admin_socket}")
    if config.allowed_origins:
        parts.append(f"browser pages of {', '.join(config.allowed_origins)}")
    return ", ".join(parts)
