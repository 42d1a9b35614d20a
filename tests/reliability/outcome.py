"""What a scenario finds, and what must hold after every one of them."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass, field

from .wire import Answer, Target

# Memory addresses, tracebacks and install paths have no business in an answer.
LEAKS = re.compile(rb"0x[0-9a-f]{12}|Traceback|site-packages|\.py\b.{0,20}line \d")
_FIRST_FAILURES = 10


@dataclass
class Outcome:
    """Figures and failures of one scenario; without failures it passed."""

    name: str
    figures: dict[str, float | int | str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    num_failures: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def passed(self) -> bool:
        return not self.num_failures

    def fail(self, text: str) -> None:
        """Something that must not happen did; the first few are kept in words."""
        self.num_failures += 1
        if len(self.failures) < _FIRST_FAILURES:
            self.failures.append(text)

    def require(self, holds: bool, text: str) -> None:
        """Fail unless something holds."""
        if not holds:
            self.fail(text)

    def judge(self, answer: Answer, what: str) -> None:
        """What holds for every answer: no 5xx but a refusal that says when to come back, errors that clients can read, no leaks."""
        self.statuses[answer.status] += 1
        if LEAKS.search(answer.body):
            self.fail(f"{what}: the answer leaks internals: {answer.body[:200]!r}")
        if answer.status < 400:
            return
        if answer.status >= 500 and not (answer.status == 503 and "retry-after" in answer.headers):
            self.fail(f"{what}: status {answer.status}: {answer.body[:200]!r}")
        try:
            answer.error()
        except (ValueError, AttributeError):
            self.fail(f"{what}: status {answer.status} without a typed error: {answer.body[:200]!r}")


def percentile(values: list[float], share: float) -> float:
    """The value below which this share lies; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def gauges(target: Target) -> dict[str, float]:
    """Unlabelled sums of the server's metrics by name and `state`; empty where a server has none."""
    answer = await target.get("/metrics")
    found: dict[str, float] = {}
    if answer.status != 200:
        return found
    for line in answer.body.decode("utf-8", "replace").splitlines():
        match = re.match(r"([a-zA-Z_:]\w*(?::\w+)*)(\{[^}]*\})? (\S+)", line)
        if match:
            state = re.search(r'state="(\w+)"', match[2] or "")
            name = match[1] + (f".{state[1]}" if state else "")
            found[name] = found.get(name, 0.0) + float(match[3])
    return found


async def check_afterwards(target: Target, outcome: Outcome) -> None:
    """The server answers, nothing runs, no page of the KV cache is held."""
    deadline = time.monotonic() + 30
    while True:
        seen = await gauges(target)
        running = seen.get("vllm:num_requests_running", 0) + seen.get("vllm:num_requests_waiting", 0)
        held = seen.get("openglm:kv_pages.held", seen.get("vllm:kv_cache_usage_perc", 0))
        if not running and not held:
            break
        if time.monotonic() > deadline:
            outcome.fail(f"{running:g} requests and {held:g} of the KV cache are still held 30 s later")
            break
        await asyncio.sleep(0.05)
    if seen:
        outcome.figures["leaked KV"] = held
        outcome.require(not seen.get("openglm:kv_accounting_errors_total"), "the page accounting was wrong")
    health = await target.get("/health")
    outcome.require(health.status == 200, f"/health is {health.status} afterwards")
    body = {"model": target.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    answer = await target.post("/v1/chat/completions", body)
    outcome.require(answer.status == 200, f"a plain request is answered {answer.status} afterwards")
