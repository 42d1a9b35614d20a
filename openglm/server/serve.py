"""The life of a server process: open the port, load, serve, drain, exit.

The port opens before the model is loaded, so that watchers see a live process. The first SIGTERM or SIGINT drains: `/ready`
turns 503, new work is refused, running answers finish for up to `drain_timeout_s`. A second signal, or the end of that
time, ends what still runs with an error event. Exit code 0 means that nobody was cut off; 1 that somebody was, or that
the engine stayed dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

from openglm.config.engine import PAGE_SIZE, EngineConfig
from openglm.config.server import ServerConfig
from openglm.engine.client import AsyncEngineClient
from openglm.server.app import build_app
from openglm.server.banner import banner
from openglm.server.http_server import FAREWELL_S, admin_listener, http_server, listen, raise_file_limit
from openglm.server.served_model import ServedModel
from openglm.server.service import Service

logger = logging.getLogger(__name__)

_DEAD_CHECK_S: Final = 0.5


def run_server(
    config: ServerConfig,
    engine: EngineConfig,
    model: ServedModel,
    *,
    announce: Callable[[str], None],
) -> int:
    """Serve until a signal; returns the exit code. `announce` shows a line while the model loads and the banner when it is ready.

    Raises `ConfigError` when the address cannot be had, and what the engine raises when it refuses the model.
    """
    import uvloop

    raise_file_limit(config)
    with (
        contextlib.closing(listen(config)) as listener,
        admin_listener(config) as admin,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_Process(config, engine, model, announce).live(listener, admin))


class _Process:
    """One server from its port to its exit code."""

    def __init__(self, config: ServerConfig, engine: EngineConfig, model: ServedModel, announce: Callable[[str], None]) -> None:
        self._config = config
        self._announce = announce
        self._client = AsyncEngineClient(engine)
        self._service = Service(config, model, self._client)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def live(self, listener: socket.socket, admin: list[socket.socket]) -> int:
        """From the open port to the exit code. `admin` may hold the socket of the control routes."""
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        http = http_server(build_app(self._service), self._config, self._service.census)
        serving = asyncio.create_task(http.serve(sockets=[listener, *admin]))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            starting = asyncio.create_task(self._start(listener.getsockname()[1], began))
            await asyncio.wait((starting, stopping, serving), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()  # raises why the engine cannot start
                dead = asyncio.create_task(self._engine_dead())
                await asyncio.wait((stopping, serving, dead), return_when=asyncio.FIRST_COMPLETED)
                dead.cancel()
            else:
                starting.cancel()
            clean = await self._drain()
        finally:
            self._service.stop()
            await self._client.close()
            self._service.tracing.close()
            http.should_exit = True
            stopping.cancel()
            await serving
        return 0 if clean else 1

    async def _start(self, port: int, began: float) -> None:
        self._announce(f"loading {self._service.model.name} ...")
        info = await self._client.start()
        stats = await self._client.stats()
        self._service.engine_loaded(
            max_model_len=info.max_model_len, max_num_seqs=info.max_num_seqs, kv_tokens=stats.pages_total * PAGE_SIZE
        )
        gc.collect()
        gc.freeze()  # what loading made stays; a collection that looks at all of it again would stop every stream
        seconds = time.monotonic() - began
        self._announce(
            banner(
                self._config,
                self._service.model,
                info,
                port=port,
                num_pages=stats.pages_total,
                seconds=seconds,
            )
        )

    async def _engine_dead(self) -> None:
        while self._client.state != "dead":
            await asyncio.sleep(_DEAD_CHECK_S)

    async def _drain(self) -> bool:
        """Let running answers finish; whether all could."""
        if self._client.state == "dead":
            logger.error("the engine is dead and stays so: %s", self._client.last_error)
            return False
        traffic = self._service.traffic
        self._service.stop()
        if traffic.num_in_flight:
            # A warning, because whoever pressed Ctrl-C would take the wait for a hang.
            logger.warning(
                "stopping: %d running answer(s) may finish, for %g s at most; a second signal or Ctrl-C ends them now",
                traffic.num_in_flight,
                self._config.drain_timeout_s,
            )
        idle = asyncio.create_task(traffic.wait_idle())
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait((idle, hurry), timeout=self._config.drain_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if idle.done():
            return True
        logger.warning("%d requests are cut off", traffic.num_in_flight)
        await self._client.close()  # ends every request with an error output, which becomes the last event of its stream
        await asyncio.wait((idle,), timeout=FAREWELL_S)
        idle.cancel()
        return False

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()
