"""Routes for whoever runs the server, and for routers and load tools: version, state, load, and the few things that can be done.

What is told is an allow-list: names, sizes and counters, never keys, paths or anything that a client sent (but the names of fields
that were ignored). What touches other people's requests is a control route (see `app.build_app`).
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from openglm import __version__
from openglm.config.engine import PAGE_SIZE
from openglm.engine.request import SamplingParams
from openglm.engine.stats import EngineStats
from openglm.errors import RequestError
from openglm.server.http_body import read_json_body
from openglm.server.json_reply import JSONReply, encode
from openglm.server.refusal import Refusal, Refused
from openglm.server.service import Service
from openglm.server.strict_json import convert, decode_json
from openglm.server.turn import RawPrompt, TurnRequest


class AbortBody(msgspec.Struct):
    """SGLang's names, and vLLM's list."""

    rid: str | None = None
    abort_all: bool | None = None
    request_ids: list[str] | None = None


def routes(service: Service) -> list[Route]:
    """All of them, under the names that vLLM and SGLang have for them."""
    own = _Operations(service)
    return [
        Route("/version", own.version, methods=["GET"]),
        *(Route(path, own.model_info, methods=["GET"]) for path in ("/model_info", "/get_model_info")),
        *(Route(path, own.server_info, methods=["GET"]) for path in ("/server_info", "/get_server_info")),
        *(Route(path, own.loads, methods=["GET"]) for path in ("/v1/loads", "/loads")),
        Route("/health_generate", own.health_generate, methods=["GET"]),
    ]


def control_routes(service: Service) -> list[Route]:
    """Those that change something for everybody."""
    own = _Operations(service)
    return [
        *(Route(path, own.flush_cache, methods=["GET", "POST"]) for path in ("/flush_cache", "/reset_prefix_cache")),
        *(Route(path, own.abort, methods=["POST"]) for path in ("/abort_request", "/abort_requests")),
    ]


class _Operations:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def version(self, request: Request) -> Response:
        """Of this package."""
        del request
        return JSONReply(encode({"version": __version__}))

    async def model_info(self, request: Request) -> Response:
        """What is served."""
        del request
        model = self._service.model
        info = {
            "model_path": model.name,
            "tokenizer_path": model.name,
            "served_model_names": model.names,
            "is_generation": True,
            "max_model_len": model.max_model_len,
            "preferred_sampling_params": vars(model.defaults),
        }
        return JSONReply(encode(info))

    async def server_info(self, request: Request) -> Response:
        """Version, state, limits and counters."""
        del request
        service = self._service
        stats = await service.engine.stats() if service.engine.state == "ready" else EngineStats()
        depths = stats.accepted_by_position
        steps = sum(stats.drafts_by_depth)
        info = {
            "version": __version__,
            "status": "draining" if service.draining else service.engine.state,
            "served_model_name": service.model.name,
            "max_model_len": service.model.max_model_len,
            "max_total_num_tokens": stats.pages_total * PAGE_SIZE,
            "page_size": PAGE_SIZE,
            "max_queued_requests": service.config.max_queued_requests,
            "default_thinking": service.config.default_thinking,
            "reasoning_field": service.config.reasoning_field,
            "ignored_fields": {"total": service.ignored_fields.total, "by_name": service.ignored_fields.by_name},
            "internal_states": [{"avg_spec_accept_length": 1 + sum(depths) / steps if steps else None, "stats": stats}],
        }
        return JSONReply(encode(info))

    async def loads(self, request: Request) -> Response:
        """How much there is to do, in SGLang's terms."""
        del request
        stats = await self._service.engine.stats()
        used = stats.pages_total - stats.pages_free - stats.pages_cached
        load = {
            "dp_rank": 0,
            "num_running_reqs": stats.num_running,
            "num_waiting_reqs": stats.num_waiting,
            "num_total_reqs": stats.num_running + stats.num_waiting,
            "num_used_tokens": used * PAGE_SIZE,
            "max_total_num_tokens": stats.pages_total * PAGE_SIZE,
            "token_usage": used / stats.pages_total if stats.pages_total else 0.0,
            "cache_hit_rate": stats.prompt_tokens_cached / stats.prompt_tokens_looked_up if stats.prompt_tokens_looked_up else 0.0,
            "max_running_requests": self._service.max_num_seqs,
            "utilization": stats.num_running / self._service.max_num_seqs if self._service.max_num_seqs else 0.0,
            "queues": {"waiting": stats.num_waiting},
        }
        totals = {"total_running_reqs": stats.num_running, "total_waiting_reqs": stats.num_waiting}
        now = datetime.now(UTC).isoformat()  # SGLang's form; a router that finds a number here reads no load at all
        body = {"timestamp": now, "version": __version__, "dp_rank_count": 1, "loads": [load], "aggregate": totals}
        return JSONReply(encode(body))

    async def health_generate(self, request: Request) -> Response:
        """200 once a token has been generated for this very request."""
        del request
        service = self._service
        service.refuse_if_draining()
        with service.traffic.admitted():
            await service.wait_until_loaded()
            prompt = RawPrompt(ids=(service.model.tokenizer.endoftext,))
            turn = await service.prepare(TurnRequest(prompt, SamplingParams(max_tokens=1, temperature=0.0)), size=0)
            async with contextlib.aclosing(service.run(turn)) as steps:
                async for _ in steps:
                    pass
        return Response(status_code=200)

    async def flush_cache(self, request: Request) -> Response:
        """Forget all cached prefixes; running requests keep what they use."""
        _refuse_other_sites(request)
        await self._service.engine.flush_cache()
        return PlainTextResponse("Cache flushed.\n")

    async def abort(self, request: Request) -> Response:
        """End requests by the names that clients know them by, or all; says how many there were."""
        limits = self._service.config.limits
        wanted = convert(decode_json(await read_json_body(request, limits), max_depth=limits.json_depth), AbortBody)
        names = [*(wanted.request_ids or ()), *([wanted.rid] if wanted.rid else ())]
        if not names and not wanted.abort_all:
            raise RequestError("give rid, request_ids or abort_all: true", param="rid", code="missing_field")
        if len(names) > limits.prompts:
            raise RequestError(f"request_ids holds {len(names)} entries; at most {limits.prompts} are taken", param="request_ids")
        aborted = await self._service.abort(None) if wanted.abort_all else sum([await self._service.abort(name) for name in names])
        return JSONReply(encode({"aborted": aborted}))


def _refuse_other_sites(request: Request) -> None:
    """A request that a web page of another site makes a browser send needs no body and no permission; it must not do anything."""
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Refused(Refusal(403, "this route is not for web pages of other sites", "cross_site"))
