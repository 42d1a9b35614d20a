"""An engine that plays back given outputs: for tests of what lies above the engine, one step at a time."""

from openglm.engine.protocol import EngineInfo
from openglm.engine.request import EngineOutput, RequestFailure
from openglm.engine.stats import EngineStats
from openglm.errors import EngineDeadError


class CannedEngine:
    """Every request gets the same `steps`: lists of token ids. `ending` is its finish reason; None never ends."""

    def __init__(self, steps, *, ending="stop", failure=None, error=None) -> None:
        self.steps, self.ending, self.failure, self.error = steps, ending, failure, error
        self.state = "ready"
        self.num_restarts = 0
        self.requests = []
        self.num_flushes = 0
        self.aborted = []

    @property
    def info(self):
        if self.state != "ready":
            raise EngineDeadError("gone")
        return EngineInfo("canned", 292, 4000, 1, 0, "float32", "cpu", ())

    async def stats(self):
        if self.state != "ready":
            raise EngineDeadError("gone")
        return EngineStats(num_steps=7, num_waiting=3, pages_total=100, pages_free=90, pages_held=10)

    async def stop_thinking(self, request_id):
        return request_id in {request.id for request in self.requests}

    def generate(self, request):
        if self.error is not None:
            raise self.error
        if self.state == "dead":
            raise EngineDeadError("gone")
        self.requests.append(request)
        return _Stream(self, request)

    async def abort(self, request_id):
        self.aborted.append(request_id)

    async def flush_cache(self):
        self.num_flushes += 1


class _Stream:
    def __init__(self, engine, request) -> None:
        self._engine, self._request = engine, request
        self._left = [list(step) for step in engine.steps]
        self._ended = False

    def __aiter__(self):
        return self

    def divert(self, sink):
        """Nobody waits here: every output is there already."""

    async def __anext__(self):
        if self._ended:
            raise StopAsyncIteration
        ids = self._left.pop(0) if self._left else []
        reason = None if self._left else self._engine.ending
        error = RequestFailure(*self._engine.failure) if reason == "error" else None
        self._ended = reason is not None
        return EngineOutput(
            self._request.id,
            ids,
            finish_reason=reason,
            num_prompt_tokens=len(self._request.prompt_ids),
            num_cached_tokens=3,
            num_drafted=4,
            num_accepted=2,
            error=error,
        )

    async def aclose(self):
        if not self._ended:
            self._engine.aborted.append(self._request.id)
        self._ended = True


class MadeOutputs:
    """The outputs that an asynchronous generator makes, as a stream of the engine."""

    def __init__(self, outputs) -> None:
        self._outputs = outputs

    def __aiter__(self):
        return self

    def divert(self, sink):
        """They are made only when somebody asks."""

    async def __anext__(self):
        return await anext(self._outputs)

    async def aclose(self):
        await self._outputs.aclose()
