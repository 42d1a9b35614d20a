"""What a worker is asked to measure, and how it answers: one JSON object in on standard input, one per line out on standard output.

Standard library only, because workers run in the environments of other engines.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

PREFILL_CHUNK = 2048  # tokens that every engine may take at once
DECODE_STEPS = 24
_PREFILL_RUNS = 3  # the first also pays for memory that the system has to clear, in every engine
_DECODE_SECONDS = 8.0  # steps of a slow engine stop here
_FEWEST_STEPS = 6


@dataclass(frozen=True)
class Workload:
    """One figure: a prompt of `tokens` ("prefill"), or steps of `batch` sequences behind `tokens` of context ("decode")."""

    kind: str
    tokens: int
    batch: int = 1

    @property
    def name(self) -> str:
        """How reports and the file of results call it."""
        return f"prefill {self.tokens}" if self.kind == "prefill" else f"decode batch {self.batch} context {self.tokens}"


@dataclass(frozen=True)
class Job:
    """What one worker process does."""

    model: str
    format: str
    threads: int
    num_tokens: int
    workloads: tuple[Workload, ...]

    def encode(self) -> bytes:
        """For a worker's standard input."""
        return json.dumps(asdict(self)).encode()

    @property
    def most_context(self) -> int:
        """Positions that the longest workload needs."""
        return max((workload.tokens + (DECODE_STEPS if workload.kind == "decode" else 0) for workload in self.workloads), default=1)

    @property
    def most_batch(self) -> int:
        """Sequences of the widest workload."""
        return max((workload.batch for workload in self.workloads), default=1)


def read_job() -> Job:
    """The job of this process."""
    data = json.load(sys.stdin)
    data["workloads"] = tuple(Workload(**workload) for workload in data["workloads"])
    return Job(**data)


def answer(**fields: Any) -> None:
    """One line out."""
    print(json.dumps(fields), flush=True)


def random_tokens(count: int, num_tokens: int, seed: int) -> list[int]:
    """The same tokens for every engine."""
    rng = random.Random(seed)
    return [rng.randrange(num_tokens) for _ in range(count)]


def measure(
    job: Job,
    prefill: Callable[[Sequence[int]], object],
    start_decoding: Callable[[Sequence[int], int], Callable[[int, Sequence[int]], object]],
    beside: Callable[[Workload], dict[str, float]] = lambda workload: {},
) -> None:
    """Run every workload and answer with its seconds per run or step; one that fails says why and the others go on.

    `prefill(prompt)` computes the logits behind a prompt, with nothing cached. `start_decoding(prompt, batch)` puts the prompt before
    `batch` sequences and returns `step(index, tokens)`, which computes the logits behind one more token of each. All sequences have the
    prompt in common and differ from then on, so they hit different experts. `beside(workload)` is asked once one is through: what else
    the answer says.
    """
    prefill(random_tokens(16, job.num_tokens, 0))  # lazy initialisation is not measured
    for workload in job.workloads:
        prompt = random_tokens(workload.tokens, job.num_tokens, workload.tokens)
        try:
            times = _time(job, workload, prompt, prefill, start_decoding)
        except Exception as error:  # whatever an engine raises is its result here
            answer(workload=workload.name, error=f"{type(error).__name__}: {error}"[:500])
            continue
        answer(workload=workload.name, seconds=statistics.median(times), runs=len(times), **beside(workload))


def _time(
    job: Job,
    workload: Workload,
    prompt: Sequence[int],
    prefill: Callable[[Sequence[int]], object],
    start_decoding: Callable[[Sequence[int], int], Callable[[int, Sequence[int]], object]],
) -> list[float]:
    times: list[float] = []
    if workload.kind == "prefill":
        for _ in range(_PREFILL_RUNS):
            started = time.perf_counter()
            prefill(prompt)
            times.append(time.perf_counter() - started)
        return times
    step = start_decoding(prompt, workload.batch)
    ends = time.perf_counter() + _DECODE_SECONDS
    for index in range(DECODE_STEPS):
        tokens = random_tokens(workload.batch, job.num_tokens, 1_000_003 * workload.batch + index)
        started = time.perf_counter()
        step(index, tokens)
        times.append(time.perf_counter() - started)
        if index >= _FEWEST_STEPS and time.perf_counter() > ends:
            break
    return times[1:]


def chunks(tokens: Sequence[int]) -> Iterable[tuple[int, Sequence[int]]]:
    """(first position, tokens) of each piece of a prompt."""
    for first in range(0, len(tokens), PREFILL_CHUNK):
        yield first, tokens[first : first + PREFILL_CHUNK]
