"""Compiles constraints while the engine goes on: a thread, a child process that may be killed, and a bounded cache.

    compilation = compiler.submit(constraint)      # at once; the same constraint is compiled once
    compilation.done -> compilation.grammar or compilation.failure

A text is first compiled in a child process (`grammar_worker`) within a time limit; a text that crashes it, exhausts its memory or takes too
long is refused, and the child is replaced. The limit is on processor time, so that a good text is not refused because the machine is
busy; a longer one on the clock bounds the wait even so. Only what passed there is compiled in this process, in the compiler's thread
(llguidance releases the interpreter's lock for it). Refusals are kept like grammars, so a hostile text costs its time once. No tensors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from openglm.engine.constraint import Constraint
from openglm.engine.grammar import MAX_LEXER_STATES, Grammar, GrammarError, Vocabulary, compile_grammar, error_message, grammar_text
from openglm.engine.request import RequestFailure

logger = logging.getLogger(__name__)

COMPILE_LIMIT_S: Final = 2.0
"""Processor time that one text may take."""
PATIENCE: Final = 10.0
"""How many times as long it may take on the clock."""
MAX_CACHED: Final = 64
MAX_CACHED_CHARS: Final = 8 << 20  # of constraint text; what a grammar takes in memory grows with it

_WORKER: Final = Path(__file__).with_name("grammar_worker.py")
_START_TIMEOUT_S: Final = 30.0  # an interpreter start on a busy machine
_STACK_BYTES: Final = 64 << 20  # far more than the child's main thread has: what passed there cannot overflow here
_MAX_ANSWER: Final = 1 << 20
_EXIT_S: Final = 5.0
_CHECK_EVERY_S: Final = 0.05


class Compilation:
    """One constraint on its way to being a grammar."""

    __slots__ = ("done", "failure", "grammar")

    def __init__(self) -> None:
        self.done = False
        self.grammar: Grammar | None = None
        self.failure: RequestFailure | None = None


class GrammarCompiler:
    """Thread and child start with the first constraint. `submit` and `wait` belong to the engine's thread."""

    def __init__(self, vocabulary: Vocabulary, *, limit_s: float = COMPILE_LIMIT_S) -> None:
        self._vocabulary = vocabulary
        self._cache: OrderedDict[Constraint, Compilation] = OrderedDict()
        self._jobs: queue.SimpleQueue[tuple[Constraint, Compilation] | None] = queue.SimpleQueue()
        self._progress = threading.Condition()
        self._trial = _Trial(vocabulary, limit_s)
        self._thread: threading.Thread | None = None
        self._stop: weakref.finalize[..., GrammarCompiler] | None = None

    def submit(self, constraint: Constraint) -> Compilation:
        """The compilation of a constraint, begun now if it is not known."""
        known = self._cache.get(constraint)
        if known is not None:
            self._cache.move_to_end(constraint)
            return known
        compilation = self._cache[constraint] = Compilation()
        self._evict()
        if self._thread is None:
            self._start()
        self._jobs.put((constraint, compilation))
        return compilation

    def wait(self, timeout_s: float) -> None:
        """Wait until some compilation ends, but not longer than this."""
        with self._progress:
            self._progress.wait(timeout_s)

    def _evict(self) -> None:
        size = sum(len(constraint.text) for constraint in self._cache)
        while len(self._cache) > 1 and (len(self._cache) > MAX_CACHED or size > MAX_CACHED_CHARS):
            constraint, _ = self._cache.popitem(last=False)
            size -= len(constraint.text)

    def _start(self) -> None:
        previous = threading.stack_size(_STACK_BYTES)
        try:
            arguments = (self._jobs, self._trial, self._vocabulary, self._progress)
            self._thread = threading.Thread(target=_work, args=arguments, name="grammar compiler", daemon=True)
            self._thread.start()
        finally:
            threading.stack_size(previous)
        self._stop = weakref.finalize(self, _end, self._jobs, self._trial, self._thread)


def _end(jobs: queue.SimpleQueue[Any], trial: _Trial, thread: threading.Thread) -> None:
    jobs.put(None)
    trial.end()
    if threading.current_thread() is not thread:  # garbage is collected by any thread
        thread.join(_EXIT_S)


def _work(
    jobs: queue.SimpleQueue[tuple[Constraint, Compilation] | None],
    trial: _Trial,
    vocabulary: Vocabulary,
    progress: threading.Condition,
) -> None:
    """The compiler's thread. It knows nothing of the compiler, which can therefore be collected."""
    while (job := jobs.get()) is not None:
        constraint, compilation = job
        try:
            text = grammar_text(constraint)
            problem = trial.problem(text)
            if problem is not None:
                raise GrammarError(error_message(problem))
            compilation.grammar = compile_grammar(text, vocabulary, param=constraint.param)
        except GrammarError as error:
            compilation.failure = RequestFailure("invalid_request", f"{constraint.param}: {error}", constraint.param)
        except Exception as error:
            logger.exception("compiling a grammar failed")
            compilation.failure = RequestFailure("internal", f"the grammar could not be compiled ({type(error).__name__})")
        with progress:
            compilation.done = True
            progress.notify_all()
    trial.close()


class _Trial:
    """The child process; used by one thread, except that anyone may `end` it."""

    def __init__(self, vocabulary: Vocabulary, limit_s: float) -> None:
        self._vocabulary = vocabulary
        self._limit_s = limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._ended = False

    def problem(self, text: str) -> str | None:
        """What is wrong with a grammar; None when it compiles."""
        if self._child is None:
            self._start()
        try:
            return self._ask(text, limit_s=self._limit_s, timeout_s=self._limit_s * PATIENCE)
        except _TooLongError:
            self.close()
            return f"it takes longer than {self._limit_s:g} s to compile; make it simpler"
        except OSError:
            self.close()
            return "it needs too much memory or nests too deeply; make it simpler"

    def end(self) -> None:
        """Kill the child for good, whatever it is doing."""
        with self._lock:
            self._ended = True
            if self._child is not None:
                self._child.kill()

    def close(self) -> None:
        """Kill this child; the next question starts another."""
        with self._lock:
            child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # the child died with bytes of ours unread
                    pipe.close()

    def _start(self) -> None:
        vocabulary = self._vocabulary
        setup = {
            "tokens": list(vocabulary.tokens),
            "special": sorted(vocabulary.special),
            "end_ids": list(vocabulary.end_ids),
            "max_lexer_states": MAX_LEXER_STATES,
        }
        with self._lock:
            if self._ended:
                raise ConnectionError("the compiler is closed")
            self._child = subprocess.Popen(
                [sys.executable, "-I", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"RAYON_NUM_THREADS": "1"},
            )
        try:
            self._ask(setup, limit_s=_START_TIMEOUT_S, timeout_s=_START_TIMEOUT_S)
        except OSError:
            self.close()
            raise

    def _ask(self, message: Any, *, limit_s: float, timeout_s: float) -> str | None:
        child = self._child
        if child is None or child.stdin is None or child.stdout is None:
            raise ConnectionError
        watch = _Watch(child.pid, limit_s, timeout_s)
        payload = msgspec.msgpack.encode(message)
        child.stdin.write(struct.pack("<I", len(payload)) + payload)
        child.stdin.flush()
        (length,) = struct.unpack("<I", _read(child.stdout.fileno(), 4, watch))
        if length > _MAX_ANSWER:
            raise ConnectionError
        return msgspec.msgpack.decode(_read(child.stdout.fileno(), length, watch), type=str | None)


class _TooLongError(OSError):
    """The child has used up its time."""


class _Watch:
    """The time that a child takes for one answer."""

    def __init__(self, pid: int, limit_s: float, timeout_s: float) -> None:
        self._pid = pid
        self._deadline = time.monotonic() + timeout_s
        self._limit = self._used() + limit_s

    def check(self) -> None:
        """Raise when the time is over."""
        if self._used() >= self._limit or time.monotonic() >= self._deadline:
            raise _TooLongError

    def _used(self) -> float:
        try:
            times = psutil.Process(self._pid).cpu_times()
        except psutil.Error:
            raise ConnectionError from None
        return float(times.user + times.system)


def _read(descriptor: int, count: int, watch: _Watch) -> bytes:
    data = b""
    while len(data) < count:
        ready, _, _ = select.select([descriptor], [], [], _CHECK_EVERY_S)
        if not ready:
            watch.check()
            continue
        piece = os.read(descriptor, count - len(data))
        if not piece:
            raise ConnectionError
        data += piece
    return data
