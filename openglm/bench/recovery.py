"""What clients see when the engine process is killed: `kill -9` under running streams, again and again, against a real `glm serve`.

Each round opens the streams, waits until every one of them has received text, kills the engine process, and notes for every client when
its terminal error event came. Meanwhile the port is asked all the time whether the server lives and is ready. A round ends when an
ordinary request has been answered again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import msgspec
import psutil

from openglm.bench.machine import Machine, this_machine
from openglm.bench.server import running_server
from openglm.errors import EngineError

TOLD_WITHIN_S = 1.0
READY_WITHIN_S = 10.0
_ROUND_TIMEOUT_S = 300.0
_POLL_S = 0.02
_ENGINE_MODULE = "openglm.engine.process"


class Round(msgspec.Struct, frozen=True):
    """One kill. Seconds are counted from it."""

    last_told_s: float
    """When the last client had its terminal error event."""
    num_told: int
    """Clients whose stream ended with a typed error event."""
    ready_s: float
    """When `/ready` said so again."""
    answered_s: float
    """When an ordinary request had been answered."""
    port_open: bool
    """Whether `/health` answered 200 all the time."""


class RecoveryFigures(msgspec.Struct, frozen=True):
    """The report."""

    machine: Machine
    command: str
    streams: int
    rounds: tuple[Round, ...]

    @property
    def num_good(self) -> int:
        """Rounds in which every client was told within a second, the server was ready within ten, and the port stayed open."""
        return sum(
            r.num_told == self.streams and r.last_told_s <= TOLD_WITHIN_S and r.ready_s <= READY_WITHIN_S and r.port_open
            for r in self.rounds
        )


def measure_recovery(flags: Sequence[str], *, streams: int = 32, rounds: int = 20, progress: Callable[[str], None]) -> RecoveryFigures:
    """Start `glm serve` with `flags` and room for all streams, and kill its engine `rounds` times."""
    flags = [*flags, "--max-num-seqs", str(streams)]
    with running_server(flags, progress) as (url, _, server):
        done = []
        for number in range(rounds):
            done.append(asyncio.run(_round(url, server, streams)))
            last = done[-1]
            progress(
                f"kill {number + 1} of {rounds}: {last.num_told} of {streams} clients told within {last.last_told_s:.2f} s, "
                f"ready after {last.ready_s:.2f} s"
            )
        return RecoveryFigures(this_machine(), " ".join(["glm serve", *flags]), streams, tuple(done))


async def _round(url: str, server: psutil.Process, streams: int) -> Round:
    limits = httpx.Limits(max_connections=None)
    async with asyncio.timeout(_ROUND_TIMEOUT_S), httpx.AsyncClient(timeout=_ROUND_TIMEOUT_S, limits=limits) as client:
        speaking = [asyncio.Event() for _ in range(streams)]
        readers = [asyncio.create_task(_read(client, url, i, event)) for i, event in enumerate(speaking)]
        everyone = asyncio.gather(*(event.wait() for event in speaking))
        watched: list[asyncio.Future[Any]] = [everyone, *readers]
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if not everyone.done():
            everyone.cancel()
            raise EngineError("a stream ended before the engine was killed")
        _engine(server).kill()
        killed = time.monotonic()
        ready_at, port_open = await _wait_ready(client, url)
        response = await client.post(f"{url}/v1/chat/completions", json=_body("Hello", max_tokens=2))
        if response.status_code != 200:
            raise EngineError(f"the server was ready and answered {response.status_code}")
        answered_at = time.monotonic()
        told_at = await asyncio.gather(*readers)
        told = [at - killed for at in told_at if at is not None]
        return Round(max(told, default=0.0), len(told), ready_at - killed, answered_at - killed, port_open)


async def _read(client: httpx.AsyncClient, url: str, number: int, speaking: asyncio.Event) -> float | None:
    """When the stream's error event came; None when it ended without one."""
    body = {**_body(f"Count from {number} without end.", max_tokens=None), "ignore_eos": True, "stream": True}
    told: float | None = None
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                told = time.monotonic()
            elif any(choice["delta"].get("content") or choice["delta"].get("reasoning_content") for choice in event["choices"]):
                speaking.set()
    return told


async def _wait_ready(client: httpx.AsyncClient, url: str) -> tuple[float, bool]:
    """When the server is ready after having been unready, and whether its port answered all the time."""
    port_open, was_down = True, False
    while True:
        try:
            health = await client.get(f"{url}/health")
            ready = await client.get(f"{url}/ready")
        except httpx.TransportError:
            port_open = False
        else:
            port_open = port_open and health.status_code == 200
            was_down = was_down or ready.status_code != 200
            if was_down and ready.status_code == 200:
                return time.monotonic(), port_open
        await asyncio.sleep(_POLL_S)


def _engine(server: psutil.Process) -> psutil.Process:
    found = [child for child in server.children(recursive=True) if _ENGINE_MODULE in child.cmdline()]
    if len(found) != 1:
        raise EngineError(f"the server has {len(found)} engine processes; expected one")
    return found[0]


def _body(prompt: str, *, max_tokens: int | None) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0}
