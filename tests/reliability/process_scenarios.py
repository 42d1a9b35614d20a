"""The engine's process is killed under a server whose process id is known: clients are told, the port stays, service comes back."""

from __future__ import annotations

import asyncio
import json
import time

import psutil

from .outcome import Outcome
from .wire import Target, events, read_head


async def engine_death(
    target: Target, *, server_pid: int, repeats: int = 20, streams: int = 32, told_s: float = 1.0, ready_s: float = 30.0
) -> Outcome:
    """kill -9 of the server's child while streams run."""
    outcome = Outcome("engine death")
    told: list[float] = []
    back: list[float] = []
    body = {"model": target.model, "messages": [{"role": "user", "content": "Go on"}], "ignore_eos": True, "stream": True}

    async def stream(running: asyncio.Semaphore) -> tuple[float, list[str]]:
        async with target.connection() as (reader, writer):
            writer.write(target.request("/v1/chat/completions", body))
            head = await read_head(reader)
            if head.status != 200:
                running.release()
                return time.monotonic(), [f"status {head.status}"]
            seen: list[str] = []
            async for data in events(reader, head):
                if data:
                    if not seen:
                        running.release()
                    seen.append(data)
            return time.monotonic(), seen[-2:]

    for _ in range(repeats):
        # A server may give up on an engine that dies again and again without having answered anybody.
        short = await target.post("/v1/chat/completions", {**body, "stream": False, "max_tokens": 1}, patience_s=30)
        outcome.require(short.status == 200, f"a request between two deaths is answered {short.status}")
        running = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(stream(running)) for _ in range(streams)]
        for _ in range(min(streams, 4)):  # as many as surely run at once; others may wait for a place
            await asyncio.wait_for(running.acquire(), 30)
        for child in psutil.Process(server_pid).children():
            child.kill()
        killed = time.monotonic()
        for task in tasks:
            try:
                when, last = await asyncio.wait_for(task, 30)
            except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
                outcome.fail(f"a stream was not told of the engine's death: {type(error).__name__}")
                continue
            told.append(when - killed)
            if not last[0].startswith("status 503"):
                ended_before = any(json.loads(data).get("choices") for data in last[:-1] if data != "[DONE]")
                proper = last[-1] == "[DONE]" and (ended_before or "error" in json.loads(last[0]))
                outcome.require(proper, f"a stream ended with {last}")
        while (await target.get("/ready")).status != 200:
            if time.monotonic() - killed > ready_s:
                outcome.fail(f"the server is not ready {ready_s:g} s after its engine died")
                return outcome
            await asyncio.sleep(0.02)
        back.append(time.monotonic() - killed)
    outcome.require(max(told, default=0.0) <= told_s, f"a client waited {max(told, default=0.0):.2f} s to be told")
    outcome.figures |= {"kills": repeats, "told max s": round(max(told, default=0), 3), "ready max s": round(max(back, default=0), 2)}
    return outcome


async def sockets(target: Target, *, server_pid: int) -> Outcome:
    """Neither the server nor its children listen, or talk, beyond this machine."""
    outcome = Outcome("sockets")
    del target
    server = psutil.Process(server_pid)
    connections = [each for process in (server, *server.children(recursive=True)) for each in process.net_connections("inet")]
    for each in connections:
        for address in (each.laddr, each.raddr):
            if address and address.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                outcome.fail(f"a socket at {address.ip}:{address.port} ({each.status})")
    outcome.figures["sockets"] = len(connections)
    outcome.require(bool(connections), "no socket was found at all")
    return outcome
