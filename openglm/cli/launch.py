"""`glm launch`: a coding agent, started against a server of ours with the environment or configuration that it needs."""

from __future__ import annotations

from typing import Annotated

import typer

from openglm.cli.agents import AGENTS

CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def command(
    ctx: typer.Context,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help=f"One of {', '.join(AGENTS)}.")],
    url: Annotated[str, typer.Option(help="Address of the server, with or without /v1.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Model to ask for.", show_default="the server's first")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the server's key.", show_default="no key")
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Show what would be run, and run nothing.")] = False,
) -> None:
    """Start a coding agent against a running server: claude (Claude Code), opencode, codex or cline.

    The agent's own settings stay as they are: what it needs is passed in its environment, on its command line, or in files of a private
    temporary folder that is gone when it ends. Words that are no options of ours go to the agent.

    glm launch claude

    glm launch codex --url http://10.0.0.5:8000 --api-key-env GLM_KEY

    glm launch opencode -- run "explain this repository"
    """
    from openglm import env
    from openglm.cli.agent_run import launch, plan, show_plan
    from openglm.errors import ConfigError

    if agent not in AGENTS:
        raise ConfigError(f"no agent is called {agent:.40}; known: {', '.join(AGENTS)}")
    key = None if api_key_env is None else env.secret(api_key_env)
    with plan(agent, url=url, model=model, api_key=key, extra=tuple(ctx.args)) as prepared:
        if show:
            typer.echo(show_plan(prepared))
            return
        raise typer.Exit(launch(prepared, warn=lambda text: typer.echo(f"glm: warning: {text}", err=True)))
