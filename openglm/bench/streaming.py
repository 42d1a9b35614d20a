"""What streaming costs: the server's processor time per event, how evenly tokens arrive, and what HTTP takes from the engine's speed.

All from one run of a real `glm serve`, asked by `stream_client` over loopback.

**The answers** of cost and jitter are digits, by a bias: every token is a piece of text and becomes an event. Of a model's own text some
tokens do not - white space waits for what follows it, tags and the end of a turn are never text - so there a gap of two or three steps
tells of the text and not of the server. The jitter of glm-nano's own text stands beside the mark.

**Cost.** The processor time of the server process (not of the engine's, which is another) while all streams run, over the events that
arrived in that time. It includes the kernel's work for the sockets, on loopback that of the receiving side as well.

**Jitter.** For each stream, over the time in which all streams run: how far each gap between two of its events is from the median of its
gaps. The mark is the 99th percentile over all gaps of all streams. What the engine itself does unevenly is part of it, as it is for a
client. Beside it stands the spread of a step: how long after the first stream's event that of the last arrives.

**HTTP against offline.** The same prompts through the same engine configuration, once over HTTP and once as `EngineCore` in this
process, in turn; tokens over the time from the first request to the last token. The median of the ratios counts.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import string
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil

from openglm.bench.machine import Machine, this_machine
from openglm.bench.marks import Mark, mark
from openglm.bench.server import prompt_text, running_server
from openglm.bench.stream_client import StreamClient, chat_request, stream_all
from openglm.config.engine import EngineConfig
from openglm.engine.core import EngineCore
from openglm.engine.loading import load_engine
from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.errors import EngineError

_SAME_STEP_S = 0.5  # of a step: arrivals closer together than this part of the median gap belong to one step


class StreamingFigures(msgspec.Struct, frozen=True):
    """The report."""

    machine: Machine
    command: str
    streams: int
    tokens_per_answer: int
    rounds: int
    server_us_per_event: float
    server_us_per_token: float
    client_us_per_event: float
    """What asking cost, to compare: it shares the machine."""
    events_per_second: float
    tokens_per_event: float
    gap_ms: float
    """Median gap between two events of a stream."""
    jitter_p99_ms: float
    text_jitter_p99_ms: float
    """The same where the model writes what it likes."""
    spread_p99_ms: float
    compared_streams: int
    http_tokens_per_second: float
    offline_tokens_per_second: float
    marks: tuple[Mark, ...]


class _Cost(msgspec.Struct, frozen=True):
    """One round with all streams."""

    server_s: float
    client_s: float
    seconds: float
    events: int
    tokens_per_event: float
    gaps: list[list[float]]
    spreads: list[float]


def measure_streaming(
    flags: Sequence[str],
    engine: EngineConfig,
    *,
    streams: int = 64,
    compared: int = 16,
    rounds: int = 3,
    tokens: int = 128,
    progress: Callable[[str], None],
) -> StreamingFigures:
    """Start `glm serve` with `flags`, and an engine as `engine` says beside it, which is to be what the flags mean."""
    room = max(streams, compared)
    flags = [*flags, "--max-num-seqs", str(room)]
    progress("loading the engine to compare with")
    core = load_engine(replace(engine, max_num_seqs=room, max_queued_requests=room)).core
    gc.collect()
    gc.freeze()  # a collection in the middle would be taken for the server's jitter
    with running_server(flags, progress) as (url, _, server):
        costs, ratios, rates = [], [], []
        digits = _token_ids(url, {"prompt": string.digits})
        _stream_round(url, server, streams, 8, number=0, only=digits)
        for number in range(1, rounds + 1):
            progress(f"round {number} of {rounds}: {streams} streams; then {compared} over HTTP and offline")
            costs.append(_stream_round(url, server, streams, tokens, number, only=digits))
            rates.append(_compared_round(url, core, compared, tokens, number))
            ratios.append(rates[-1][0] / rates[-1][1])
        own_text = _stream_round(url, server, streams, tokens, rounds + 1)
    gaps = [gap for cost in costs for each in cost.gaps for gap in each]
    per_event = statistics.median(1e6 * cost.server_s / cost.events for cost in costs)
    tokens_per_event = statistics.median(cost.tokens_per_event for cost in costs)
    jitter_ms = _jitter_p99_ms(costs)
    return StreamingFigures(
        machine=this_machine(),
        command=" ".join(["glm serve", *flags]),
        streams=streams,
        tokens_per_answer=tokens,
        rounds=rounds,
        server_us_per_event=per_event,
        server_us_per_token=per_event / tokens_per_event,
        client_us_per_event=statistics.median(1e6 * cost.client_s / cost.events for cost in costs),
        events_per_second=statistics.median(cost.events / cost.seconds for cost in costs),
        tokens_per_event=tokens_per_event,
        gap_ms=1e3 * statistics.median(gaps),
        jitter_p99_ms=jitter_ms,
        text_jitter_p99_ms=_jitter_p99_ms([own_text]),
        spread_p99_ms=1e3 * _percentile([spread for cost in costs for spread in cost.spreads], 0.99),
        compared_streams=compared,
        http_tokens_per_second=statistics.median(http for http, _ in rates),
        offline_tokens_per_second=statistics.median(offline for _, offline in rates),
        marks=(
            mark(f"server CPU per event at {streams} streams, us", per_event, at_most=15),
            mark(f"jitter p99 at {streams} streams, ms", jitter_ms, at_most=5),
            mark(f"HTTP over offline at {compared} streams", statistics.median(ratios), at_least=0.9),
        ),
    )


def _stream_round(url: str, server: psutil.Process, streams: int, tokens: int, number: int, *, only: Sequence[int] = ()) -> _Cost:
    """All streams at once; what is measured lies between the last first text and the first end."""
    readings: list[tuple[float, float, float]] = []

    def read() -> None:
        readings.append((time.perf_counter(), _cpu_seconds(server.pid), time.process_time()))

    requests = [chat_request(url, prompt_text(1000 * number + i), tokens, only=only) for i in range(streams)]
    clients = stream_all(url, requests, on_speaking=read, on_end=read)
    (began, server_began, client_began), (ended, server_ended, client_ended) = readings
    windows = [[at for at in client.arrivals if began <= at <= ended] for client in clients]
    gaps = [[b - a for a, b in itertools.pairwise(window)] for window in windows]
    every_gap = [gap for each in gaps for gap in each]
    if not every_gap:
        raise EngineError("the streams never ran all at once; ask for more tokens")
    return _Cost(
        server_s=server_ended - server_began,
        client_s=client_ended - client_began,
        seconds=ended - began,
        events=sum(map(len, windows)),
        tokens_per_event=sum(client.num_tokens for client in clients) / sum(len(client.arrivals) for client in clients),
        gaps=gaps,
        spreads=_spreads(sorted(at for window in windows for at in window), _SAME_STEP_S * statistics.median(every_gap)),
    )


def _jitter_p99_ms(rounds: Sequence[_Cost]) -> float:
    """Over all streams of these rounds: how far a gap is from the median of its stream's, in milliseconds."""
    jitters = [abs(gap - statistics.median(gaps)) for each in rounds for gaps in each.gaps if gaps for gap in gaps]
    return 1e3 * _percentile(jitters, 0.99)


def _spreads(arrivals: Sequence[float], pause: float) -> list[float]:
    """Seconds from the first to the last event of each burst; bursts have at least `pause` seconds between them."""
    spreads, first = [], arrivals[0]
    for before, at in itertools.pairwise(arrivals):
        if at - before >= pause:
            spreads.append(before - first)
            first = at
    return [*spreads, arrivals[-1] - first]


def _compared_round(url: str, core: EngineCore, streams: int, tokens: int, number: int) -> tuple[float, float]:
    """Tokens per second over HTTP and offline."""
    prompts = [prompt_text(1000 * number + 500 + i) for i in range(streams)]
    requests = [chat_request(url, prompt, tokens) for prompt in prompts]
    began = time.perf_counter()
    clients: list[StreamClient] = stream_all(url, requests)
    http = sum(client.num_tokens for client in clients) / (time.perf_counter() - began)
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0)
    ids = [_token_ids(url, {"messages": [{"role": "user", "content": prompt}]}) for prompt in prompts]
    began, num_tokens = time.perf_counter(), 0
    for i, prompt_ids in enumerate(ids):
        core.add(GenerationRequest(f"bench-{number}-{i}", prompt_ids, params))
    while core.has_work:
        num_tokens += sum(len(output.token_ids) for output in core.step())
    return http, num_tokens / (time.perf_counter() - began)


def _token_ids(url: str, body: Mapping[str, Any]) -> list[int]:
    answer = httpx.post(f"{url}/tokenize", json=body)
    ids: list[int] = answer.raise_for_status().json()["tokens"]
    return ids


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process, all threads, to a scheduler's tick; `/proc/PID/stat` counts in hundredths of a second."""
    nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
