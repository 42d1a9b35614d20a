"""From an agent's name to its exit code: ask the server what it serves, prepare a private folder, run the agent in it."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from openglm import env
from openglm.cli.agents import AGENTS, NO_KEY, Agent, Server, Setup
from openglm.errors import ConfigError, EngineError

_LOOK_UP_S: Final = 10.0
_HIDDEN: Final = "KEY"


@dataclass(frozen=True)
class Plan:
    """An agent, ready to run."""

    agent: Agent
    server: Server
    setup: Setup
    extra: tuple[str, ...]

    @property
    def warning(self) -> str | None:
        """What the user should know before the agent starts."""
        context, needed = self.server.context, self.agent.own_prompt
        if context is None or context > needed:
            return None
        return (
            f"{self.server.model} has room for {context} tokens, and the instructions of {self.agent.program} alone take some {needed}: "
            "it will hardly get an answer; serve a model with a longer context, or raise --max-model-len"
        )


@contextlib.contextmanager
def plan(name: str, *, url: str, model: str | None, api_key: str | None, extra: tuple[str, ...]) -> Iterator[Plan]:
    """Prepare an agent; its folder lives as long as the context. Raises `EngineError` when the server cannot be asked."""
    agent = AGENTS[name]
    root = url.rstrip("/").removesuffix("/v1")
    if not root.startswith(("http://", "https://")):
        raise ConfigError(f"--url {url:.80}: give an address such as http://127.0.0.1:8000")
    served, context = _look_up(root, model, api_key)
    server = Server(root, served, api_key or NO_KEY, context)
    with tempfile.TemporaryDirectory(prefix="glm-launch-") as folder:  # readable by this user only
        setup = agent.set_up(server, Path(folder))
        for name_of_file, text in setup.files.items():
            (Path(folder) / name_of_file).write_text(text, "utf-8")
        yield Plan(agent, server, setup, extra)


def launch(prepared: Plan, *, warn: Callable[[str], None]) -> int:
    """Run the agent in this terminal; returns its exit code. Raises `ConfigError` when it is not installed."""
    program = shutil.which(prepared.agent.program)
    if program is None:
        raise ConfigError(f"{prepared.agent.program} is not installed; get it with: {prepared.agent.install}")
    if prepared.warning is not None:
        warn(prepared.warning)
    setup = prepared.setup
    environment = {name: value for name, value in env.inherited().items() if name not in setup.unset} | dict(setup.environment)
    if setup.before:
        done = subprocess.run((program, *setup.before[1:]), env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
            raise ConfigError(f"{prepared.agent.program} could not be set up: {last[0].replace(prepared.server.key, _HIDDEN):.200}")
    return subprocess.run((program, *setup.command[1:], *prepared.extra), env=environment, check=False).returncode


def show_plan(prepared: Plan) -> str:
    """The plan as a shell script; the key is not shown."""

    def hidden(text: str) -> str:
        return shlex.quote(_HIDDEN if text == prepared.server.key and text != NO_KEY else text)

    setup = prepared.setup
    lines = [f"# {name}:\n" + "".join(f"#   {line}\n" for line in text.splitlines()).rstrip() for name, text in setup.files.items()]
    lines += [f"unset {name}" for name in setup.unset]
    lines += [f"export {name}={hidden(value)}" for name, value in setup.environment.items()]
    if setup.before:
        lines.append(" ".join(map(hidden, setup.before)))
    lines.append(" ".join(map(hidden, (*setup.command, *prepared.extra))))
    return "\n".join(lines)


def _look_up(root: str, model: str | None, api_key: str | None) -> tuple[str, int | None]:
    """The name to ask for, and the context that the server lists for it."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.get(f"{root}/v1/models", headers=headers, timeout=_LOOK_UP_S)
        cards: Any = response.json().get("data") if response.status_code == 200 else None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EngineError(f"cannot talk to {root}: {error}; is a server running there? glm serve starts one") from None
    except (ValueError, AttributeError):
        cards = None
    if response.status_code == 401:
        raise ConfigError(f"{root} wants a key: name the variable that holds it with --api-key-env")
    if not isinstance(cards, list) or not all(isinstance(card, dict) and isinstance(card.get("id"), str) for card in cards) or not cards:
        raise EngineError(
            f"{root}/v1/models lists no model (status {response.status_code}); is this the address of an OpenAI-compatible server?"
        )
    names = [card["id"] for card in cards]
    if model is not None and model not in names:
        raise ConfigError(f"{root} serves no model {model:.80}; it has: {', '.join(names)}")
    card = cards[names.index(model)] if model is not None else cards[0]
    context = card.get("max_model_len")
    return card["id"], context if isinstance(context, int) else None
