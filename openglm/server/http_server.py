"""The sockets of a server and uvicorn's settings on them. What a signal means, and when to stop, is decided elsewhere."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from openglm.config.server import ServerConfig
from openglm.errors import ConfigError
from openglm.server.http_protocol import BoundedProtocol, Census, Outbox
from openglm.server.openai_response import write_refusal

logger = logging.getLogger(__name__)

FAREWELL_S: Final = 5.0
"""For streams to take their last event once their requests have been ended."""
_SPARE_FILES: Final = 64  # descriptors that are no connections: the engine's socket, libraries, logs


class HTTPServer(uvicorn.Server):
    """uvicorn without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def http_server(app: ASGIApp, config: ServerConfig, census: Census) -> HTTPServer:
    """A server of `app` within the limits of `config`; its connections are counted by `census`."""
    protocol: Any = functools.partial(BoundedProtocol, server=config, census=census, outbox=Outbox(), write=write_refusal)
    settings = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who a client is matters to nobody here, and the header that says so can be forged
        timeout_keep_alive=config.connection_limits.idle_s,  # type: ignore[arg-type]  # a float serves as well
        timeout_graceful_shutdown=int(FAREWELL_S),
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
    )
    return HTTPServer(settings)


def listen(config: ServerConfig) -> socket.socket:
    """Bind before anything expensive happens, so that a taken port or an unusable certificate is told at once."""
    _check_certificate(config)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot listen on {config.host} port {config.port}: {reason}; choose another with --host or --port") from None
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def admin_listener(config: ServerConfig) -> Iterator[list[socket.socket]]:
    """The Unix socket of the control routes, if one is asked for; its file is only its owner's, and is gone afterwards."""
    if config.admin_socket is None:
        yield []
        return
    path = Path(config.admin_socket)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"--admin-socket {path}: is a file already, and no socket; choose another path")
        path.unlink()  # left by a server that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ConfigError(f"--admin-socket {path}: cannot listen: {error.strerror or error}") from None
    finally:
        os.umask(before)
    listener.setblocking(False)
    try:
        yield [listener]
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def raise_file_limit(config: ServerConfig) -> None:
    """Let this process have a descriptor for every connection that it may take; says so where the system does not."""
    wanted = config.connection_limits.connections + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        logger.warning(
            "only %d files may be open, too few for %d connections; raise ulimit -n", allowed, config.connection_limits.connections
        )


def _check_certificate(config: ServerConfig) -> None:
    if config.ssl_certfile is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password=lambda: "")
    except OSError as error:  # missing, unreadable, or (SSLError) not a certificate and its key
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"--ssl-certfile {config.ssl_certfile}, --ssl-keyfile {config.ssl_keyfile}: cannot be used: {reason}") from None
