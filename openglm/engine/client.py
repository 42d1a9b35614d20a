"""`AsyncEngineClient`: the engine, for an asyncio program. Loads no torch; the engine lives in its own process.

    client = AsyncEngineClient(EngineConfig(model="path"))
    await client.start()
    async with aclosing(client.generate(request)) as stream:
        async for output in stream: ...

Promises: every request that `generate` accepted ends with exactly one output that has a finish reason, also when the engine process
dies or hangs (finish reason "error", code "engine_dead"). After a death the process is started again, with growing pauses, while
this object stays usable. The queue is bounded: `generate` raises `QueueFullError` instead of letting requests pile up.

A reader that falls behind costs no memory: its outputs are merged into one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Literal

from openglm.config.engine import EngineConfig
from openglm.engine import protocol
from openglm.engine.request import EngineOutput, GenerationRequest, RequestFailure, validate_request
from openglm.engine.stats import EngineStats
from openglm.engine.supervisor import Activity, EngineChild, Supervision
from openglm.errors import CheckpointError, ConfigError, EngineDeadError, QueueFullError, RequestError

logger = logging.getLogger(__name__)

Sink = Callable[[EngineOutput], bool]
State = Literal["starting", "ready", "restarting", "dead"]
MAX_REQUEST_ID_CHARS = 128
_RATE_WINDOW = 16


class EngineStream:
    """The outputs of one request, in order. Close it (or abort the request) when you stop reading early."""

    __slots__ = ("_abandon", "_ended", "_pending", "_sink", "_waiting", "has_output", "request_id")

    def __init__(self, request_id: str, abandon: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._abandon = abandon
        self._pending: EngineOutput | None = None
        self._waiting: asyncio.Future[None] | None = None  # a reader is suspended in `__anext__`
        self._sink: Sink | None = None
        self.has_output = False
        """Whether anything has arrived, so the prompt is done."""
        self._ended = False  # the terminal output has been handed out, or nobody wants it

    def __aiter__(self) -> EngineStream:
        return self

    async def __anext__(self) -> EngineOutput:
        if self._ended and self._pending is None:
            raise StopAsyncIteration
        if self._pending is None:
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            except asyncio.CancelledError:
                await self.aclose()
                raise
            finally:
                self._waiting = None
        output, self._pending = self._pending, None
        if output is None:
            raise StopAsyncIteration
        self._ended = output.finish_reason is not None
        return output

    async def aclose(self) -> None:
        """Stop reading; a request that still runs is aborted."""
        if not self._ended:
            self._ended = True
            self._pending = None
            self._abandon(self.request_id)
            self._wake()

    def divert(self, sink: Sink) -> None:
        """Offer outputs to `sink` as they arrive, while a reader waits for the next one: what it takes (True) is not delivered, and the
        reader sleeps on. Must not raise."""
        self._sink = sink

    def deliver(self, output: EngineOutput) -> None:
        """Called by the client for everything that arrives."""
        self.has_output = True
        if self._ended:
            return
        if self._sink is not None and self._waiting is not None and self._pending is None and self._sink(output):
            return
        if self._pending is not None:
            output.token_ids = self._pending.token_ids + output.token_ids
            if self._pending.logprobs is not None:
                output.logprobs = self._pending.logprobs + (output.logprobs or [])
            output.prompt_logprobs = self._pending.prompt_logprobs or output.prompt_logprobs
        self._pending = output
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class AsyncEngineClient:
    """Starts, feeds and restarts one engine process. All methods belong to one event loop."""

    def __init__(self, config: EngineConfig, *, supervision: Supervision | None = None) -> None:
        self.config = config
        self.state: State = "starting"
        self.phase = "starting"
        """What a starting engine is doing."""
        self.num_restarts = 0
        self.last_error: str | None = None
        self._supervision = supervision or Supervision()
        self._info: protocol.EngineInfo | None = None
        self._child: EngineChild | None = None
        self._streams: dict[str, EngineStream] = {}
        self._queries: dict[int, asyncio.Future[EngineStats]] = {}
        self._num_queries = 0
        self._finish_times: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._changed = asyncio.Condition()
        self._failure: Exception | None = None
        self._has_served = False  # the present engine process finished at least one request
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def info(self) -> protocol.EngineInfo:
        """Facts about the engine; `EngineDeadError` before it was ready for the first time."""
        if self._info is None:
            raise EngineDeadError(f"the engine is not ready yet ({self.phase})")
        return self._info

    @property
    def pid(self) -> int | None:
        """The engine's process id while there is one."""
        return self._child.pid if self._child is not None else None

    @property
    def num_requests(self) -> int:
        """Requests that run or wait."""
        return len(self._streams)

    async def start(self) -> protocol.EngineInfo:
        """Start the engine and wait until it is ready.

        Raises `ConfigError` or `CheckpointError` when it can never start like this, `EngineDeadError` when it gave up.
        """
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        return await self.wait_ready()

    async def wait_ready(self) -> protocol.EngineInfo:
        """Wait for the engine to be ready (again); raises what made it give up."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.state in ("ready", "dead"))
        if self.state == "dead":
            raise self._failure or EngineDeadError("the engine was closed")
        return self.info

    def generate(self, request: GenerationRequest) -> EngineStream:
        """Hand a request to the engine. Raises at once `RequestError`, `QueueFullError`, or `EngineDeadError` when it is down."""
        if self.state != "ready" or self._child is None or self._info is None:
            raise EngineDeadError(f"the engine is {self.state} ({self.last_error or self.phase}); try again later")
        if not 1 <= len(request.id) <= MAX_REQUEST_ID_CHARS or request.id in self._streams:
            raise RequestError(f"a request id must be unused and have 1 to {MAX_REQUEST_ID_CHARS} characters", param="id")
        validate_request(request, num_tokens=self._info.num_tokens, max_model_len=self._info.max_model_len)
        if len(self._streams) >= self._info.max_num_seqs + self.config.max_queued_requests:
            raise QueueFullError(f"{len(self._streams)} requests run or wait already", retry_after_s=self._retry_after())
        stream = EngineStream(request.id, self._abandon)
        self._streams[request.id] = stream
        self._child.send(protocol.Submit(request))
        return stream

    async def abort(self, request_id: str) -> None:
        """End a request; its stream gets a terminal output with finish reason "abort". Unknown ids are ignored."""
        if request_id in self._streams and self._child is not None:
            self._child.send(protocol.Abort(request_id))

    async def stop_thinking(self, request_id: str) -> bool:
        """Let a running request close its reasoning now and go on to its answer. Returns whether there is such a request."""
        if request_id not in self._streams or self._child is None:
            return False
        self._child.send(protocol.StopThinking(request_id))
        return True

    async def stats(self) -> EngineStats:
        """The engine's counters; `EngineDeadError` when it is down."""
        return await self._ask(protocol.AskStats)

    async def flush_cache(self) -> None:
        """Forget every cached prefix; running requests keep what they use. `EngineDeadError` when the engine is down."""
        await self._ask(protocol.FlushCache)

    async def _ask(self, question: type[protocol.AskStats | protocol.FlushCache]) -> EngineStats:
        if self.state != "ready" or self._child is None:
            raise EngineDeadError(f"the engine is {self.state}")
        self._num_queries += 1
        query = self._num_queries
        self._queries[query] = asyncio.get_running_loop().create_future()
        self._child.send(question(query))
        try:
            return await self._queries[query]
        finally:
            self._queries.pop(query, None)

    async def close(self) -> None:
        """End the process; requests that still run get a terminal output. The client cannot be started again."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self._fail_all("the engine was closed")
        await self._enter("dead")

    async def _supervise(self) -> None:
        """Start the engine, and again whenever it dies, until it dies too often in a row without having served anyone."""
        num_failures = 0
        while True:
            self._has_served = False
            try:
                await self._live_once()
            except (ConfigError, CheckpointError) as error:
                self._failure, self.last_error = error, str(error)
                if self._info is not None:  # a first start raises it to whoever waits in `start`, who says it once
                    logger.error("the engine cannot start: %s", error)
                break
            except EngineDeadError as error:
                self._failure = error
            num_failures = 0 if self._has_served else num_failures + 1
            pauses = self._supervision.backoff_s
            if num_failures > len(pauses):
                logger.error("the engine failed %d times in a row and stays down: %s", num_failures, self.last_error)
                break
            pause = pauses[max(0, num_failures - 1)] if pauses else 0.0
            logger.error("%s; starting it again in %g s", self.last_error, pause)
            await self._enter("restarting")
            await asyncio.sleep(pause)
            self.num_restarts += 1
        await self._enter("dead")

    async def _live_once(self) -> None:
        """One engine process from spawn to end; leaves by an exception."""
        patience = self._supervision
        child: EngineChild | None = None
        watchdog: asyncio.Task[None] | None = None
        try:
            child = self._child = await EngineChild.spawn(self.config, timeout_s=patience.start_timeout_s)
            self._info = await child.wait_ready(self._enter_phase, patience=patience)
            await self._enter("ready")
            watchdog = asyncio.create_task(child.watch(self._activity, patience=patience))
            while True:
                self._handle(await child.receive())
        except EngineDeadError as error:
            self._lose_engine(str(error))
            raise
        except (ConfigError, CheckpointError):
            raise
        except Exception as error:  # a bug on this side must not leave clients waiting for an engine that nobody reads
            logger.exception("the engine's supervisor failed")
            self._lose_engine(f"the engine's supervisor failed ({type(error).__name__})")
            raise EngineDeadError(self.last_error) from error
        finally:
            self._child = None
            if watchdog is not None:
                watchdog.cancel()
            if child is not None:
                await child.close()

    def _lose_engine(self, why: str) -> None:
        """Tell everyone at once, before the clean-up, for which no client should wait."""
        self.state, self._child, self.last_error = "restarting", None, why
        self._fail_all(why)

    def _handle(self, message: protocol.FromEngine) -> None:
        match message:
            case protocol.Outputs(items):
                for output in items:
                    stream = self._streams.get(output.request_id)
                    if stream is None:
                        continue
                    stream.deliver(output)
                    if output.finish_reason is not None:
                        del self._streams[output.request_id]
                        self._has_served = self._has_served or output.finish_reason in ("stop", "length")
                        self._finish_times.append(asyncio.get_running_loop().time())
            case protocol.Stats(query, stats):
                future = self._queries.get(query)
                if future is not None and not future.done():
                    future.set_result(stats)
            case protocol.Failed(_, text):
                raise EngineDeadError(text)
            case protocol.Refused(text):
                logger.error("the engine process refused a message: %s", text)

    def _activity(self) -> Activity:
        if not self._streams:
            return "idle"
        return "decode" if all(stream.has_output for stream in self._streams.values()) else "prefill"

    def _abandon(self, request_id: str) -> None:
        if self._streams.pop(request_id, None) is not None and self._child is not None:
            self._child.send(protocol.Abort(request_id))

    def _fail_all(self, why: str) -> None:
        streams, self._streams = self._streams, {}
        failure = RequestFailure("engine_dead", f"{why}; the request did not finish")
        for request_id, stream in streams.items():
            stream.deliver(EngineOutput(request_id, [], finish_reason="error", error=failure))
        for future in self._queries.values():
            if not future.done():
                future.set_exception(EngineDeadError(why))

    def _enter_phase(self, name: str) -> None:
        self.phase = name
        logger.info("engine: %s", name)

    async def _enter(self, state: State) -> None:
        async with self._changed:
            self.state = state
            self._changed.notify_all()

    def _retry_after(self) -> float:
        """Seconds until a place should be free, from how fast requests finished lately."""
        times = self._finish_times
        if len(times) < 2 or times[-1] <= times[0]:
            return 1.0
        return min(60.0, max(1.0, (times[-1] - times[0]) / (len(times) - 1)))
