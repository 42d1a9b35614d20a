"""One neutral turn, between every dialect and the engine: a conversation (or a raw prompt) goes in, a stream of steps comes out.

    TurnRequest ──prepare──> PreparedTurn ──run──> TurnStep, TurnStep, ..., TurnStep with `end`

A dialect fills a `TurnRequest` and translates the steps; it never sees token ids, tags or the engine. Each engine step becomes
at most one `TurnStep`: its tokens pass through the incremental detokenizer and the turn parser.

Decisions:
- Stop strings are looked for in the answer only. Inside the reasoning they would cut the model off before it answers, and
  inside a call they would break its arguments. So they stay on this side, and a match aborts the engine's request.
- `parallel_tool_calls: false` ends the turn after the first complete call.
- `finish_reason` says what was delivered: "tool_calls" if calls came and none was cut off, else what the engine says.
- A raw prompt has no roles, so nothing is read out of its reply: every letter is content.
- A consumer that stops iterating (its client left) aborts the engine's request, whatever it was doing.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import astuple, dataclass, field, replace
from typing import Final, Literal, Protocol

import msgspec

from openglm.engine.protocol import EngineInfo
from openglm.engine.request import EngineOutput, GenerationRequest, SamplingParams, TokenLogprobs, siblings
from openglm.engine.scheduling import SchedulingParams
from openglm.engine.stats import EngineStats
from openglm.engine.stop import StopStrings
from openglm.errors import ContextLengthError, EngineError, RequestError
from openglm.server.served_model import ServedModel
from openglm.text.bad_words import bad_word_ids
from openglm.text.detokenizer import IncrementalDetokenizer
from openglm.text.messages import Conversation
from openglm.text.template import StartState
from openglm.text.tokenizer import Tokenizer
from openglm.text.turn_parser import ContentDelta, Event, ReasoningDelta, ToolCallEnd, TurnParser

TurnFinish = Literal["stop", "length", "tool_calls", "abort"]


@dataclass(frozen=True)
class RawPrompt:
    """A prompt outside any conversation: text, or token ids as they are. In text nothing is a control token, unless
    `parse_special` says that its author wrote the tags on purpose."""

    text: str = ""
    ids: tuple[int, ...] | None = None
    parse_special: bool = False


@dataclass(frozen=True)
class TurnRequest:
    """What a client asks for. `params` holds everything for the engine except stop strings; its `max_tokens` is a wish."""

    prompt: Conversation | RawPrompt
    params: SamplingParams
    stop: tuple[str, ...] = ()
    continues: bool = False
    """Whether the reply goes on with the conversation's last turn, which is the model's, instead of beginning a new one."""
    keep_stop: bool = False
    """Whether the stop string that ended the answer is part of it."""
    skip_special: bool = True
    """Whether control tokens that the model writes are left out of a raw prompt's text."""
    client_id: str | None = None
    """What the client calls this request, so that it can be aborted from elsewhere."""
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


def sum_usages(usages: Iterable[TurnUsage]) -> TurnUsage:
    """Of answers to different prompts."""
    return TurnUsage(*(sum(counts) for counts in zip(*(astuple(usage) for usage in usages), strict=True)))


def total_usage(usages: Iterable[TurnUsage]) -> TurnUsage:
    """Of several answers to one prompt: the prompt counts once, as it is for the first of them."""
    everyone = tuple(usages)
    return replace(sum_usages(everyone), prompt_tokens=everyone[0].prompt_tokens, cached_tokens=everyone[0].cached_tokens)


@dataclass(frozen=True)
class TurnEnd:
    """How a turn ended."""

    finish_reason: TurnFinish
    usage: TurnUsage
    stop: str | int | None = None
    """The stop string or stop id that ended it."""
    num_calls: int = 0
    """Tool calls that were delivered whole, and those that were cut off."""
    num_cut_calls: int = 0
    num_repairs: int = 0
    """How often the model broke its format and was understood all the same."""


class TurnStep(msgspec.Struct, frozen=True, gc=False):
    """What one engine step added. Exactly the last step of a turn has an `end`."""

    events: tuple[Event, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    end: TurnEnd | None = None
    token_ids: tuple[int, ...] = ()
    """What was generated, also where it became no event."""
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    """In the step that completes a prompt whose scores were asked for: one entry per prompt token but the first."""
    stop_logprobs: TokenLogprobs | None = None
    """In the last step, of the stop id that ended the turn, where log probabilities were asked for."""

    @property
    def text(self) -> str:
        """The content that came with it."""
        return "".join([event.text for event in self.events if isinstance(event, ContentDelta)])


class OutputStream(Protocol):
    """The outputs of one request, the last with a finish reason. Closing it early aborts the request."""

    def divert(self, sink: Callable[[EngineOutput], bool]) -> None:
        """Offer outputs to `sink` as they arrive while somebody waits for the next; what it takes (True) is not delivered."""
        ...

    def __aiter__(self) -> OutputStream: ...

    async def __anext__(self) -> EngineOutput: ...

    async def aclose(self) -> None: ...  # noqa: D102


class StepWriter(Protocol):
    """The short way of a step to the client (`direct_line`)."""

    @property
    def ready(self) -> bool:
        """Whether everything before it is sent and a step can be written now."""
        ...

    def write(self, step: TurnStep) -> None:
        """Send a step."""
        ...


class Engine(Protocol):
    """What the server needs of the engine's client (`openglm.engine.client.AsyncEngineClient`)."""

    @property
    def state(self) -> str:
        """ "starting", "ready", "restarting" or "dead"."""
        ...

    @property
    def info(self) -> EngineInfo:
        """Facts about the engine; `EngineDeadError` before it was ready for the first time."""
        ...

    async def stats(self) -> EngineStats:
        """The engine's counters; `EngineDeadError` when it is down."""
        ...

    async def stop_thinking(self, request_id: str) -> bool:
        """Close the reasoning of a running request; whether there is one."""
        ...

    def generate(self, request: GenerationRequest) -> OutputStream:
        """Begin a request. Raises `RequestError`, `QueueFullError` or `EngineDeadError` at once."""
        ...

    async def abort(self, request_id: str) -> None:
        """End a request, whose stream then ends with finish reason "abort". Unknown ids are ignored."""
        ...

    async def flush_cache(self) -> None:
        """Forget every cached prefix. Raises `EngineDeadError` when the engine is down."""
        ...

    @property
    def num_restarts(self) -> int:
        """How often the engine's process had to be started again."""
        ...


def prepare(request: TurnRequest, model: ServedModel) -> PreparedTurn:
    """Render and tokenize; clamp the output to what the context leaves. Pure CPU work, safe in a thread."""
    prompt_ids, start = _prompt_ids(request, model)
    if not prompt_ids:
        raise RequestError("the prompt is empty; at least one token is needed", param="prompt")
    room = model.max_model_len - len(prompt_ids)
    if room < 1:
        raise ContextLengthError(
            f"This model's maximum context length is {model.max_model_len} tokens. However, your request has {len(prompt_ids)} "
            "input tokens. Please reduce the length of the input messages.",
            param="messages" if isinstance(request.prompt, Conversation) else "prompt",
            num_tokens=len(prompt_ids),
            limit=model.max_model_len,
        )
    wanted = request.params.max_tokens
    params = msgspec.structs.replace(request.params, max_tokens=room if wanted is None else min(wanted, room))
    if request.bad_words:
        params = msgspec.structs.replace(params, bad_words=bad_word_ids(request.bad_words, model.tokenizer))
    return PreparedTurn(request, prompt_ids, start, params)


def _prompt_ids(request: TurnRequest, model: ServedModel) -> tuple[list[int], StartState]:
    prompt = request.prompt
    if isinstance(prompt, Conversation):
        return model.prompt(prompt, continues=request.continues)
    if prompt.ids is not None:
        return list(prompt.ids), "content"
    encode = model.tokenizer.encode_raw if prompt.parse_special else model.tokenizer.encode_text
    return encode(prompt.text), "content"


def choices(turn: PreparedTurn, count: int) -> tuple[PreparedTurn, ...]:
    """`count` turns from one prompt, the first of which is `turn`; run them in this order."""
    requests = siblings(GenerationRequest(turn.id, turn.prompt_ids, turn.params), count)
    return (turn, *(replace(turn, id=request.id, params=request.params, follows=turn.id) for request in requests[1:]))


async def run(
    turn: PreparedTurn,
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    observe: Callable[[EngineOutput], None] = lambda _: None,
    direct: StepWriter | None = None,
) -> AsyncGenerator[TurnStep]:
    """Generate the turn. Raises the typed error the engine failed with; leaving early aborts the engine's request.

    `observe` is shown every output of the engine, also those of which nothing is visible. Steps that `direct` can write are not yielded.
    """
    reader = _TurnReader(turn, tokenizer)
    async with contextlib.aclosing(engine.generate(_engine_request(turn))) as outputs:
        short_way = _ShortWay(reader, observe, direct) if direct is not None else None
        if short_way is not None:
            outputs.divert(short_way.take)
        async for output in outputs:
            step: TurnStep | None
            if short_way is not None and short_way.over:
                step = short_way.last_step()
            else:
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


class _ShortWay:
    """Writes outputs in the middle of a turn as they arrive. A turn that ends, or fails, there is left to who pulls the outputs."""

    __slots__ = ("_end", "_observe", "_reader", "_writer")

    def __init__(self, reader: _TurnReader, observe: Callable[[EngineOutput], None], writer: StepWriter) -> None:
        self._reader = reader
        self._observe = observe
        self._writer = writer
        self._end: TurnStep | Exception | None = None

    @property
    def over(self) -> bool:
        """Whether the turn is over here, although the engine does not know yet: after a stop string, or a failure."""
        return self._end is not None

    def last_step(self) -> TurnStep:
        """The step that ended the turn; raises what it failed with."""
        assert self._end is not None
        if isinstance(self._end, Exception):
            raise self._end
        return self._end

    def take(self, output: EngineOutput) -> bool:
        """Whether the output needs nobody else. It is called by the engine's client, whom no failure of one turn may reach."""
        if output.finish_reason is not None or output.prompt_logprobs is not None or self._end is not None or not self._writer.ready:
            return False
        try:
            self._observe(output)
            step = self._reader.read(output)
            if step is None:
                return True
            if step.end is None:
                self._writer.write(step)
                return True
            self._end = step
        except Exception as error:
            self._end = error
        return False


class _TurnReader:
    """Turns the engine's outputs of one turn into steps."""

    __slots__ = (
        *("_detokenizer", "_keep_stop", "_num_calls", "_num_cut_calls", "_num_tokens", "_one_call", "_parser", "_raw", "_reasoning"),
        *("_stop", "_untold"),
    )

    def __init__(self, turn: PreparedTurn, tokenizer: Tokenizer) -> None:
        request, prompt = turn.request, turn.request.prompt
        self._raw = isinstance(prompt, RawPrompt)
        tools = () if isinstance(prompt, RawPrompt) else prompt.tools
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special=request.skip_special or not self._raw)
        self._parser = _Verbatim() if self._raw else TurnParser(turn.start, tools)
        self._stop = StopStrings(request.stop) if request.stop else None
        self._keep_stop = request.keep_stop
        self._one_call = not request.parallel_tool_calls
        self._reasoning = _ReasoningCounter(turn.start, tokenizer, calls=bool(tools))
        self._num_tokens = 0
        self._untold: list[int] = []  # generated, but in no step yet
        self._num_calls = self._num_cut_calls = 0

    def read(self, output: EngineOutput) -> TurnStep | None:
        """The step that an output amounts to; None when nothing became visible (half a character, half a tag)."""
        ids = output.token_ids
        self._num_tokens += len(ids)
        self._untold += ids
        self._reasoning.count(ids)
        events = self._parser.feed(self._detokenizer.push(ids))
        if len(events) == 1 and self._stop is None and type(events[0]) in _TEXT and _is_ordinary(output):
            told, self._untold = tuple(self._untold), []
            return TurnStep((events[0],), token_ids=told)
        if output.finish_reason is not None:
            events += self._parser.feed(self._detokenizer.finish())
            events += self._parser.finish(ended=output.finish_reason == "stop")
        events, cut = self._cut(events)
        if cut:
            end = self._end(output, "stop", self._stop.matched if self._stop is not None else None)
        elif output.finish_reason is not None:
            if self._stop is not None and (held := self._stop.finish()):
                events.append(ContentDelta(held))
            end = self._end(output, output.finish_reason, output.stop_reason)
        else:
            end = None
        if not events and end is None and not output.logprobs and not self._raw:
            return None
        scores = None if output.prompt_logprobs is None else tuple(output.prompt_logprobs)
        # After a stop string or a call nothing that came behind it counts.
        stop_logprobs = None if cut else output.stop_logprobs
        told, self._untold = tuple(self._untold), []
        return TurnStep(tuple(events), tuple(output.logprobs or ()), end, told, scores, stop_logprobs)

    def _cut(self, events: list[Event]) -> tuple[list[Event], bool]:
        """The events that may be delivered, and whether the turn is over with them."""
        if self._stop is None and ToolCallEnd not in map(type, events):
            return events, False
        delivered: list[Event] = []
        for event in events:
            if isinstance(event, ContentDelta) and self._stop is not None:
                text = self._stop.push(event.text)
                if self._keep_stop:
                    text += self._stop.matched or ""
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

    def _end(self, output: EngineOutput, reason: str, stop: str | int | None) -> TurnEnd:
        finish = "tool_calls" if self._num_calls and not self._num_cut_calls else _FINISH[reason]
        usage = TurnUsage(
            prompt_tokens=output.num_prompt_tokens,
            cached_tokens=output.num_cached_tokens,
            completion_tokens=self._num_tokens,
            reasoning_tokens=self._reasoning.num_tokens,
            draft_tokens=output.num_drafted,
            accepted_draft_tokens=output.num_accepted,
        )
        return TurnEnd(finish, usage, stop, self._num_calls, self._num_cut_calls, self._parser.num_repairs)


class _Verbatim:
    """Stands in for the turn parser where there is no turn to parse."""

    num_repairs = 0

    def feed(self, text: str) -> list[Event]:
        """The text as it is."""
        return [ContentDelta(text)] if text else []

    def finish(self, *, ended: bool) -> list[Event]:
        """Nothing was held back."""
        del ended
        return []


class _ReasoningCounter:
    """Counts the tokens of the think block, tags included, by id. Text cannot be counted: a step may hold several tokens."""

    __slots__ = ("_end_think", "_open", "_think", "_tool_call", "_undecided", "num_tokens")

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
        if self._open and len(ids) == 1 and ids[0] != self._end_think and ids[0] != self._tool_call:
            self.num_tokens += 1
            return
        for token in ids:
            if self._undecided and token == self._think:
                self._undecided, self._open = False, True
            if self._open and token == self._tool_call:  # a call ends reasoning that was never closed
                self._open = False
            self.num_tokens += self._open
            if token == self._end_think:
                self._open = self._undecided = False


def _is_ordinary(output: EngineOutput) -> bool:
    """Whether it adds tokens and nothing else: it is no end and has no scores."""
    return output.finish_reason is None and output.logprobs is None and output.prompt_logprobs is None


_TEXT: Final = frozenset({ContentDelta, ReasoningDelta})
_FINISH: Final[dict[str, TurnFinish]] = {"stop": "stop", "length": "length", "abort": "abort"}


def _failure(output: EngineOutput) -> Exception:
    failure = output.error
    if failure is None:
        return EngineError("the engine ended the request without saying why")
    return failure.to_error()
