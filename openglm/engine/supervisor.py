"""One life of the engine process, seen from the parent: start it, talk to it, notice when it dies or hangs, clean up.

The process is spawned (never forked from a process that has loaded torch). Its socket lies in a private directory (mode
0700) that is removed with it. It ends when it is told to, when it dies, or when it makes no progress for too long while
requests run: then its stacks are dumped to standard error and it is killed. What to do next - restart, tell the clients - is
the business of `client`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from openglm.config.engine import EngineConfig
from openglm.engine import process, protocol
from openglm.errors import CheckpointError, ConfigError, EngineDeadError

logger = logging.getLogger(__name__)

_STACK_DUMP_S = 0.5
_EXIT_S = 5.0


@dataclass(frozen=True)
class Supervision:
    """How patient the parent is. Times are seconds."""

    phase_timeout_s: float = 1800.0
    """A starting engine may stay this long in one phase (loading the weights of a large model takes minutes)."""
    hang_timeout_s: float = 300.0
    """With requests running, an engine that says nothing for this long is taken for dead."""
    backoff_s: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
    """Wait before the 1st, 2nd, ... restart in a row; after the last one the engine stays dead. An engine that finished a
    request was no failed start: the row begins anew after it."""


class EngineChild:
    """A running engine process and the connection to it."""

    def __init__(
        self, spawned: asyncio.subprocess.Process, directory: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = spawned
        self._directory = directory
        self._reader = reader
        self._writer = writer
        self._last_heard = asyncio.get_running_loop().time()

    @classmethod
    async def spawn(cls, config: EngineConfig, *, timeout_s: float) -> EngineChild:
        """Start the process and connect; `EngineDeadError` when it ends before it listens."""
        directory = Path(tempfile.mkdtemp(prefix="openglm-"))
        socket_path = directory / "engine.sock"
        spawned: asyncio.subprocess.Process | None = None
        try:
            spawned = await asyncio.create_subprocess_exec(
                sys.executable, "-m", process.__name__, str(socket_path), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            assert spawned.stdin is not None and spawned.stdout is not None
            spawned.stdin.write(json.dumps(dataclasses.asdict(config)).encode() + b"\n")
            async with asyncio.timeout(timeout_s):
                line = await spawned.stdout.readline()
            if line != process.LISTENING:
                raise EngineDeadError(f"the engine process ended while it started (exit code {await spawned.wait()})")
            reader, writer = await asyncio.open_unix_connection(str(socket_path), limit=protocol.MAX_FRAME_BYTES)
        except BaseException as error:  # also on cancellation: no process and no directory may stay behind
            if spawned is not None and spawned.returncode is None:
                spawned.kill()
                await spawned.wait()
            shutil.rmtree(directory, ignore_errors=True)
            if isinstance(error, (OSError, TimeoutError)):
                raise EngineDeadError(f"the engine process could not be started: {type(error).__name__} {error}") from error
            raise
        return cls(spawned, directory, reader, writer)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: protocol.ToEngine) -> None:
        """Queue a message; a connection that broke is noticed by `receive`."""
        self._writer.write(protocol.frame(message))

    async def receive(self) -> protocol.FromEngine:
        """The next message; `EngineDeadError` when there will be none."""
        try:
            header = await self._reader.readexactly(protocol.HEADER_BYTES)
            payload = await self._reader.readexactly(protocol.frame_length(header))
        except (asyncio.IncompleteReadError, OSError, protocol.FrameError) as error:
            raise EngineDeadError(f"the engine process ended ({await self._how_it_ended()})") from error
        self._last_heard = asyncio.get_running_loop().time()
        message: protocol.FromEngine = protocol.from_engine.decode(payload)
        return message

    async def wait_ready(self, on_phase: Callable[[str], None], *, phase_timeout_s: float) -> protocol.EngineInfo:
        """Follow the start. A wrong configuration or checkpoint raises its own error, everything else `EngineDeadError`."""
        phase = "starting"
        while True:
            try:
                async with asyncio.timeout(phase_timeout_s):
                    message = await self.receive()
            except TimeoutError:
                raise EngineDeadError(f"the engine process stayed in phase {phase!r} for over {phase_timeout_s:g} s") from None
            match message:
                case protocol.Phase(name):
                    phase = name
                    on_phase(name)
                case protocol.Ready(info):
                    return info
                case protocol.Failed(kind, text):
                    raise _START_ERRORS.get(kind, EngineDeadError)(text)

    async def watch(self, is_busy: Callable[[], bool], *, hang_timeout_s: float) -> None:
        """Kill the process when it is busy and silent for too long; runs until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(hang_timeout_s / 4)
            if not is_busy():
                self._last_heard = loop.time()
            elif loop.time() - self._last_heard > hang_timeout_s:
                logger.error("the engine process made no progress for %g s; its stacks follow, then it is killed", hang_timeout_s)
                self._signal(signal.SIGUSR1)
                await asyncio.sleep(_STACK_DUMP_S)
                self._signal(signal.SIGKILL)
                return

    async def close(self) -> None:
        """Let the process exit, kill it if it does not, and remove its directory. Safe to call at any time."""
        assert self._process.stdin is not None
        self._process.stdin.close()  # the process takes this as the end of its parent
        self._writer.close()
        try:
            async with asyncio.timeout(_EXIT_S):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    async def _how_it_ended(self) -> str:
        try:
            async with asyncio.timeout(1.0):
                code = await self._process.wait()
        except TimeoutError:
            return "it closed the connection"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


_START_ERRORS = {"ConfigError": ConfigError, "CheckpointError": CheckpointError}
