"""What every generating route does, whatever its dialect: read, admit, prepare, run, write.

A dialect turns a body into an `Exchange`: the turns to generate, and a function that makes the `Wire` on which the answer is
written. The rest is the same for all: refusals come before anything is admitted, a large body is read outside the event loop, what
fails before the first step is still an HTTP status, a failure in the middle becomes the wire's own error event, and a client that
leaves ends its turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from openglm.engine.request import MAX_PROMPT_LOGPROB_ENTRIES
from openglm.errors import RequestError
from openglm.server.direct_line import BodyWriter, DirectLine, body_writer
from openglm.server.event_stream import ClientGone, EventStream, interleave, unless_client_leaves
from openglm.server.http_body import read_json_body
from openglm.server.json_reply import JSONReply
from openglm.server.refusal import Refusal, refusal_of
from openglm.server.service import LARGE_BODY, Service
from openglm.server.turn import PreparedTurn, StepWriter, TurnRequest, TurnStep, choices

STATUS_WAIT_S: Final = 1.0
"""How long a stream waits for its first step before it commits to status 200: most failures are known by then."""

_LARGE_SCORES: Final = 4096
"""Log probabilities from which writing them leaves the event loop."""


class Wire(Protocol):
    """One answer on its way to the client. Answers are numbered prompt by prompt, the choices of one prompt side by side."""

    keep_alive: bytes
    """What a silent stream sends now and then."""

    def start(self) -> bytes:
        """What a stream begins with."""
        ...

    def step(self, step: TurnStep, index: int) -> bytes:
        """A step of answer `index` in a stream; with the last step of the last answer, also how the stream ends."""
        ...

    def error(self, refusal: Refusal) -> bytes:
        """How a stream ends that fails in the middle."""
        ...

    def whole(self, answers: Sequence[Sequence[TurnStep]]) -> bytes:
        """The body of a request without streaming. The last step of every answer has an `end`."""
        ...


@dataclass(frozen=True)
class Exchange:
    """One request as its dialect read it."""

    turns: tuple[TurnRequest, ...]
    """One per prompt."""
    open: Callable[[Sequence[PreparedTurn]], Wire]
    """Makes the wire, once the turns are known to fit the model."""
    model: str | None = None
    stream: bool = False
    num_choices: int = 1
    """Answers to each prompt."""
    unknown: tuple[str, ...] = ()
    """Names of fields that were not read."""
    headers: tuple[tuple[str, str], ...] = ()
    """Of the response, besides the usual ones."""


class GeneratingRoute:
    """POST to a dialect, as an ASGI application: an answer may outlive the handler that started it."""

    def __init__(self, service: Service, read: Callable[[bytes], Exchange]) -> None:
        """`read` decodes and checks a body; it may run in a thread."""
        self._service = service
        self._read = read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        service = self._service
        service.refuse_if_draining()
        service.traffic.refuse_if_full()
        body = await read_json_body(Request(scope, receive), service.config.limits)
        with service.traffic.admitted():
            exchange = self._read(body) if len(body) < LARGE_BODY else await asyncio.to_thread(self._read, body)
            service.ignored_fields.note(exchange.unknown)
            service.check_model(exchange.model)
            try:
                turns = await unless_client_leaves(prepare_all(service, exchange, len(body)), receive)
                reply = await self.reply(exchange, turns, receive, body_writer(scope))
            except ClientGone:
                raise ClientDisconnect from None
            await reply(scope, receive, send)

    async def reply(self, exchange: Exchange, turns: Sequence[PreparedTurn], receive: Receive, writer: BodyWriter | None) -> ASGIApp:
        """The response, as a stream or whole. A dialect that knows another way overrides this."""
        return await (self._stream(exchange, turns, receive, writer) if exchange.stream else self._whole(exchange, turns, receive))

    async def _whole(self, exchange: Exchange, turns: Sequence[PreparedTurn], receive: Receive) -> Response:
        wire = exchange.open(turns)
        answers = await unless_client_leaves(collect(self._service, exchange, turns), receive)
        large = sum(_num_scores(step) for steps in answers for step in steps) > _LARGE_SCORES
        body = await asyncio.to_thread(wire.whole, answers) if large else wire.whole(answers)
        return JSONReply(body, headers=dict(exchange.headers))

    async def _stream(self, exchange: Exchange, turns: Sequence[PreparedTurn], receive: Receive, writer: BodyWriter | None) -> EventStream:
        wire = exchange.open(turns)
        is_single = len(turns) == exchange.num_choices == 1
        direct = DirectLine(functools.partial(wire.step, index=0), writer) if writer is not None and is_single else None
        steps = run_all(self._service, exchange, turns, direct=[direct] if direct is not None else ())
        first = asyncio.ensure_future(anext(steps))
        try:
            await unless_client_leaves(asyncio.wait((first,), timeout=STATUS_WAIT_S), receive)
            if first.done():
                first.result()  # raises what the turn failed with, while there still is a status to say it with
        except BaseException:
            first.cancel()
            await asyncio.wait((first,))
            await steps.aclose()
            raise
        return EventStream(
            wire.start(),
            _chunks(wire, first, steps),
            keep_alive_s=self._service.config.keep_alive_s,
            keep_alive=wire.keep_alive,
            headers=exchange.headers,
            direct=direct,
        )


def left_out(what: str, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """A header that tells the client how many parts of its request had no effect, since an answer comes all the same."""
    return (("x-openglm-warning", f"{len(names)} of the {what} cannot be used by this server and were left out"),) if names else ()


async def prepare_all(service: Service, exchange: Exchange, size: int) -> tuple[PreparedTurn, ...]:
    """Every prompt made ready, once the model is there. `size` is that of the body in bytes."""
    await service.wait_until_loaded()
    turns = tuple([await service.prepare(turn, size=size) for turn in exchange.turns])
    # The engine bounds the scores of each prompt; a body with many prompts could ask for that much many times over.
    num_scores = sum(len(turn.prompt_ids) * (1 + turn.params.prompt_logprobs) for turn in turns if turn.params.prompt_logprobs is not None)
    if num_scores > MAX_PROMPT_LOGPROB_ENTRIES:
        raise RequestError("the prompts together have too many tokens to be scored in one request; send fewer", param="logprobs")
    return turns


def run_all(
    service: Service, exchange: Exchange, turns: Sequence[PreparedTurn], *, direct: Sequence[StepWriter] = ()
) -> AsyncGenerator[tuple[int, TurnStep]]:
    """Every answer's steps, each with the number of its answer; without those that its writer in `direct` takes, if it has one."""
    answers = [choice for turn in turns for choice in choices(turn, exchange.num_choices)]
    return interleave([service.run(answer, direct=writer) for answer, writer in itertools.zip_longest(answers, direct)])


class _Collector:
    """Keeps the steps of one answer. Those in its middle come by the short way: nobody has to be woken for them."""

    ready = True

    def __init__(self) -> None:
        self.steps: list[TurnStep] = []

    def write(self, step: TurnStep) -> None:
        self.steps.append(step)


async def collect(service: Service, exchange: Exchange, turns: Sequence[PreparedTurn]) -> list[list[TurnStep]]:
    """All steps of all answers."""
    collectors = [_Collector() for _ in range(len(turns) * exchange.num_choices)]
    async with contextlib.aclosing(run_all(service, exchange, turns, direct=collectors)) as steps:
        async for index, step in steps:
            collectors[index].write(step)
    return [collector.steps for collector in collectors]


def _num_scores(step: TurnStep) -> int:
    return len(step.prompt_logprobs or ()) + len(step.logprobs)


async def _chunk(wire: Wire, step: TurnStep, index: int) -> bytes:
    if step.prompt_logprobs is None or _num_scores(step) <= _LARGE_SCORES:
        return wire.step(step, index)
    return await asyncio.to_thread(wire.step, step, index)


async def _chunks(
    wire: Wire, first: asyncio.Future[tuple[int, TurnStep]], steps: AsyncGenerator[tuple[int, TurnStep]]
) -> AsyncGenerator[bytes]:
    """The wire form of a running exchange. A failure in the middle becomes an error event, and the stream ends properly."""
    try:
        index, step = await first
        if chunk := await _chunk(wire, step, index):
            yield chunk
        async for index, step in steps:
            if chunk := await _chunk(wire, step, index):
                yield chunk
    except Exception as error:
        yield wire.error(refusal_of(error))
    finally:
        if not first.done():
            first.cancel()
            await asyncio.wait((first,))
        await steps.aclose()
