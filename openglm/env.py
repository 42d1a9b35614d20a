"""The only reader of environment variables.

Owns which variables exist and how their text is read; whoever needs one calls here and passes the value on explicitly.
Every flag of a `glm` verb has a variable: `--max-model-len` is `GLM_MAX_MODEL_LEN`. Precedence is flag, then
environment, then default, and is applied by the command line, not here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from openglm.errors import ConfigError

PREFIX = "GLM_"


def variable_of(flag: str) -> str:
    """The environment variable of a flag: `--max-model-len` -> `GLM_MAX_MODEL_LEN`."""
    return PREFIX + flag.lstrip("-").replace("-", "_").upper()


def flag_values(flags: Iterable[str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The flags among `flags` that the environment sets, with their text; an empty variable counts as unset."""
    source = os.environ if environ is None else environ
    found = {flag: source.get(variable_of(flag), "") for flag in flags}
    return {flag: text for flag, text in found.items() if text}


def secret(name: str, environ: Mapping[str, str] | None = None) -> str:
    """The value of a variable that the user named, such as a key. Raises `ConfigError` when it is unset or empty."""
    value = (os.environ if environ is None else environ).get(name, "")
    if not value.strip():
        raise ConfigError(f"the environment variable {name:.60} is not set; it should hold a key")
    return value.strip()


def inherited() -> dict[str, str]:
    """The whole environment, for a program that is started."""
    return dict(os.environ)


def num_threads(environ: Mapping[str, str] | None = None) -> int | None:
    """`OMP_NUM_THREADS`, the conventional bound on compute threads, or None when it is unset."""
    text = (os.environ if environ is None else environ).get("OMP_NUM_THREADS", "").strip()
    if not text:
        return None
    first = text.split(",")[0]  # OpenMP allows one number per nesting level
    if not first.isdecimal() or int(first) < 1:
        raise ConfigError(f"OMP_NUM_THREADS must be a positive integer, got {text!r:.40}")
    return int(first)


def interpret_triton() -> None:
    """Have Triton, when it is imported later, run kernels in its interpreter on the CPU."""
    os.environ["TRITON_INTERPRET"] = "1"


def cache_folder(environ: Mapping[str, str] | None = None) -> Path | None:
    """Where this package keeps what it can make again: under `XDG_CACHE_HOME`, else `~/.cache`. None for a user without a home."""
    named = Path((os.environ if environ is None else environ).get("XDG_CACHE_HOME", ""))
    if named.is_absolute():  # others are to be ignored, says the XDG base directory specification
        return named / "openglm"
    try:
        return Path.home() / ".cache" / "openglm"
    except RuntimeError:
        return None


def no_color(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the user asked every program for plain output (https://no-color.org: any non-empty value)."""
    return bool((os.environ if environ is None else environ).get("NO_COLOR"))


def worker_place(environ: Mapping[str, str] | None = None) -> tuple[int, int] | None:
    """(rank, number of workers) as torchrun sets them, or None in a process that no launcher started."""
    source = os.environ if environ is None else environ
    try:
        return int(source["RANK"]), int(source["WORLD_SIZE"])
    except KeyError:
        return None
    except ValueError:
        raise ConfigError("RANK and WORLD_SIZE must be integers; unset them outside of torchrun") from None
