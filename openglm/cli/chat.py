"""`glm chat`: a conversation in the terminal, with an engine of its own or with any OpenAI-compatible server."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from openglm.cli.flags import TranslatedCommand

COMMAND_CLASS = TranslatedCommand

_ENGINE: Final = "Engine (without --url)"


def command(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Model directory. Default: the embedded glm-nano.")] = None,
    url: Annotated[str | None, typer.Option(help="Base URL of a running server, such as http://127.0.0.1:8000/v1.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key for that server.")] = None,
    api_key_env: Annotated[str | None, typer.Option(metavar="NAME", help="Environment variable that holds the key.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    thinking: Annotated[bool, typer.Option("--thinking/--no-thinking", help="Think before answering.")] = True,
    tools: Annotated[bool, typer.Option("--tools/--no-tools", help="Offer two demo tools that run here: calculator and clock.")] = True,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help="0 always takes the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest tokens of this total probability.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, thinking included.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answers.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_ENGINE)] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=_ENGINE)] = "auto",
    max_model_len: Annotated[int | None, typer.Option(help="Longest conversation, in tokens.", rich_help_panel=_ENGINE)] = None,
    num_speculative_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens that the MTP layer drafts per step; left out it follows measurements.", rich_help_panel=_ENGINE),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", rich_help_panel=_ENGINE)] = None,
) -> None:
    """Chat in the terminal. Thinking is dim, tool calls are shown as cards and run here, /help lists the commands.

    glm chat                                    with the embedded glm-nano

    glm chat ./GLM-4.5-Air --no-thinking

    glm chat --url http://127.0.0.1:8000/v1     with a server that runs already

    echo "What is 12 + 30?" | glm chat          one question per line; only the answers are printed
    """
    import asyncio

    from rich.console import Console

    from openglm import env
    from openglm.cli.answering import answer_source
    from openglm.cli.chat_loop import ChatLoop
    from openglm.config.engine import EngineConfig
    from openglm.log import set_up_logging
    from openglm.server.openai_client import SamplingWishes

    set_up_logging("error")
    engine = EngineConfig(
        model=model,
        device=device,
        dtype=dtype,  # type: ignore[arg-type]  # EngineConfig checks it
        max_model_len=max_model_len,
        num_speculative_tokens=num_speculative_tokens,
        threads=threads,
    )
    if api_key_env is not None:
        api_key = env.secret(api_key_env)
    source = answer_source(url, api_key=api_key, engine=engine)
    wishes = SamplingWishes(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    console = Console(highlight=False, no_color=env.no_color() or None)
    loop = ChatLoop(console, source, wishes, system=system, thinking=thinking, tools=tools)
    with asyncio.Runner() as runner:
        try:
            loop.run(runner)
        finally:
            runner.run(source.close())
