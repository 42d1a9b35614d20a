"""Which doors are open without a key."""

from __future__ import annotations

from dataclasses import replace

from .corpus import ROUTES
from .outcome import Outcome
from .wire import Target

PUBLIC = ("/health", "/ready", "/metrics", "/")
_PATHS = (
    *(path for _, path, _ in ROUTES),
    *("/v1/models", "/v1/models/x", "/v1", "/docs", "/openapi.json", "/server_info", "/flush_cache", "/abort_request", "/drain", "/resume"),
    *("//v1/models", "/V1/MODELS", "/v1/%6dodels", "/v1/models/", "/health/", "/health/../v1/models", "/%2e/health", "/health%00"),
    *("/v1/models?/health", "/invocations", "/pooling", "/score", "/pause", "/update_weights", "/load_lora_adapter", "/sleep"),
)
_WRONG = (
    *({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer "}, {"authorization": "Basic x"}),
    *({"x-api-key": ""}, {"x-api-key": "wrong"}),
)


async def closed_doors(target: Target) -> Outcome:
    """Without the right key every path but the public ones is 401 (404 and 405 tell too much; 2xx is a hole)."""
    outcome = Outcome("closed doors")
    stranger = replace(target, api_key="")
    checked = 0
    for path in _PATHS:
        for method in ("GET", "POST", "PUT", "DELETE"):
            for headers in _WRONG:
                answer = await stranger.send(stranger.request(path, b"{}" if method != "GET" else None, method=method, headers=headers))
                outcome.require(answer.status == 401, f"{method} {path} with {headers} is answered {answer.status}")
                checked += 1
    right = await target.get("/v1/models")
    outcome.require(right.status == 200, f"the right key is answered {right.status}")
    outcome.figures["checked"] = checked
    return outcome
