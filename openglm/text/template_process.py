"""The parent's side of a checkpoint's own chat template: a child process, asked one rendering at a time, killed when late.

Owns the process and its limits. Knows nothing of conversations: variables go in, text comes out, and everything that can go
wrong is a `TemplateError` for this one rendering (a killed child is replaced at the next call).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from openglm.errors import CheckpointError, TemplateError

MAX_SOURCE: Final = 256 << 10
"""Bytes of template text that are accepted; GLM's own template has 3 KiB."""

_WORKER: Final = Path(__file__).with_name("template_worker.py")
_START_TIMEOUT_S: Final = 30.0  # an interpreter start on a busy machine
_MAX_REPLY: Final = 128 << 20  # bytes; the worker's own output limit, escaped


class TemplateProcess:
    """Renders one template source. Safe to call from several threads; they wait for each other."""

    def __init__(self, source: str, *, origin: str = "chat_template.jinja", timeout_s: float = 5.0) -> None:
        """Start the child and compile. `origin` names the template in errors; `timeout_s` bounds one rendering."""
        if len(source.encode(errors="replace")) > MAX_SOURCE:
            raise CheckpointError(f"{origin}: larger than {MAX_SOURCE} bytes, which is no chat template")
        self._source = source
        self._origin = origin
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._stop: weakref.finalize[..., TemplateProcess] | None = None
        try:
            with self._lock:
                self._start()
        except TemplateError as error:
            raise CheckpointError(str(error)) from error

    def render(self, variables: dict[str, Any]) -> str:
        """The text that the template makes of `variables` (JSON values only)."""
        with self._lock:
            if self._child is None:
                self._start()
            text = self._ask(variables, self._timeout_s)["text"]
        if not isinstance(text, str):
            raise TemplateError(f"{self._origin}: the template process answered nonsense")
        return text

    def close(self) -> None:
        """End the child. Calling `render` again starts a new one."""
        with self._lock:
            self._kill()

    def __enter__(self) -> TemplateProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _start(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )
        self._stop = weakref.finalize(self, _end_process, self._child)
        self._ask({"source": self._source}, _START_TIMEOUT_S)

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self._child is not None and self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
            line = _read_line(self._child.stdout.fileno(), timeout_s)
        except TimeoutError:
            self._kill()
            raise TemplateError(f"{self._origin}: the template took longer than {timeout_s:g} s") from None
        except OSError:
            self._kill()
            raise TemplateError(f"{self._origin}: the template process ended") from None
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TemplateError(f"{self._origin}: {answer['error']}")
        return answer

    def _kill(self) -> None:
        if self._stop is not None:
            self._stop()
        self._child = self._stop = None


def _read_line(descriptor: int, timeout_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s
    pieces: list[bytes] = []
    size = 0
    while not (pieces and pieces[-1].endswith(b"\n")):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        piece = os.read(descriptor, 1 << 20)
        size += len(piece)
        if not piece or size > _MAX_REPLY:
            raise ConnectionError
        pieces.append(piece)
    return b"".join(pieces)


def _end_process(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # the child died with bytes of ours unread
                pipe.close()
