"""Running a client program so that it cannot leave this machine unseen.

Every proxy variable points to a tripwire: a listener that refuses what is asked of it and keeps the name of the host. Besides, the
connections of the program and its children are looked at while it runs. Only loopback may turn up.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LOOK_EVERY_S = 0.1
GOODBYE_S = 5.0


@dataclass
class Run:
    """A finished program. `asked` are hosts it wanted through the proxy, `reached` addresses beyond loopback it was connected to, `left`
    processes that were still there a while after its end."""

    code: int
    output: str
    errors: str
    asked: list[str] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)

    def succeeded(self, *, may_ask: Sequence[str] = ()) -> str:
        """The standard output, once it is sure that the program ended well and stayed here. `may_ask` are hosts that it wants to
        reach whatever it is told, and does without."""
        assert self.code == 0, f"exit code {self.code}\n{self.output[-3000:]}\n{self.errors[-3000:]}"
        wanted = [line for line in self.asked if not any(f" {host}:" in line for host in may_ask)]
        assert not wanted, f"wanted to reach {wanted}"
        assert not self.reached, f"was connected to {self.reached}"
        assert not self.left, f"left behind {self.left}"
        return self.output


def run(
    command: Sequence[str], *, home: Path, cwd: Path | None = None, path: Path | None = None, timeout_s: float = 240.0, **variables
) -> Run:
    """Run a program with a home of its own and nothing of this environment but what Python needs."""
    home.mkdir(exist_ok=True)
    with _tripwire() as (address, asked):
        process = subprocess.Popen(
            command,
            cwd=cwd or home,
            env=environment(home, path, address) | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that its children can be ended with it
        )
        reached: set[str] = set()
        over = threading.Event()
        seen: set[psutil.Process] = set()
        watcher = threading.Thread(target=_watch, args=(process.pid, over, reached, seen))
        watcher.start()
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end_group(process)
            output, errors = process.communicate()
            raise AssertionError(f"not done in {timeout_s:g} s\n{output[-3000:]}\n{errors[-3000:]}") from None
        finally:
            over.set()
            watcher.join()
            _, stayed = psutil.wait_procs(seen, timeout=GOODBYE_S)
            left = [_command(each) for each in stayed]
            _end_group(process)
            for each in stayed:  # a daemon may be in a session of its own
                with contextlib.suppress(psutil.Error):
                    each.kill()
    return Run(process.returncode, output, errors, asked, reached, left)


def environment(home: Path, path: Path | None = None, proxy: str = "http://127.0.0.1:9") -> dict[str, str]:
    """A clean environment: this home, these programs first, and everything but loopback sent to the proxy."""
    folders = [*([str(path)] if path else []), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    variables = {
        "PATH": os.pathsep.join(folders),
        "HOME": str(home),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "NO_PROXY": "127.0.0.1,localhost",
        "DO_NOT_TRACK": "1",
    }
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        variables |= {name: proxy, name.lower(): proxy}
    return variables | {"no_proxy": variables["NO_PROXY"]}


@contextlib.contextmanager
def _tripwire() -> Iterator[tuple[str, list[str]]]:
    """An HTTP proxy that refuses everything; its address, and the list of what was asked of it."""
    asked: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError):
                peer.settimeout(5)
                asked.append(peer.recv(4096).split(b"\r\n")[0].decode("latin-1")[:200])
                peer.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _watch(pid: int, over: threading.Event, reached: set[str], seen: set[psutil.Process]) -> None:
    while not over.wait(LOOK_EVERY_S):
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(pid)
            seen.update(root.children(recursive=True))
            for process in (root, *seen):
                with contextlib.suppress(psutil.Error):
                    reached.update(filter(_is_elsewhere, (each.raddr.ip for each in process.net_connections("inet") if each.raddr)))


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:300]
    return f"process {process.pid}"


def _is_elsewhere(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return not (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def _end_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
