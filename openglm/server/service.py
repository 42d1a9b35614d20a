"""`Service`: the state that all routes share. One model, its engine, the traffic in front of it, and the phase of life.

    starting ──engine ready──> serving ──SIGTERM──> draining ──> over
        └──engine refuses the model──> failed

Chat requests wait a while for a model that still loads; afterwards, and while draining, they are told when to come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncGenerator

from openglm.config.server import ServerConfig
from openglm.server.ignored_fields import IgnoredFields
from openglm.server.refusal import Refusal, Refused
from openglm.server.served_model import ServedModel
from openglm.server.traffic import Traffic
from openglm.server.turn import Engine, PreparedTurn, TurnEnd, TurnRequest, TurnStep, prepare, run

logger = logging.getLogger(__name__)

LARGE_BODY = 64 << 10
"""Bytes of a request from which decoding and tokenizing leave the event loop, so that other streams do not stall."""


class Service:
    """What a route handler may use."""

    def __init__(self, config: ServerConfig, model: ServedModel, engine: Engine) -> None:
        self.config = config
        self.model = model
        self.engine = engine
        self.traffic = Traffic(config.max_queued_requests)
        self.draining = False
        self.max_num_seqs = 0
        """Requests that the engine runs at once; known when it is loaded."""
        self.ignored_fields = IgnoredFields()
        self._turns: dict[str, PreparedTurn] = {}
        self._loaded = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether a chat request would be served at once."""
        return self._loaded.is_set() and not self.draining and self.engine.state == "ready"

    def engine_loaded(self, *, max_model_len: int, max_num_seqs: int) -> None:
        """The engine is ready, with these limits."""
        self.model = self.model.with_context(max_model_len)
        self.max_num_seqs = max_num_seqs
        self.traffic.limit = max_num_seqs + self.config.max_queued_requests
        self._loaded.set()

    def begin_drain(self) -> None:
        """Take no more work; requests that wait for the model are told so."""
        self.draining = True
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
        if size < LARGE_BODY and self.model.renders_in_process:
            return prepare(request, self.model)
        return await asyncio.to_thread(prepare, request, self.model)

    async def run(self, turn: PreparedTurn) -> AsyncGenerator[TurnStep]:
        """Generate, and log how it went."""
        began = time.monotonic()
        end: TurnEnd | None = None
        self._turns[turn.id] = turn
        try:
            async with contextlib.aclosing(run(turn, self.engine, self.model.tokenizer)) as steps:
                async for step in steps:
                    end = step.end
                    yield step
        finally:
            del self._turns[turn.id]
            seconds = time.monotonic() - began
            detail = {"request": turn.id, "seconds": f"{seconds:.3f}", "prompt_tokens": len(turn.prompt_ids)}
            if end is not None:
                detail |= {"completion_tokens": end.usage.completion_tokens, "cached_tokens": end.usage.cached_tokens}
            logger.info("turn ended: %s", end.finish_reason if end else "aborted", extra=detail)

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
