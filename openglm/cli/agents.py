"""What each coding agent must be told to use a server of ours. One table; loads nothing.

An agent gets its settings in the way that leaves the user's own untouched: variables (Claude Code), an extra configuration file (OpenCode),
command-line overrides (Codex), or a configuration folder of its own that is filled by the agent's own sign-in command (Cline).

Whoever runs a model on their own machine expects what they write to stay there, so telemetry, update checks and catalogues fetched at the
start are switched off where the agent has a switch. What has none, as of the versions in docs/clients.md: OpenCode fetches its plugin
package from npm in the background, Cline its feature flags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

KEY_VARIABLE: Final = "OPENGLM_AGENT_KEY"
"""Holds the key for agents whose configuration names a variable, so that no key is written to a file or a command line."""
NO_KEY: Final = "none"  # agents insist on a key, and a server without keys takes any


@dataclass(frozen=True)
class Server:
    """Where the agent is to go. `root` has no /v1."""

    root: str
    model: str
    key: str = field(repr=False)
    context: int | None = None
    """Tokens of prompt and answer together, where the server says."""

    @property
    def openai_url(self) -> str:
        """The base URL of OpenAI's clients."""
        return self.root + "/v1"


@dataclass(frozen=True)
class Setup:
    """What to run and with what around it. `before` runs first, to its end."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    """Variables of the user's that would lead the agent elsewhere."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Contents by name, in the private folder."""
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agent:
    """One agent: its program, how to get it, and its set-up for a server and a private folder."""

    program: str
    install: str
    set_up: Callable[[Server, Path], Setup]
    own_prompt: int
    """Tokens of GLM's vocabulary that its instructions and tools take before the user has said a word."""


def _claude(server: Server, folder: Path) -> Setup:
    del folder
    models = ("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL")
    environment = {
        "ANTHROPIC_BASE_URL": server.root,
        "ANTHROPIC_AUTH_TOKEN": server.key,
        **dict.fromkeys(models, server.model),
        # A line about billing at the top of every prompt would change what can be cached; the rest calls services that are not here.
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",
        "API_TIMEOUT_MS": "3000000",
    }
    if server.context is not None:
        environment["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] = str(server.context)
        environment["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(min(32_000, max(1, server.context // 4)))
    return Setup(("claude",), environment, unset=("ANTHROPIC_API_KEY",))


def _opencode(server: Server, folder: Path) -> Setup:
    described: dict[str, object] = {"name": server.model, "tool_call": True, "reasoning": True}
    if server.context is not None:
        described["limit"] = {"context": server.context, "output": min(32_000, max(1, server.context // 4))}
    config = {
        "$schema": "https://opencode.ai/config.json",
        "autoupdate": False,
        "model": f"openglm/{server.model}",
        "small_model": f"openglm/{server.model}",
        "provider": {
            "openglm": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "openglm",
                "options": {"baseURL": server.openai_url, "apiKey": f"{{env:{KEY_VARIABLE}}}"},
                "models": {server.model: described},
            }
        },
    }
    environment = {"OPENCODE_CONFIG": str(folder / "opencode.json"), "OPENCODE_DISABLE_MODELS_FETCH": "1", KEY_VARIABLE: server.key}
    return Setup(("opencode",), environment, files={"opencode.json": json.dumps(config, indent=2) + "\n"})


def _codex(server: Server, folder: Path) -> Setup:
    del folder
    settings: dict[str, str | int | bool] = {
        "model": server.model,
        "model_provider": "openglm",
        "model_providers.openglm.name": "openglm",
        "model_providers.openglm.base_url": server.openai_url,
        "model_providers.openglm.wire_api": "responses",
        "model_providers.openglm.env_key": KEY_VARIABLE,
        "analytics.enabled": False,
        "check_for_update_on_startup": False,
        "features.plugins": False,  # they are catalogues of a service that is not here; `-c features.plugins=true` behind it wins
    }
    if server.context is not None:
        settings["model_context_window"] = server.context
    # A value is TOML, of which JSON's strings, numbers and booleans are a part.
    overrides = [word for name, value in settings.items() for word in ("-c", f"{name}={json.dumps(value)}")]
    return Setup(("codex", *overrides), {KEY_VARIABLE: server.key})


def _cline(server: Server, folder: Path) -> Setup:
    sign_in = ("cline", "auth", "-p", "openai", "-b", server.openai_url, "-k", server.key, "-m", server.model)
    environment = {
        "CLINE_DIR": str(folder / "cline"),
        "CLINE_GLOBAL_SETTINGS_PATH": str(folder / "global-settings.json"),
        "CLINE_SESSION_BACKEND_MODE": "local",  # else a daemon stays behind, in a folder that is gone
    }
    settings = json.dumps({"telemetryOptOut": True, "autoUpdateEnabled": False}) + "\n"
    return Setup(("cline",), environment, unset=("CLINE_DATA_DIR",), files={"global-settings.json": settings}, before=sign_in)


AGENTS: Final[Mapping[str, Agent]] = {
    "claude": Agent("claude", "npm install -g @anthropic-ai/claude-code", _claude, 17_000),
    "opencode": Agent("opencode", "npm install -g opencode-ai", _opencode, 7_000),
    "codex": Agent("codex", "npm install -g @openai/codex", _codex, 9_000),
    "cline": Agent("cline", "npm install -g cline", _cline, 5_000),
}
