"""`Service`: the state that all routes share. One model, its engine, the traffic in front of it, and the phase of life.

    starting ──engine ready──> serving ──SIGTERM──> stopping ──> over
        └──engine refuses the model──> failed     (an administrator may drain it for a while)

Chat requests wait a while for a model that still loads; afterwards, and while draining, they are told when to come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from collections.abc import AsyncGenerator
from dataclasses import replace

import msgspec

from openglm.config.server import ServerConfig
from openglm.server.http_protocol import Census
from openglm.server.ignored_fields import IgnoredFields
from openglm.server.metrics import Metrics
from openglm.server.refusal import Refusal, Refused
from openglm.server.request_context import current_request
from openglm.server.served_model import ServedModel
from openglm.server.tracing import open_tracing
from openglm.server.traffic import Traffic
from openglm.server.turn import Engine, PreparedTurn, StepWriter, TurnEnd, TurnRequest, TurnStep, prepare, run

logger = logging.getLogger(__name__)

LARGE_BODY = 64 << 10
"""Bytes of a request from which decoding and tokenizing leave the event loop, so that other streams do not stall."""

QUEUED_CACHES = 4
"""KV caches full of prompts that may wait, unless the configuration says otherwise."""


class Service:
    """What a route handler may use."""

    def __init__(self, config: ServerConfig, model: ServedModel, engine: Engine) -> None:
        self.config = config
        self.model = model
        self.engine = engine
        self.traffic = Traffic(config.max_queued_requests)
        self.metrics = Metrics(max_model_len=model.max_model_len)
        self.census = Census()
        self.tracing = open_tracing(config.otlp_traces_endpoint)
        self.draining = self._stopping = False
        self.max_num_seqs = 0
        """Requests that the engine runs at once; known when it is loaded."""
        self.ignored_fields = IgnoredFields()
        self._turns: dict[str, PreparedTurn] = {}
        self._loaded = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether a chat request would be served at once."""
        return self._loaded.is_set() and not self.draining and self.engine.state == "ready"

    def engine_loaded(self, *, max_model_len: int, max_num_seqs: int, kv_tokens: int | None = None) -> None:
        """The engine is ready, with these limits; `kv_tokens` is what its KV cache holds."""
        self.model = self.model.with_context(max_model_len)
        self.max_num_seqs = max_num_seqs
        self.metrics.set_model_length(max_model_len)
        self.traffic.limit = max_num_seqs + self.config.max_queued_requests
        if kv_tokens is not None:
            queued = self.config.max_queued_tokens
            self.traffic.token_limit = kv_tokens + (QUEUED_CACHES * kv_tokens if queued is None else queued)
        self._loaded.set()

    def begin_drain(self) -> None:
        """Take no more work, for the time being."""
        self.draining = True

    def end_drain(self) -> None:
        """Take work again, unless the server stops."""
        self.draining = self._stopping

    def stop(self) -> None:
        """Take no more work ever; requests that wait for the model are told so."""
        self.draining = self._stopping = True
        self._loaded.set()

    def refuse_if_draining(self) -> None:
        """Raise `Refused` when the server takes no more work."""
        if self.draining:
            raise Refused(Refusal(503, "the server is shutting down", "shutting_down", retry_after_s=5.0))

    async def wait_until_loaded(self) -> None:
        """Wait for the model, up to `ready_wait_s`; raise `Refused` when it does not come."""
        if not self._loaded.is_set():
            try:
                await asyncio.wait_for(self._loaded.wait(), self.config.ready_wait_s)
            except TimeoutError:
                raise Refused(Refusal(503, "the model is still loading; try again soon", "model_loading", retry_after_s=5.0)) from None
        self.refuse_if_draining()

    def check_model(self, name: str | None) -> None:
        """Raise `Refused` (404) unless `name` is served; absent means the one model there is."""
        if name is not None and name not in self.model.names:
            served = ", ".join(self.model.names)
            raise Refused(Refusal(404, f"no such model here; this server has: {served}", "model_not_found", "model"))

    async def prepare(self, request: TurnRequest, *, size: int) -> PreparedTurn:
        """The request made ready; `size` is that of its body in bytes."""
        tenant = current_request().tenant
        if tenant:
            scheduling = request.scheduling
            salt = hashlib.sha256(f"{tenant}:{scheduling.cache_salt}".encode()).hexdigest()
            request = replace(request, scheduling=msgspec.structs.replace(scheduling, cache_salt=salt))
        if size < LARGE_BODY and self.model.renders_in_process:
            return prepare(request, self.model)
        return await asyncio.to_thread(prepare, request, self.model)

    async def run(self, turn: PreparedTurn, *, direct: StepWriter | None = None) -> AsyncGenerator[TurnStep]:
        """Generate; measure, trace and log how it went. Steps that `direct` can write are not yielded. Raises `QueueFullError` when too
        many tokens wait already."""
        # Of several answers to one prompt the first stands for all.
        with self.traffic.holding(len(turn.prompt_ids) if turn.follows is None else 0):
            context = current_request()
            record, span = self.metrics.begin(turn), self.tracing.begin(turn, model=self.model.name, context=context)
            end: TurnEnd | None = None
            error: Exception | None = None
            self._turns[turn.id] = turn
            try:
                outputs = run(turn, self.engine, self.model.tokenizer, observe=record.observe, direct=direct)
                async with contextlib.aclosing(outputs) as steps:
                    async for step in steps:
                        end = step.end
                        yield step
            except Exception as failure:
                error = failure
                raise
            finally:
                del self._turns[turn.id]
                reason = record.end(end, failed=error is not None)
                span.end(record, end, error)
                if logger.isEnabledFor(logging.INFO):
                    detail = {
                        "request": turn.id,
                        "request_id": context.id,
                        "seconds": round(record.seconds, 3),
                        "prompt_tokens": len(turn.prompt_ids),
                        "completion_tokens": record.num_tokens,
                    }
                    if (output := record.last_output) is not None:
                        detail |= {"cached_tokens": output.num_cached_tokens, "cache": output.cache_outcome or "unknown"}
                    logger.info("turn ended: %s", end.finish_reason if end else reason, extra=detail)

    async def abort(self, name: str | None) -> int:
        """End the running turns that a client knows by this name - its own id, or the id in the answer - or all (None); they end
        with the finish reason "abort". Returns how many there were."""
        wanted = [turn.id for turn in self._turns.values() if name is None or _is_named(turn, name)]
        for turn_id in wanted:
            await self.engine.abort(turn_id)
        return len(wanted)


def _is_named(turn: PreparedTurn, name: str) -> bool:
    known = turn.follows or turn.id
    return name in (turn.request.client_id, turn.id) or re.split("[-_]", name)[-1] == known
