"""One neutral turn, between every dialect and the engine: a conversation goes in, a stream of steps comes out.

    TurnRequest ──prepare──> PreparedTurn ──run──> TurnStep, TurnStep, ..., TurnStep with `end`

A dialect fills a `TurnRequest` and translates the steps; it never sees token ids, tags or the engine. Each engine step becomes
at most one `TurnStep`: its tokens pass through the incremental detokenizer and the turn parser.

Decisions:
- Stop strings are looked for in the answer only. Inside the reasoning they would cut the model off before it answers, and
  inside a call they would break its arguments. So they stay on this side, and a match aborts the engine's request.
- `parallel_tool_calls: false` ends the turn after the first complete call.
- `finish_reason` says what was delivered: "tool_calls" if calls came and none was cut off, else what the engine says.
- A consumer that stops iterating (its client left) aborts the engine's request, whatever it was doing.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

import msgspec

from openglm.engine.request import EngineOutput, GenerationRequest, SamplingParams, TokenLogprobs, siblings
from openglm.engine.scheduling import SchedulingParams
from openglm.engine.stats import EngineStats
from openglm.engine.stop import StopStrings
from openglm.errors import ContextLengthError, EngineError
from openglm.server.served_model import ServedModel
from openglm.text.bad_words import bad_word_ids
from openglm.text.detokenizer import IncrementalDetokenizer
from openglm.text.messages import Conversation
from openglm.text.template import StartState
from openglm.text.tokenizer import Tokenizer
from openglm.text.turn_parser import ContentDelta, Event, ToolCallEnd, TurnParser

TurnFinish = Literal["stop", "length", "tool_calls", "abort"]


@dataclass(frozen=True)
class TurnRequest:
    """What a client asks for. `params` holds everything for the engine except stop strings; its `max_tokens` is a wish."""

    conversation: Conversation
    params: SamplingParams
    stop: tuple[str, ...] = ()
    parallel_tool_calls: bool = True
    bad_words: tuple[str, ...] = ()
    scheduling: SchedulingParams = field(default_factory=SchedulingParams)


@dataclass(frozen=True)
class PreparedTurn:
    """A turn that fits the model, ready to run."""

    request: TurnRequest
    prompt_ids: list[int]
    start: StartState
    params: SamplingParams
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    follows: str | None = None
    """The turn whose prompt this one shares."""


@dataclass(frozen=True)
class TurnUsage:
    """Token counts of one turn. `reasoning_tokens` are part of `completion_tokens`, `cached_tokens` of `prompt_tokens`."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    draft_tokens: int
    accepted_draft_tokens: int


def total_usage(usages: Iterable[TurnUsage]) -> TurnUsage:
    """Of several answers to one prompt: the prompt counts once, as it is for the first of them."""
    first, *others = usages
    everyone = (first, *others)
    return replace(
        first,
        completion_tokens=sum(usage.completion_tokens for usage in everyone),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in everyone),
        draft_tokens=sum(usage.draft_tokens for usage in everyone),
        accepted_draft_tokens=sum(usage.accepted_draft_tokens for usage in everyone),
    )


@dataclass(frozen=True)
class TurnEnd:
    """How a turn ended."""

    finish_reason: TurnFinish
    usage: TurnUsage
    num_calls: int = 0
    """Tool calls that were delivered whole, and those that were cut off."""
    num_cut_calls: int = 0
    num_repairs: int = 0
    """How often the model broke its format and was understood all the same."""


@dataclass(frozen=True)
class TurnStep:
    """What one engine step added. Exactly the last step of a turn has an `end`."""

    events: tuple[Event, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    end: TurnEnd | None = None


class OutputStream(Protocol):
    """The outputs of one request, the last with a finish reason. Closing it early aborts the request."""

    def __aiter__(self) -> OutputStream: ...

    async def __anext__(self) -> EngineOutput: ...

    async def aclose(self) -> None: ...  # noqa: D102


class Engine(Protocol):
    """What the server needs of the engine's client (`openglm.engine.client.AsyncEngineClient`)."""

    @property
    def state(self) -> str:
        """ "starting", "ready", "restarting" or "dead"."""
        ...

    def generate(self, request: GenerationRequest) -> OutputStream:
        """Begin a request. Raises `RequestError`, `QueueFullError` or `EngineDeadError` at once."""
        ...

    @property
    def num_restarts(self) -> int:
        """How often the engine's process had to be started again."""
        ...

    async def stats(self) -> EngineStats:
        """The engine's counters. Raises `EngineDeadError` while it is down."""
        ...


def prepare(request: TurnRequest, model: ServedModel) -> PreparedTurn:
    """Render and tokenize; clamp the output to what the context leaves. Pure CPU work, safe in a thread."""
    prompt_ids, start = model.prompt(request.conversation)
    room = model.max_model_len - len(prompt_ids)
    if room < 1:
        raise ContextLengthError(
            f"This model's maximum context length is {model.max_model_len} tokens. However, your request has {len(prompt_ids)} "
            "input tokens. Please reduce the length of the input messages."
        )
    wanted = request.params.max_tokens
    params = msgspec.structs.replace(request.params, max_tokens=room if wanted is None else min(wanted, room))
    if request.bad_words:
        params = msgspec.structs.replace(params, bad_words=bad_word_ids(request.bad_words, model.tokenizer))
    return PreparedTurn(request, prompt_ids, start, params)


def choices(turn: PreparedTurn, count: int) -> tuple[PreparedTurn, ...]:
    """`count` turns from one prompt, the first of which is `turn`; run them in this order."""
    requests = siblings(GenerationRequest(turn.id, turn.prompt_ids, turn.params), count)
    return (turn, *(replace(turn, id=request.id, params=request.params, follows=turn.id) for request in requests[1:]))


async def run(
    turn: PreparedTurn, engine: Engine, tokenizer: Tokenizer, *, observe: Callable[[EngineOutput], None] | None = None
) -> AsyncGenerator[TurnStep]:
    """Generate the turn. Raises the typed error the engine failed with; leaving early aborts the engine's request.

    `observe` is shown every output of the engine, also those of which nothing is visible.
    """
    reader = _TurnReader(turn, tokenizer)
    async with contextlib.aclosing(engine.generate(_engine_request(turn))) as outputs:
        async for output in outputs:
            if observe is not None:
                observe(output)
            if output.finish_reason == "error":
                raise _failure(output)
            step = reader.read(output)
            if step is not None:
                yield step
                if step.end is not None:
                    return
    raise EngineError("the engine's output ended without a finish reason")


def _engine_request(turn: PreparedTurn) -> GenerationRequest:
    return GenerationRequest(turn.id, turn.prompt_ids, turn.params, turn.follows, turn.request.scheduling)


class _TurnReader:
    """Turns the engine's outputs of one turn into steps."""

    def __init__(self, turn: PreparedTurn, tokenizer: Tokenizer) -> None:
        request = turn.request
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._parser = TurnParser(turn.start, request.conversation.tools)
        self._stop = StopStrings(request.stop) if request.stop else None
        self._one_call = not request.parallel_tool_calls
        self._reasoning = _ReasoningCounter(turn.start, tokenizer, calls=bool(request.conversation.tools))
        self._num_tokens = 0
        self._num_calls = self._num_cut_calls = 0

    def read(self, output: EngineOutput) -> TurnStep | None:
        """The step that an output amounts to; None when nothing became visible (half a character, half a tag)."""
        self._num_tokens += len(output.token_ids)
        self._reasoning.count(output.token_ids)
        events = self._parser.feed(self._detokenizer.push(output.token_ids))
        if output.finish_reason is not None:
            events += self._parser.feed(self._detokenizer.finish())
            events += self._parser.finish(ended=output.finish_reason == "stop")
        events, cut = self._cut(events)
        if cut:
            end = self._end(output, "stop")
        elif output.finish_reason is not None:
            if self._stop is not None and (held := self._stop.finish()):
                events.append(ContentDelta(held))
            end = self._end(output, output.finish_reason)
        else:
            end = None
        if not events and end is None and not output.logprobs:
            return None
        return TurnStep(tuple(events), tuple(output.logprobs or ()), end)

    def _cut(self, events: list[Event]) -> tuple[list[Event], bool]:
        """The events that may be delivered, and whether the turn is over with them."""
        delivered: list[Event] = []
        for event in events:
            if isinstance(event, ContentDelta) and self._stop is not None:
                text = self._stop.push(event.text)
                if text:
                    delivered.append(ContentDelta(text))
                if self._stop.matched is not None:
                    return delivered, True
                continue
            if self._stop is not None and (held := self._stop.finish()):  # nothing after a call continues the text before it
                delivered.append(ContentDelta(held))
            delivered.append(event)
            if isinstance(event, ToolCallEnd):
                self._num_calls += event.complete
                self._num_cut_calls += not event.complete
                if self._one_call and event.complete:
                    return delivered, True
        return delivered, False

    def _end(self, output: EngineOutput, reason: str) -> TurnEnd:
        finish = "tool_calls" if self._num_calls and not self._num_cut_calls else _FINISH[reason]
        usage = TurnUsage(
            prompt_tokens=output.num_prompt_tokens,
            cached_tokens=output.num_cached_tokens,
            completion_tokens=self._num_tokens,
            reasoning_tokens=self._reasoning.num_tokens,
            draft_tokens=output.num_drafted,
            accepted_draft_tokens=output.num_accepted,
        )
        return TurnEnd(finish, usage, self._num_calls, self._num_cut_calls, self._parser.num_repairs)


class _ReasoningCounter:
    """Counts the tokens of the think block, tags included, by id. Text cannot be counted: a step may hold several tokens."""

    def __init__(self, start: StartState, tokenizer: Tokenizer, *, calls: bool) -> None:
        self.num_tokens = 0
        self._open = start == "reasoning"
        self._undecided = start == "undecided"
        self._think = tokenizer.think
        self._end_think = tokenizer.end_think
        self._tool_call = tokenizer.tool_call if calls else None

    def count(self, ids: list[int]) -> None:
        """Take in new tokens."""
        if not (self._open or self._undecided):
            return
        for token in ids:
            if self._undecided and token == self._think:
                self._undecided, self._open = False, True
            if self._open and token == self._tool_call:  # a call ends reasoning that was never closed
                self._open = False
            self.num_tokens += self._open
            if token == self._end_think:
                self._open = self._undecided = False


_FINISH: Final[dict[str, TurnFinish]] = {"stop": "stop", "length": "length", "abort": "abort"}


def _failure(output: EngineOutput) -> Exception:
    failure = output.error
    if failure is None:
        return EngineError("the engine ended the request without saying why")
    return failure.to_error()
