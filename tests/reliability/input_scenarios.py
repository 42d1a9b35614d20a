"""Bad input: whatever arrives, the answer is quick, typed and tells nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time

from .corpus import HISTORY, TOOL, spoiled_request
from .outcome import Outcome, percentile
from .wire import Hang, Target, read_answer

CONTROL_STRINGS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink"),
    *("<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>", "<|begin_of_image|>", "<|image|>", "<|begin_of_video|>"),
)


async def malformed(target: Target, *, count: int = 10_000, seed: int = 1, concurrency: int = 16) -> Outcome:
    """Spoiled requests on all routes: no 5xx, no hang, every error typed."""
    outcome = Outcome("malformed")
    numbers = iter(range(count))
    slowest = 0.0

    async def sender() -> None:
        nonlocal slowest
        for number in numbers:
            where, data = spoiled_request(random.Random(seed * 1_000_003 + number), target)
            began = time.monotonic()
            try:
                answer = await target.send(data, patience_s=3 * target.patience_s)
            except Hang as hang:
                outcome.fail(f"request {number} ({where}) hangs: {hang}")
                continue
            slowest = max(slowest, time.monotonic() - began)
            # A head may be cut so that the server rightly waits for more, or so that nothing can be answered.
            if answer.status == 0 and "(head)" not in where:
                outcome.fail(f"request {number} ({where}) got no answer")
            if answer.status:
                outcome.judge(answer, f"request {number} ({where})")

    await asyncio.gather(*[sender() for _ in range(concurrency)])
    outcome.figures |= {"requests": count, "seed": seed, "slowest s": round(slowest, 3)}
    outcome.figures["statuses"] = " ".join(f"{status}:{number}" for status, number in sorted(outcome.statuses.items()))
    return outcome


async def control_tokens(target: Target, *, strings: int = len(CONTROL_STRINGS)) -> Outcome:
    """Text that spells control tokens stays text in every field: a control token would count as one token, the text takes several."""
    outcome = Outcome("control tokens")
    checked = 0

    async def prompt_tokens(body: dict) -> int | None:
        answer = await target.post("/v1/chat/completions", {"model": target.model, "max_tokens": 1, **body}, patience_s=30)
        outcome.judge(answer, "a conversation with control strings")
        if answer.status != 200:
            outcome.fail(f"a conversation with control strings is answered {answer.status}: {answer.body[:200]!r}")
            return None
        return json.loads(answer.body)["usage"]["prompt_tokens"]

    for (place, build), encode in itertools.product(_PLACES.items(), (False, True)):
        # A plain word next to which the string is put, so that no template drops the field for being empty.
        bare = await prompt_tokens(build("a"))
        for text in CONTROL_STRINGS[:strings]:
            if (place, text) in _READ_BY_TEMPLATES:
                continue
            with_text = await prompt_tokens(build(f"a{text if not encode else ' '.join((text, text))}"))
            if bare is None or with_text is None:
                continue
            checked += 1
            least = 2 if not encode else 4
            outcome.require(with_text - bare >= least, f"{text!r} in {place} adds {with_text - bare} token(s): it became a control token")
    outcome.figures["checked"] = checked
    return outcome


def _tool(text: str) -> dict:
    function = {**TOOL["function"], "description": text}
    return {"tools": [{"type": "function", "function": function}], "messages": [{"role": "user", "content": "Hi"}]}


def _history(index: int, **fields: object) -> dict:
    messages = [dict(message) for message in HISTORY]
    messages[index] |= fields
    return {"messages": messages, "tools": [TOOL]}


_PLACES = {
    "user text": lambda text: {"messages": [{"role": "user", "content": text}]},
    "a text part": lambda text: {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]},
    "the system message": lambda text: {"messages": [{"role": "system", "content": text}, {"role": "user", "content": "Hi"}]},
    "an earlier answer": lambda text: {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}, {"role": "user", "content": "Go on"}]
    },
    "a tool result": lambda text: _history(3, content=text),
    "a tool description": _tool,
}


_READ_BY_TEMPLATES = {("an earlier answer", "</think>")}
"""Templates of this family take what stands before it for the answer's reasoning, and leave that out of the prompt."""


async def large_bodies(target: Target, *, megabytes: int = 200, repeats: int = 20, limit_ms: float = 50.0) -> Outcome:
    """A huge body, declared and in chunks, is refused early while /health stays quick."""
    outcome = Outcome("large bodies")
    size = megabytes << 20
    piece = b" " * (1 << 20)

    async def declared() -> int:
        sent = 0
        async with target.connection() as (reader, writer):
            head = target.request("/v1/chat/completions", b"", headers={"content-length": str(size)})
            writer.write(head)
            answered = asyncio.ensure_future(reader.readuntil(b"\r\n"))
            while sent < size and not answered.done():
                sent += await _write(writer, piece)
            status = await _first_line(answered, target)
            outcome.require(b" 413 " in status, f"a declared body of {megabytes} MB is answered {status!r}")
        return sent

    async def chunked() -> int:
        sent = 0
        async with target.connection() as (reader, writer):
            headers = {"transfer-encoding": "chunked", "content-type": "application/json"}
            writer.write(target.request("/v1/chat/completions", None, method="POST", headers=headers))
            answered = asyncio.ensure_future(reader.readuntil(b"\r\n"))
            while sent < size and not answered.done():
                sent += await _write(writer, b"%x\r\n%b\r\n" % (len(piece), piece))
            status = await _first_line(answered, target)
            outcome.require(b" 413 " in status, f"a chunked body of {megabytes} MB is answered {status!r}")
        return sent

    async with WatchedHealth(target, outcome, limit_ms=limit_ms):
        sent = [(await declared(), await chunked()) for _ in range(repeats)]
    outcome.figures |= {
        "declared, MB sent": round(max(a for a, _ in sent) / 1e6, 1),
        "chunked, MB sent": round(max(b for _, b in sent) / 1e6, 1),
    }
    return outcome


async def slow_clients(
    target: Target,
    *,
    heads: int = 500,
    bodies: int = 200,
    head_s: float = 10.0,
    body_s: float = 30.0,
    grace_s: float = 5.0,
    limit_ms: float = 50.0,
) -> Outcome:
    """Clients that send a byte now and then are closed in time while others are served. `head_s`, `body_s`: the server's limits."""
    outcome = Outcome("slow clients")
    half_body = target.request("/v1/chat/completions", b"{" + b" " * 1000)[:-900]

    async def dribble(data: bytes, limit_s: float, drip: bytes) -> None:
        began = time.monotonic()
        async with target.connection() as (reader, writer):
            writer.write(data)
            ended = asyncio.ensure_future(reader.read(64))
            while not ended.done():
                if time.monotonic() - began > limit_s + grace_s:
                    outcome.fail(f"a slow client still holds its connection {grace_s:g} s after the limit of {limit_s:g} s")
                    ended.cancel()
                    return
                await asyncio.wait((ended,), timeout=min(1.0, limit_s / 10))
                await _write(writer, drip)

    async def served() -> None:
        for _ in range(20):
            body = {"model": target.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
            answer = await target.post("/v1/chat/completions", body)
            outcome.require(answer.status == 200, f"a normal client is answered {answer.status} beside slow ones")

    async with WatchedHealth(target, outcome, limit_ms=limit_ms):
        slow = [dribble(b"POST /v1/chat/completions HTTP/1.1\r\nx: ", head_s, b"a") for _ in range(heads)]
        slow += [dribble(half_body, body_s, b" ") for _ in range(bodies)]
        await asyncio.gather(served(), *slow)
    outcome.figures |= {"half heads": heads, "half bodies": bodies}
    return outcome


class WatchedHealth:
    """Asks /health all the while; its p99 must stay below `limit_ms`."""

    def __init__(self, target: Target, outcome: Outcome, *, limit_ms: float) -> None:
        self._target, self._outcome, self._limit_ms = target, outcome, limit_ms
        self._latencies: list[float] = []

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        async with self._target.connection() as (reader, writer):
            while True:
                began = time.monotonic()
                writer.write(self._target.request("/health"))
                answer = await read_answer(reader)
                self._latencies.append(1000 * (time.monotonic() - began))
                self._outcome.require(answer.status == 200, f"/health is {answer.status}")
                await asyncio.sleep(0.005)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))
        p99 = percentile(self._latencies, 0.99)
        self._outcome.figures |= {"/health p99 ms": round(p99, 1), "/health asked": len(self._latencies)}
        self._outcome.require(bool(self._latencies), "/health was never answered")
        self._outcome.require(p99 < self._limit_ms, f"/health p99 is {p99:.0f} ms, over {self._limit_ms:g}")


async def _first_line(answered: asyncio.Future[bytes], target: Target) -> bytes:
    try:
        return await asyncio.wait_for(answered, target.patience_s)
    except (TimeoutError, ConnectionError, asyncio.IncompleteReadError) as error:
        return f"nothing ({type(error).__name__})".encode()


async def _write(writer: asyncio.StreamWriter, data: bytes) -> int:
    """Bytes that were written; none once the other side has closed."""
    try:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0)  # an answer is to be seen as soon as it is there, not when the kernel takes no more
    except ConnectionError:
        await asyncio.sleep(0.01)
        return 0
    return len(data)
