"""The engine process: `python -m openglm.engine.process SOCKET`, started by `supervisor`, never by hand.

Its life: read the configuration (one JSON line on standard input), listen on the Unix socket and say so on standard output,
load the model while telling connected clients what it is doing, then alternate between reading messages and `EngineCore.step`.

Standard input stays open as long as the parent lives; its end means the parent is gone, and the process exits at once, whatever it
is doing. Torch is imported only after the socket is up, so a client never waits for a connection.

Each connection has its own requests: they are aborted when it closes, and nobody else's ids can collide with them. A message that is
not understood is refused; a stream that lost step costs its connection, never the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from openglm.config.engine import EngineConfig
from openglm.engine import protocol
from openglm.engine.request import EngineOutput, FailureCode, RequestFailure
from openglm.errors import CheckpointError, ConfigError, ContextLengthError, OpenGLMError, QueueFullError, RequestError
from openglm.log import set_up_logging

if TYPE_CHECKING:
    from openglm.engine.core import EngineCore

logger = logging.getLogger(__name__)

OnPhase = Callable[[str], None]
Loader = Callable[[EngineConfig, OnPhase], tuple["EngineCore", protocol.EngineInfo]]

LISTENING = b"listening\n"
SEND_TIMEOUT_S = 30.0
PROGRESS_EVERY_S = 1.0
_RECEIVE_BYTES = 1 << 20


class Connection:
    """One client: its socket, its unfinished bytes, and the requests it started."""

    def __init__(self, number: int, peer: socket.socket) -> None:
        self.number = number
        self.socket = peer
        self.frames = protocol.FrameBuffer()
        self.requests: set[str] = set()
        self.last_sent = time.monotonic()

    def inner_id(self, request_id: str) -> str:
        """The id inside the engine, where ids of all connections meet."""
        return f"{self.number}/{request_id}"


class EngineProcess:
    """Connections on one side, the engine on the other."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._connections: dict[int, Connection] = {}
        self._num_connections = 0
        self._core: EngineCore | None = None
        self._greeting: list[protocol.FromEngine] = []  # what a client hears on connecting

    def load(
        self, config: EngineConfig, load: Callable[[EngineConfig, Callable[[str], None]], tuple[EngineCore, protocol.EngineInfo]]
    ) -> None:
        """Load the engine while clients connect; on failure they are told why before the error leaves."""
        try:
            self._core, info = load(config, self._enter_phase)
        except Exception as error:
            known = isinstance(error, (ConfigError, CheckpointError))
            message = str(error) if known else f"{type(error).__name__}: {error}"
            self._announce(protocol.Failed(type(error).__name__ if known else "EngineError", message))
            raise
        self._announce(protocol.Ready(info))

    def serve(self) -> NoReturn:
        """Work until the process ends."""
        core = self._core
        assert core is not None
        gc.collect()
        gc.freeze()  # what loading made stays; a collection that looks at all of it again would stop every stream
        while True:
            self._poll(None if not core.has_work else 0.0)
            if core.has_work:
                try:
                    outputs = core.step()
                except Exception as error:  # of the batch as a whole: the state is unknown, only a new process helps
                    self._announce(protocol.Failed("EngineError", f"a step of the engine failed ({type(error).__name__}: {error})"[:500]))
                    raise
                self._deliver(outputs)
                self._show_progress(core)

    def _enter_phase(self, name: str) -> None:
        self._poll(0.0)
        self._announce(protocol.Phase(name))

    def _announce(self, message: protocol.FromEngine) -> None:
        self._greeting = [message]
        self._poll(0.0)
        for connection in list(self._connections.values()):
            self._send(connection, message)

    def _poll(self, timeout: float | None) -> None:
        """Accept connections and handle everything that has arrived."""
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            else:
                self._receive(key.data)

    def _accept(self) -> None:
        peer, _ = self._listener.accept()
        peer.settimeout(SEND_TIMEOUT_S)
        self._num_connections += 1
        connection = Connection(self._num_connections, peer)
        self._connections[connection.number] = connection
        self._selector.register(peer, selectors.EVENT_READ, connection)
        for message in self._greeting:
            self._send(connection, message)

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_RECEIVE_BYTES)
            payloads = connection.frames.feed(data)
        except (OSError, protocol.FrameError) as error:
            self._drop(connection, str(error))
            return
        if not data:
            self._drop(connection, "closed by the client")
            return
        for payload in payloads:
            try:
                message = protocol.to_engine.decode(payload)
            except (msgspec.DecodeError, RequestError, RecursionError) as error:
                logger.warning("a message of client %d was refused: %s", connection.number, error)
                self._send(connection, protocol.Refused(f"not a message: {error}"))
                continue
            self._handle(connection, message)

    def _handle(self, connection: Connection, message: protocol.ToEngine) -> None:
        core = self._core
        if core is None:
            self._send(connection, protocol.Refused("the engine is not ready yet"))
            return
        match message:
            case protocol.Submit(request):
                if request.id in connection.requests:
                    self._send(connection, protocol.Refused("the request's id is in use"))
                    return
                connection.requests.add(request.id)
                try:
                    follows = connection.inner_id(request.follows) if request.follows is not None else None
                    core.add(msgspec.structs.replace(request, id=connection.inner_id(request.id), follows=follows))
                except (RequestError, QueueFullError) as error:
                    self._finish(connection, EngineOutput(request.id, [], finish_reason="error", error=_failure(error)))
            case protocol.Abort(request_id):
                output = core.abort(connection.inner_id(request_id))
                if output is not None:
                    output.request_id = request_id
                    self._finish(connection, output)
            case protocol.StopThinking(request_id):
                core.stop_thinking(connection.inner_id(request_id))
            case protocol.AskStats(query):
                self._send(connection, protocol.Stats(query, core.stats()))
            case protocol.FlushCache(query):
                core.reset_prefix_cache()
                self._send(connection, protocol.Stats(query, core.stats()))

    def _finish(self, connection: Connection, output: EngineOutput) -> None:
        connection.requests.discard(output.request_id)
        self._send(connection, protocol.Outputs([output]))

    def _deliver(self, outputs: list[EngineOutput]) -> None:
        grouped: dict[int, list[EngineOutput]] = {}
        for output in outputs:
            owner, _, output.request_id = output.request_id.partition("/")
            grouped.setdefault(int(owner), []).append(output)
        for number, items in grouped.items():
            connection = self._connections.get(number)
            if connection is not None:
                for item in items:
                    if item.finish_reason is not None:
                        connection.requests.discard(item.request_id)
                # Scored prompts are large; each travels in a frame of its own, so that no company can exceed the frame limit.
                large = [item for item in items if item.prompt_logprobs]
                for item in large:
                    self._send(connection, protocol.Outputs([item]))
                rest = [item for item in items if not item.prompt_logprobs] if large else items
                if rest:
                    self._send(connection, protocol.Outputs(rest))

    def _show_progress(self, core: EngineCore) -> None:
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if connection.requests and now - connection.last_sent > PROGRESS_EVERY_S:
                self._send(connection, protocol.Progress(core.num_steps))

    def _send(self, connection: Connection, message: protocol.FromEngine) -> None:
        """Blocks while the client's buffer is full: a client that falls behind slows the engine instead of filling memory."""
        try:
            connection.socket.sendall(protocol.frame(message))
        except OSError as error:
            self._drop(connection, str(error))
        connection.last_sent = time.monotonic()

    def _drop(self, connection: Connection, why: str) -> None:
        if self._connections.pop(connection.number, None) is None:
            return
        logger.debug("connection %d ends: %s", connection.number, why)
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if self._core is not None:
            for request_id in connection.requests:
                self._core.abort(connection.inner_id(request_id))


def load_core(config: EngineConfig, on_phase: OnPhase) -> tuple[EngineCore, protocol.EngineInfo]:
    """Load the engine; torch is imported here."""
    on_phase("importing torch")
    import torch

    from openglm.engine.loading import load_engine

    loaded = load_engine(config, on_phase=on_phase)
    resolved = loaded.core.config
    logger.info("engine: %s, %d compute threads", resolved.device, torch.get_num_threads())
    info = protocol.EngineInfo(
        model=config.model or "glm-nano",
        num_tokens=loaded.core.num_tokens,
        max_model_len=resolved.max_model_len,
        max_num_seqs=resolved.max_num_seqs,
        num_speculative_tokens=resolved.num_speculative_tokens,
        dtype=resolved.dtype,
        device=resolved.device,
        reasons=loaded.reasons,
        kv_cache_dtype=resolved.kv_cache_dtype,
        num_host_pages=resolved.num_host_pages,
        request_timeout_s=resolved.request_timeout_s,
    )
    return loaded.core, info


def main() -> NoReturn:
    """Entry point of the process."""
    socket_path = Path(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM):  # these go to whole groups of processes; the parent decides what they mean
        signal.signal(number, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the supervisor's way to see where a hanging engine is
    set_up_logging()
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineConfig)
    threading.Thread(target=_exit_with_parent, args=(socket_path,), daemon=True).start()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        os.write(1, LISTENING)
        os.dup2(2, 1)  # whatever a library prints from here on is no business of the parent
        process = EngineProcess(listener)
        try:
            process.load(config, load_core)
        except OpenGLMError:
            sys.exit(2)  # the clients know why; a user's mistake needs no traceback
        process.serve()


def _exit_with_parent(socket_path: Path) -> None:
    """Wait for the end of standard input, then leave without a trace."""
    while os.read(0, 4096):  # not sys.stdin: an interpreter that ends cannot while a thread holds the lock of its buffer
        pass
    with contextlib.suppress(OSError):
        socket_path.unlink()
        socket_path.parent.rmdir()
    os._exit(0)


def _failure(error: RequestError | QueueFullError) -> RequestFailure:
    code: FailureCode = "queue_full" if isinstance(error, QueueFullError) else "invalid_request"
    if isinstance(error, ContextLengthError):
        code = "context_length_exceeded"
    return RequestFailure(code, str(error), getattr(error, "param", None))


if __name__ == "__main__":
    main()
