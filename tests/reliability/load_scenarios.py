"""Load and clients that leave: everything ends properly, nothing is kept, overload costs no goodput."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Awaitable
from typing import Any

from .outcome import Outcome, gauges, percentile
from .wire import Answer, Hang, Target, events, read_head

_ENDLESS = {"messages": [{"role": "user", "content": "Go on"}], "ignore_eos": True}


async def aborts(target: Target, *, count: int = 10_000, seed: int = 2, concurrency: int = 24) -> Outcome:
    """Clients leave at random points: inside the request, queued, in prefill, while tokens come. Nothing stays behind."""
    outcome = Outcome("aborts")
    numbers = iter(range(count))
    began = await gauges(target)
    left = {"inside the request": 0, "before an answer": 0, "inside the answer": 0, "after it": 0}

    async def sender() -> None:
        for number in numbers:
            left[await one(random.Random(seed * 1_000_003 + number))] += 1

    async def one(choose: random.Random) -> str:
        text = "word " * choose.choice((1, 20, 200))
        body = {"model": target.model, "messages": [{"role": "user", "content": text}], "ignore_eos": True, "stream": choose.random() < 0.7}
        data = target.request("/v1/chat/completions", body)
        async with target.connection() as (reader, writer):
            if choose.random() < 0.15:
                writer.write(data[: choose.randrange(len(data))])
                await asyncio.sleep(choose.random() * 0.02)
                return "inside the request"
            writer.write(data)
            if choose.random() < 0.35:
                await asyncio.sleep(choose.random() * 0.05)
                return "before an answer"
            try:
                async with asyncio.timeout(4):
                    head = await read_head(reader)
                    if head.status == 200 and body["stream"]:
                        stream = events(reader, head)
                        for _ in range(choose.randrange(1, 40)):
                            await anext(stream)
                        await stream.aclose()
                        return "inside the answer"
                    return "after it"
            except (TimeoutError, StopAsyncIteration, asyncio.IncompleteReadError, ConnectionError):
                return "before an answer"

    await asyncio.gather(*[sender() for _ in range(concurrency)])
    outcome.figures |= {"requests": count, "seed": seed} | {f"left {where}": number for where, number in left.items()}
    ended = await gauges(target)
    name = "vllm:request_success_total"
    if name in ended:
        outcome.figures["turns counted"] = ended[name] - began.get(name, 0)
    return outcome


async def streams(target: Target, *, count: int = 1000, tokens: int = 16, patience_s: float = 300.0) -> Outcome:
    """Many streams at once all end with a finish reason and [DONE]."""
    outcome = Outcome("streams")
    body = {**_ENDLESS, "model": target.model, "stream": True, "max_tokens": tokens}
    first: list[float] = []
    finished = 0
    began = time.monotonic()

    async def one(number: int) -> None:
        nonlocal finished
        try:
            async with asyncio.timeout(patience_s), target.connection() as (reader, writer):
                writer.write(target.request("/v1/chat/completions", body, headers={"x-request-id": "the-same-for-all"}))
                head = await read_head(reader)
                if head.status != 200:
                    outcome.fail(f"stream {number} is answered {head.status}")
                    return
                first.append(time.monotonic() - began)
                seen = [data async for data in events(reader, head) if data]
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            outcome.fail(f"stream {number} broke off: {type(error).__name__}")
            return
        outcome.require(seen[-1:] == ["[DONE]"], f"stream {number} ended without [DONE]")
        reasons = [
            choice["finish_reason"] for data in seen[:-1] for choice in json.loads(data).get("choices", []) if choice["finish_reason"]
        ]
        outcome.require(reasons == ["length"], f"stream {number} has the finish reasons {reasons}")
        finished += reasons == ["length"]

    await asyncio.gather(*map(one, range(count)))
    seconds = time.monotonic() - began
    outcome.figures |= {"streams": count, "ended properly": finished, "seconds": round(seconds, 1)}
    outcome.figures |= {"first byte p99 s": round(percentile(first, 0.99), 2), "tokens/s": round(finished * tokens / seconds)}
    return outcome


async def overload(
    target: Target,
    *,
    seconds: float = 30.0,
    rounds: int = 6,
    factor: float = 10.0,
    concurrency: int = 32,
    tokens: int = 256,
    floor: float = 0.95,
) -> Outcome:
    """Many times more requests than can be served: what is accepted keeps `floor` of the goodput at saturation, the rest is told when to
    come back. Saturation and overload take turns, each pair gives a ratio, and the median of the ratios counts: what else the machine does
    for a while hits one pair."""
    outcome = Outcome("overload")
    data = target.request("/v1/chat/completions", {**_ENDLESS, "model": target.model, "max_tokens": tokens})
    part_s = seconds / rounds
    answered: list[tuple[float, Answer, float]] = []  # when it ended, what it was, how long it took

    async def one() -> None:
        began = time.monotonic()
        try:
            answer = await target.send(data, patience_s=10 * seconds + 60)
        except (Hang, OSError) as error:
            outcome.fail(f"a request got no answer: {type(error).__name__}")
            return
        answered.append((time.monotonic(), answer, time.monotonic() - began))

    async def saturate() -> None:
        until = time.monotonic() + part_s

        async def client() -> None:
            while time.monotonic() < until:
                await one()

        await asyncio.gather(*[client() for _ in range(concurrency)])

    async def flood(rate: float) -> int:
        began, sent = time.monotonic(), []
        while (elapsed := time.monotonic() - began) < part_s:
            while len(sent) < rate * elapsed:
                sent.append(asyncio.create_task(one()))
            await asyncio.sleep(min(0.01, 1 / rate))
        await asyncio.gather(*sent)
        return len(sent)

    async def goodput(load: Awaitable[Any]) -> tuple[int, float]:
        """Answers, and seconds until the last of them: the tail, in which the queue empties, is the same for both kinds of load."""
        answered.clear()
        began = time.monotonic()
        await load
        return sum(answer.status == 200 for _, answer, _ in answered), time.monotonic() - began

    offered = 0
    pairs: list[tuple[float, float]] = []  # answers per second at saturation, and under overload after it
    shed: list[tuple[Answer, float]] = []
    for _ in range(rounds):
        count, took = await goodput(saturate())
        if not count:
            outcome.fail("nothing was served at all")
            return outcome
        peak = count / took
        count, took = await goodput(flood(factor * peak))
        pairs.append((peak, count / took))
        offered += len(answered)
        for _, answer, _ in answered:
            outcome.require(answer.status != 0, "a connection was closed without an answer")
            outcome.judge(answer, "under overload")
        shed += [(answer, took) for _, answer, took in answered if answer.status in (429, 503)]
    outcome.require(all("retry-after" in answer.headers for answer, _ in shed), "a request was turned away without Retry-After")
    outcome.require(bool(shed), "nothing was turned away: this was no overload")
    kept = statistics.median(under_load / peak for peak, under_load in pairs)
    outcome.require(kept >= floor, f"goodput falls to {100 * kept:.0f} % of that at saturation")
    outcome.figures |= {"pairs /s": " ".join(f"{peak:.1f}>{under_load:.1f}" for peak, under_load in pairs), "kept %": round(100 * kept, 1)}
    outcome.figures |= {"offered": offered, "shed": len(shed)}
    outcome.figures["shed p99 ms"] = round(1000 * percentile([took for _, took in shed], 0.99), 1)
    return outcome


async def slow_readers(target: Target, *, count: int = 100, tokens: int = 64) -> Outcome:
    """Clients that ask for streams and never read them do not slow down those that do."""
    outcome = Outcome("slow readers")
    body = {**_ENDLESS, "model": target.model, "max_tokens": tokens, "stream": True, "logprobs": True, "top_logprobs": 20}

    async def never_reads(stop: asyncio.Event) -> None:
        async with target.connection() as (_, writer):
            writer.transport.pause_reading()
            writer.write(target.request("/v1/chat/completions", body))
            await stop.wait()

    async def reads() -> float:
        began = time.monotonic()
        answer = await target.post("/v1/chat/completions", {**_ENDLESS, "model": target.model, "max_tokens": 4}, patience_s=60)
        outcome.require(answer.status == 200, f"a reader is answered {answer.status} beside slow ones")
        return time.monotonic() - began

    stop = asyncio.Event()
    slow = [asyncio.create_task(never_reads(stop)) for _ in range(count)]
    took = [await reads() for _ in range(10)]
    stop.set()
    await asyncio.gather(*slow)
    outcome.figures |= {"slow readers": count, "others' latency s": round(percentile(took, 0.5), 3)}
    return outcome
