"""How a server feels to its first user: time until ready, first token, speed of one and of many streams, memory.

A real `glm serve` is started as a process and asked over HTTP, so every figure includes everything. Each timed request has a prompt
of its own, so nothing comes out of the prefix cache, and generates a fixed number of tokens (`ignore_eos`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import httpx
import msgspec
import psutil

from openglm.bench.machine import Machine, this_machine
from openglm.bench.stream_client import chat_body, chat_request, stream_all
from openglm.errors import EngineError

_READY_TIMEOUT_S = 600.0


class Timing(msgspec.Struct, frozen=True):
    """One streamed answer."""

    first_token_s: float
    total_s: float
    num_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first, over the time after the first."""
        return (self.num_tokens - 1) / max(1e-9, self.total_s - self.first_token_s)


class ServerFigures(msgspec.Struct, frozen=True):
    """The report; seconds, tokens per second and bytes."""

    machine: Machine
    command: str
    ready_s: float
    first_token_ms: float
    single_stream_tokens_per_second: float
    streams: int
    total_tokens_per_second: float
    rss_bytes: int
    tokens_per_answer: int
    rounds: int


def measure_server(
    flags: Sequence[str], *, streams: int = 8, rounds: int = 5, tokens: int = 128, progress: Callable[[str], None]
) -> ServerFigures:
    """Start `glm serve` with `flags`, measure, stop it. Figures are medians over `rounds`."""
    with running_server(flags, progress) as (url, ready_s, server):
        progress(f"ready after {ready_s:.2f} s; warming up")
        asyncio.run(_answer(url, "Hello", tokens))
        progress(f"one stream, {rounds} rounds of {tokens} tokens")
        single = [asyncio.run(_answer(url, prompt_text(i), tokens)) for i in range(rounds)]
        progress(f"{streams} streams at once")
        requests = [chat_request(url, prompt_text(1000 + i), tokens) for i in range(streams)]
        began = time.monotonic()
        together = stream_all(url, requests)  # by a client that leaves the server its processor
        total_rate = sum(client.num_tokens for client in together) / (time.monotonic() - began)
        family = [server, *server.children(recursive=True)]
        return ServerFigures(
            machine=this_machine(),
            command=" ".join(["glm serve", *flags]),
            ready_s=ready_s,
            first_token_ms=1e3 * statistics.median(t.first_token_s for t in single),
            single_stream_tokens_per_second=statistics.median(t.tokens_per_second for t in single),
            streams=streams,
            total_tokens_per_second=total_rate,
            rss_bytes=sum(process.memory_info().rss for process in family),
            tokens_per_answer=tokens,
            rounds=rounds,
        )


@contextlib.contextmanager
def running_server(flags: Sequence[str], progress: Callable[[str], None]) -> Iterator[tuple[str, float, psutil.Process]]:
    """`glm serve` on a free port, ended with the block: its URL, the seconds until it was ready, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    began = time.monotonic()
    command = [sys.executable, "-m", "openglm.cli.main", "serve", *flags, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    progress(f"starting {' '.join(['glm serve', *flags])}")
    try:
        while not _is_ready(url):
            if server.poll() is not None:
                raise EngineError(f"glm serve ended with exit code {server.returncode} before it was ready")
            if time.monotonic() - began > _READY_TIMEOUT_S:
                raise EngineError(f"glm serve was not ready after {_READY_TIMEOUT_S:.0f} s")
            time.sleep(0.02)
        yield url, time.monotonic() - began, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=1.0).status_code == 200
    except httpx.TransportError:
        return False


async def _answer(url: str, prompt: str, tokens: int) -> Timing:
    began = time.monotonic()
    first = last = None
    num_tokens = 0
    async with (
        httpx.AsyncClient(timeout=_READY_TIMEOUT_S) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=chat_body(prompt, tokens)) as response,
    ):
        if response.status_code != 200:
            raise EngineError(f"the server answered {response.status_code}: {(await response.aread()).decode()[:300]}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if any(choice["delta"].get("content") or choice["delta"].get("reasoning_content") for choice in chunk["choices"]):
                last = time.monotonic()
                first = first or last
            if chunk.get("usage"):
                num_tokens = chunk["usage"]["completion_tokens"]
    if first is None or last is None or num_tokens < 2:
        raise EngineError("the server streamed no text; is this a trained model?")
    return Timing(first - began, last - began, num_tokens)


def prompt_text(number: int) -> str:
    """A prompt that begins like no other, so that only the template's first tokens can be cached."""
    return f"{number * 7919 % 10007} plus {number * 104729 % 9973}: think about it and explain every step of the sum."
