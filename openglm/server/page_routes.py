"""What the web page asks beyond the OpenAI wire: facts about the server, its figures, and the exact prompt of a conversation.

These routes need a key like any other. They are for the page and change with it; programs use `/v1/...` and `/metrics`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

import openglm
from openglm.engine.stats import EngineStats
from openglm.errors import EngineDeadError
from openglm.server.http_body import read_json_body
from openglm.server.json_reply import encode
from openglm.server.openai_request import read_chat_request
from openglm.server.service import LARGE_BODY, Service
from openglm.text.messages import Conversation
from openglm.text.tokenizer import Tokenizer

MAX_SHOWN_TOKENS: Final = 8192
"""Of a longer prompt the first and the last half of this many are told token by token: a page cannot show more."""

_STATS_WAIT_S: Final = 2.0
_STATS_FRESH_S: Final = 0.2


class PageRoutes:
    """The handlers, all answering JSON that no cache may keep."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stats: EngineStats | None = None
        self._stats_at = float("-inf")
        self._asking = asyncio.Lock()

    async def about(self, request: Request) -> Response:
        """GET /page/about: what does not change while the engine runs. `engine` is null before it was ready."""
        del request
        service = self._service
        model, limits = service.model, service.config.limits
        try:
            info = service.engine.info
        except EngineDeadError:
            info = None
        return _json(
            {
                "version": openglm.__version__,
                "model": model.name,
                "names": model.names,
                "template": model.template.description,
                "max_model_len": model.max_model_len,
                "sampling": asdict(model.defaults),
                "thinking": service.config.default_thinking,
                "limits": {"body_bytes": limits.body_bytes, "top_logprobs": limits.top_logprobs, "messages": limits.messages},
                "engine": info,
            }
        )

    async def figures(self, request: Request) -> Response:
        """GET /page/figures: the engine's counters with the time they were read (seconds on some clock that only runs forward).

        `stats` is null while there is no engine, and when it is too busy to answer within `_STATS_WAIT_S`.
        """
        del request
        service = self._service
        stats = await self._engine_stats()
        return _json(
            {
                "time": self._stats_at if stats is not None else time.monotonic(),
                "state": "draining" if service.draining else service.engine.state,
                "in_flight": service.traffic.num_in_flight,
                "in_flight_limit": service.traffic.limit,
                "stats": stats,
            }
        )

    async def prompt(self, request: Request) -> Response:
        """POST /page/prompt: the prompt that a chat-completions body becomes, by the same code, however long it is."""
        service = self._service
        service.refuse_if_draining()
        body = await read_json_body(request, service.config.limits)
        with service.traffic.admitted():
            if len(body) < LARGE_BODY and service.model.renders_in_process:
                return _json(self._prompt(body))
            return _json(await asyncio.to_thread(self._prompt, body))

    def _prompt(self, body: bytes) -> dict[str, Any]:
        config, model = self._service.config, self._service.model
        chat = read_chat_request(body, limits=config.limits, defaults=model.defaults, thinking=config.default_thinking)
        prompt = chat.turn.prompt
        assert isinstance(prompt, Conversation)  # as in every chat
        rendered = model.render(prompt, continues=chat.turn.continues)
        ids = model.tokenizer.encode_segments(rendered.segments)
        return {
            "num_tokens": len(ids),
            "max_model_len": model.max_model_len,
            "start": rendered.start,
            "segments": [{"text": segment.text, "control": segment.control} for segment in rendered.segments],
            "tokens": _shown_tokens(ids, model.tokenizer),
        }

    async def _engine_stats(self) -> EngineStats | None:
        """The counters, at most `_STATS_FRESH_S` old, so that many open pages cost the engine no more than one."""
        async with self._asking:
            if time.monotonic() - self._stats_at > _STATS_FRESH_S:
                try:
                    self._stats = await asyncio.wait_for(self._service.engine.stats(), _STATS_WAIT_S)
                except (EngineDeadError, TimeoutError):
                    self._stats = None
                self._stats_at = time.monotonic()
        return self._stats


def _json(value: Any) -> Response:
    headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    return Response(encode(value), media_type="application/json", headers=headers)


def _shown_tokens(ids: list[int], tokenizer: Tokenizer) -> dict[str, Any]:
    """Columns `ids`, `texts` and `control`; `omitted` tokens are missing between `first` and the rest.

    A token that is no whole text by itself (part of a character) is told as its bytes, `<0xE2><0x98>`.
    """
    omitted = max(0, len(ids) - MAX_SHOWN_TOKENS)
    first = MAX_SHOWN_TOKENS // 2 if omitted else len(ids)
    shown = ids[:first] + ids[first + omitted :]
    added = frozenset(tokenizer.added_tokens.values())
    return {
        "ids": shown,
        "texts": [_token_text(tokenizer.token_bytes(token)) for token in shown],
        "control": [token in added for token in shown],
        "first": first,
        "omitted": omitted,
    }


def _token_text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in raw)
