"""One life of the engine process, seen from the parent: start it, talk to it, notice when it dies or hangs, clean up.

The process is spawned (never forked from a process that has loaded torch). Its socket lies in a private directory (mode
0700) that is removed with it. It ends when it is told to, when it dies, or when it makes no progress for too long: then its stacks
are dumped to standard error and it is killed. What to do next - restart, tell the clients - is the business of `client`.

**The watchdog.** What "too long" means depends on what the engine is doing: each phase of the start, and afterwards being idle,
processing prompts and decoding have budgets of their own. A running engine reads its messages between two steps. So one that
has been silent for a quarter of its budget is asked something, and one that does not answer within the budget hangs: stuck in a
step, stopped, or never coming back from a read. An idle engine is asked too; its hang is found before the next user meets it. Time
in which this process itself did not run is not held against the engine.
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
from typing import Final, Literal

import msgspec

from openglm.config.engine import EngineConfig
from openglm.engine import process, protocol
from openglm.errors import CheckpointError, ConfigError, EngineDeadError

logger = logging.getLogger(__name__)

_STACK_DUMP_S = 0.5
_EXIT_S = 5.0
_STALL_S = 0.25
_SHORT_PHASES: Final = ("starting", "importing torch", "reading the configuration")
_PING: Final = 0
"""The number of the watchdog's question; nobody waits for its answer."""

Activity = Literal["idle", "prefill", "decode"]
"""What a running engine has to do, as far as its client knows."""


@dataclass(frozen=True)
class Supervision:
    """How patient the parent is. Times are seconds."""

    start_timeout_s: float = 300.0
    """Until the process listens, until torch is imported, and until the configuration is read: each."""
    load_timeout_s: float = 1800.0
    """For every other phase of the start: the weights of a large model take minutes."""
    prefill_timeout_s: float = 600.0
    """For an answer while the prompt of any request is still being processed, or waits for that: one chunk may take long."""
    decode_timeout_s: float = 120.0
    """For an answer while every request decodes."""
    idle_timeout_s: float = 60.0
    """For an answer while nothing runs."""
    backoff_s: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
    """Wait before the 1st, 2nd, ... restart in a row; after the last one the engine stays dead. An engine that finished a
    request was no failed start: the row begins anew after it."""

    def phase_timeout_s(self, phase: str) -> float:
        """How long a phase of the start may take."""
        return self.start_timeout_s if phase in _SHORT_PHASES else self.load_timeout_s

    def answer_timeout_s(self, activity: Activity) -> float:
        """How long an engine that does this may leave a question unanswered."""
        match activity:
            case "idle":
                return self.idle_timeout_s
            case "prefill":
                return self.prefill_timeout_s
            case "decode":
                return self.decode_timeout_s

    @property
    def tick_s(self) -> float:
        """How often the watchdog looks."""
        return min(1.0, min(self.prefill_timeout_s, self.decode_timeout_s, self.idle_timeout_s) / 8)


class EngineChild:
    """A running engine process and the connection to it."""

    def __init__(
        self, spawned: asyncio.subprocess.Process, directory: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = spawned
        self._directory = directory
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._last_heard = self._loop.time()
        self._asked_at: float | None = None  # when the watchdog asked, if nothing was heard since
        self._why_killed: str | None = None

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
            raise EngineDeadError(self._why_killed or f"the engine process ended ({await self._how_it_ended()})") from error
        self._last_heard, self._asked_at = self._loop.time(), None
        try:
            message: protocol.FromEngine = protocol.from_engine.decode(payload)
        except msgspec.DecodeError as error:
            raise EngineDeadError(f"the engine process sent what is no message ({error})") from error
        return message

    async def wait_ready(self, on_phase: Callable[[str], None], *, patience: Supervision) -> protocol.EngineInfo:
        """Follow the start. A wrong configuration or checkpoint raises its own error, everything else `EngineDeadError`."""
        phase = "starting"
        while True:
            try:
                async with asyncio.timeout(patience.phase_timeout_s(phase)):
                    message = await self.receive()
            except TimeoutError:
                why = f"the engine process stayed in phase {phase!r} for over {patience.phase_timeout_s(phase):g} s"
                await self._kill(why)
                raise EngineDeadError(why) from None
            match message:
                case protocol.Phase(name):
                    phase = name
                    on_phase(name)
                case protocol.Ready(info):
                    return info
                case protocol.Failed(kind, text):
                    raise _START_ERRORS.get(kind, EngineDeadError)(text)

    async def watch(self, activity: Callable[[], Activity], *, patience: Supervision) -> None:
        """Kill the process when it leaves a question unanswered for too long; runs until cancelled."""
        loop, tick = self._loop, patience.tick_s
        allowed = 0.0  # the longest budget since the question, so that a request that ends does not shorten a step under way
        while True:
            before = loop.time()
            await asyncio.sleep(tick)
            now = loop.time()
            if now - before > 2 * tick + _STALL_S:  # this process was held up, and the engine perhaps with it: it gets its time again
                if self._asked_at is not None:
                    self._asked_at = now
                continue
            doing = activity()
            budget = patience.answer_timeout_s(doing)
            if self._asked_at is None:
                allowed = budget
                if now - self._last_heard > budget / 4:
                    self.send(protocol.AskStats(_PING))
                    self._asked_at = now
                continue
            allowed = max(allowed, budget)
            if now - self._asked_at > allowed:
                await self._kill(f"the engine process made no progress for {now - self._last_heard:.1f} s ({doing})")
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

    async def _kill(self, why: str) -> None:
        """End a process that hangs, after it has shown where."""
        self._why_killed = why
        logger.error("%s; its stacks follow, then it is killed", why)
        self._signal(signal.SIGUSR1)
        await asyncio.sleep(_STACK_DUMP_S)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


_START_ERRORS = {"ConfigError": ConfigError, "CheckpointError": CheckpointError}
