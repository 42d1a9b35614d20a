"""The engine without a server: speed by number of streams and draft depth, what a step costs besides the model, the prefix cache.

Speed is that of a closed loop: `streams` requests are always under way, one that ends is replaced by the next, and the clock stops as soon
as there is none left to take its place. So prompts, drafts and endings come as they do in service. Prompts are held-out tasks of
`openglm.synth`, the same for every measurement.

All variants share one model in memory and take turns within a round; ratios are taken inside a round and the median over the rounds
counts, so that a machine with other things to do does not decide the comparison.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from openglm.bench.machine import Machine, this_machine
from openglm.bench.marks import Mark, mark
from openglm.config.engine import EngineConfig, resolve
from openglm.engine.core import EngineCore
from openglm.engine.loading import core_of, load_engine
from openglm.engine.loading import this_machine as engine_machine
from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.engine.stats import StepTimes
from openglm.errors import ConfigError, EngineError
from openglm.synth import generate
from openglm.text.messages import Conversation
from openglm.text.template import render
from openglm.text.tokenizer import Tokenizer

STREAMS = (1, 2, 4, 8, 16, 32)
OFF, ADAPTIVE = "off", "adaptive"
PREFIX_TOKENS = 2000
_TASKS = ("add", "sub", "add3", "compare", "tool_call", "tool_result", "no_tool", "chat", "extract_json")
_MAX_PROMPT_TOKENS = 320
_CONTEXT = 2560  # of the measured engines: the shared prefix and an answer
_TURN_ROOM = 64  # tokens of context for the second turn's question and answer


class Speed(msgspec.Struct, frozen=True):
    """Tokens per second of one variant at one number of streams, per round."""

    variant: str
    """"off", "adaptive", or a fixed number of drafts."""
    streams: int
    tokens_per_second: tuple[float, ...]

    @property
    def median(self) -> float:
        """The figure that counts."""
        return statistics.median(self.tokens_per_second)


class OfflineFigures(msgspec.Struct, frozen=True):
    """The report."""

    machine: Machine
    model: str
    speeds: tuple[Speed, ...]
    step_ms: dict[str, float]
    """Milliseconds per step by part, with automatic drafts at `step_streams` streams."""
    step_streams: int
    first_token_cold_ms: float
    first_token_warm_ms: float
    prefix_tokens: int
    marks: tuple[Mark, ...]
    rounds: int
    tokens_per_answer: int


def measure_offline(
    model: str | None,
    *,
    streams: Sequence[int] = STREAMS,
    depths: Sequence[int] = (1, 2, 3),
    rounds: int = 5,
    tokens: int = 128,
    prefix_tokens: int = PREFIX_TOKENS,
    threads: int | None = None,
    progress: Callable[[str], None],
) -> OfflineFigures:
    """Load `model` (None: the embedded one) and measure. `tokens` bounds each answer."""
    progress("loading the model")
    cores, tokenizer = _engines(model, depths, max_num_seqs=max(streams), threads=threads)
    prompts = _prompts(tokenizer, max(map(_num_prompts, streams)))
    found: dict[tuple[str, int], list[float]] = {}
    times: dict[int, list[StepTimes]] = {}
    for number in range(rounds):
        for count in streams:
            progress(f"round {number + 1} of {rounds}: {count} stream(s)")
            for variant, core in _in_turn(cores, number):
                rate, spent = _closed_loop(core, prompts[: _num_prompts(count)], count, tokens)
                found.setdefault((variant, count), []).append(rate)
                if variant == ADAPTIVE:
                    times.setdefault(count, []).append(spent)
    progress("second turn over a shared prefix")
    core = cores[ADAPTIVE]
    shared, question = _shared_prefix(tokenizer, min(prefix_tokens, core.config.max_model_len - _TURN_ROOM))
    turns = [_second_turn(core, shared, question) for _ in range(rounds)]
    speeds = tuple(Speed(variant, count, tuple(rates)) for (variant, count), rates in found.items())
    step_streams = 16 if 16 in times else max(times)
    cold, warm = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
    return OfflineFigures(
        machine=this_machine(),
        model=model or "glm-nano",
        speeds=speeds,
        step_ms={name: statistics.median(getattr(t, name) for t in times[step_streams]) * 1e3 for name in StepTimes.__struct_fields__},
        step_streams=step_streams,
        first_token_cold_ms=1e3 * cold,
        first_token_warm_ms=1e3 * warm,
        prefix_tokens=len(shared),
        marks=_marks(found, times.get(16), statistics.median(warm / cold for cold, warm in turns)),
        rounds=rounds,
        tokens_per_answer=tokens,
    )


def _engines(
    model: str | None, depths: Sequence[int], *, max_num_seqs: int, threads: int | None
) -> tuple[dict[str, EngineCore], Tokenizer]:
    """An engine per variant, over one model."""
    config = EngineConfig(
        model=model,
        max_model_len=_CONTEXT,
        max_num_seqs=max_num_seqs,
        kv_cache_tokens=max(_CONTEXT, 512 * max_num_seqs),
        threads=threads,
        owns_machine=True,
        seed=0,
    )
    first = load_engine(config)
    if first.tokenizer is None:
        raise ConfigError("glm bench offline needs a model with a tokenizer")
    cores = {ADAPTIVE: first.core}
    weights = first.core.runner.model
    for variant, depth in ((OFF, 0), *((str(depth), depth) for depth in depths)):
        if depth and not weights.has_mtp:
            continue
        resolved, _ = resolve(replace(config, num_speculative_tokens=depth), weights.config, engine_machine(config.device))
        cores[variant] = core_of(weights, resolved, first.tokenizer)
    return cores, first.tokenizer


def _in_turn(cores: dict[str, EngineCore], number: int) -> list[tuple[str, EngineCore]]:
    """The variants, forwards and backwards in turn, so that a drift of the machine favours none."""
    items = list(cores.items())
    return items if number % 2 == 0 else items[::-1]


def _num_prompts(streams: int) -> int:
    return 2 * streams + 4


def _prompts(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    rng = random.Random(0)
    prompts: list[list[int]] = []
    while len(prompts) < count:
        episode = generate(_TASKS[len(prompts) % len(_TASKS)], rng, "heldout")
        asked = replace(episode.conversation, messages=episode.conversation.messages[:-1])
        ids = tokenizer.encode_segments(render(asked, "glm-4.5").segments)
        if len(ids) <= _MAX_PROMPT_TOKENS:
            prompts.append(ids)
    return prompts


def _closed_loop(core: EngineCore, prompts: Sequence[list[int]], streams: int, tokens: int) -> tuple[float, StepTimes]:
    """Tokens per second with `streams` requests under way, and the mean time of a step by part."""
    core.reset_prefix_cache()
    params = SamplingParams(max_tokens=tokens, temperature=0)
    waiting = [GenerationRequest(f"bench-{i}", prompt, params) for i, prompt in enumerate(prompts)][::-1]
    started: list[str] = []

    def start() -> None:
        request = waiting.pop()
        started.append(request.id)
        core.add(request)

    for _ in range(streams):
        start()
    speaking: set[str] = set()
    while len(speaking) < streams:  # the first prompts are no part of the measurement, the ones that follow are
        for output in core.step():
            speaking.add(output.request_id)
            if output.finish_reason is not None and waiting:
                start()
    before, began, num_tokens = core.stats(), time.perf_counter(), 0
    while True:
        outputs = core.step()
        num_tokens += sum(len(output.token_ids) for output in outputs)
        ended = sum(output.finish_reason is not None for output in outputs)
        if ended > len(waiting):
            break
        for _ in range(ended):
            start()
    elapsed, after = time.perf_counter() - began, core.stats()
    for request_id in started:
        core.abort(request_id)
    if not num_tokens:
        raise EngineError("nothing was generated; is this a trained model?")
    steps = after.num_steps - before.num_steps
    spent = {name: (getattr(after.times, name) - getattr(before.times, name)) / steps for name in StepTimes.__struct_fields__}
    return num_tokens / elapsed, StepTimes(**spent)


def _shared_prefix(tokenizer: Tokenizer, length: int) -> tuple[list[int], list[int]]:
    """`length` tokens of a long conversation, and the question that follows them."""
    rng = random.Random(1)
    messages = [m for _ in range(length // 8) for m in generate("chat", rng, "heldout").conversation.messages]
    ids = tokenizer.encode_segments(render(Conversation(tuple(messages)), "glm-4.5", add_generation_prompt=False).segments)
    if len(ids) < length:
        raise EngineError("the synthetic conversation is shorter than the prefix")
    return ids[:length], tokenizer.encode_raw("<|user|>\nWhat is 128 + 345, and why?<|assistant|>")


def _second_turn(core: EngineCore, shared: list[int], question: list[int]) -> tuple[float, float]:
    """Seconds to the first token of prefix and question: without any cache, and after the prefix was processed as a turn of its own."""
    core.reset_prefix_cache()
    cold = _first_token(core, [*shared, *question])
    core.reset_prefix_cache()
    _first_token(core, shared)
    return cold, _first_token(core, [*shared, *question])


def _first_token(core: EngineCore, prompt: list[int]) -> float:
    core.add(GenerationRequest("bench", prompt, SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)))
    began = time.perf_counter()
    while core.has_work:
        core.step()
    return time.perf_counter() - began


def _marks(found: dict[tuple[str, int], list[float]], at_16: Sequence[StepTimes] | None, warm_share: float) -> tuple[Mark, ...]:
    def ratio(above: tuple[str, int], below: tuple[str, int]) -> float | None:
        if above not in found or below not in found:
            return None
        return statistics.median(a / b for a, b in zip(found[above], found[below], strict=True))

    overhead = None
    if at_16 is not None:
        overhead = statistics.median((t.schedule + t.prepare + t.output) / sum(msgspec.structs.astuple(t)) for t in at_16)
    gains = {count: ratio((ADAPTIVE, count), (OFF, count)) for _, count in found}
    worst = min((gain for gain in gains.values() if gain is not None), default=None)
    return (
        mark("tokens/s of 16 streams over one", ratio((ADAPTIVE, 16), (ADAPTIVE, 1)), at_least=6.0),
        mark("schedule + prepare + output, of a step at 16 streams", overhead, at_most=0.10),
        mark("automatic drafts over none, one stream", gains.get(1), at_least=1.3),
        mark("automatic drafts over none, the worst of all numbers of streams", worst, at_least=0.97),
        mark("first token of a second turn, warm over cold", warm_share, at_most=0.15),
    )
