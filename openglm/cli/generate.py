"""`glm generate`: one prompt, one answer."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from openglm.cli.flags import TranslatedCommand

if TYPE_CHECKING:
    from rich.console import Console

    from openglm.cli.answering import AnswerSource
    from openglm.cli.transcript import TurnPrinter
    from openglm.server.openai_client import SamplingWishes
    from openglm.text.messages import Conversation

COMMAND_CLASS = TranslatedCommand

_ENGINE: Final = "Engine (without --url)"


def command(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The question; - reads standard input.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the question from a file.")] = None,
    model: Annotated[str | None, typer.Option(help="Model directory. Default: the embedded glm-nano.")] = None,
    url: Annotated[str | None, typer.Option(help="Ask a running server instead, such as http://127.0.0.1:8000/v1.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key for that server.")] = None,
    api_key_env: Annotated[str | None, typer.Option(metavar="NAME", help="Environment variable that holds the key.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    thinking: Annotated[bool, typer.Option("--thinking/--no-thinking", help="Think before answering.")] = True,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-n", min=1, help="Longest answer, thinking included.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help="0 always takes the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest tokens of this total probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object: message, finish_reason, usage.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_ENGINE)] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=_ENGINE)] = "auto",
    max_model_len: Annotated[int | None, typer.Option(help="Longest prompt plus answer, in tokens.", rich_help_panel=_ENGINE)] = None,
    num_speculative_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens that the MTP layer drafts per step; left out it follows measurements.", rich_help_panel=_ENGINE),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(metavar="fp8|int8|int4|w8a8", help="Round the layers' matrices while loading, on a CPU.", rich_help_panel=_ENGINE),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", rich_help_panel=_ENGINE)] = None,
) -> None:
    """Answer one prompt and exit. On a terminal the thinking is shown dim; on a pipe only the answer is printed.

    glm generate "What is 123 + 456?"

    glm generate -f question.txt --model ./GLM-4.5-Air --no-thinking --max-tokens 200

    glm generate "Say hello" --json | jq .message.content
    """
    from rich.console import Console

    from openglm import env
    from openglm.cli.answering import answer_source
    from openglm.config.engine import EngineConfig
    from openglm.log import set_up_logging
    from openglm.server.openai_client import SamplingWishes
    from openglm.text.messages import Conversation, Message

    set_up_logging("error")
    question = Message("user", _question(prompt, file))
    messages = (Message("system", system), question) if system else (question,)
    engine = EngineConfig(
        model=model,
        device=device,
        dtype=dtype,  # type: ignore[arg-type]  # EngineConfig checks it
        max_model_len=max_model_len,
        num_speculative_tokens=num_speculative_tokens,
        max_num_seqs=1,
        quantization=None if quantization == "compressed-tensors" else quantization,  # type: ignore[arg-type]  # EngineConfig checks it
        threads=threads,
    )
    if api_key_env is not None:
        api_key = env.secret(api_key_env)
    source = answer_source(url, api_key=api_key, engine=engine)
    wishes = SamplingWishes(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    console = Console(highlight=False, no_color=env.no_color() or None, quiet=as_json)
    try:
        printer = asyncio.run(_generate(console, source, Conversation(messages, thinking=thinking), wishes))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(_report(printer))
    elif console.is_terminal and (figures := printer.figures()):
        console.print(figures, style="dim")


async def _generate(console: Console, source: AnswerSource, conversation: Conversation, wishes: SamplingWishes) -> TurnPrinter:
    import contextlib

    from openglm.cli.transcript import TurnPrinter

    try:
        if console.is_terminal and not console.quiet:
            with console.status("starting ..."):
                await source.open()
        else:
            await source.open()
        printer = TurnPrinter(console, show_thinking=console.is_terminal)
        async with contextlib.aclosing(source.answer(conversation, wishes)) as steps:
            async for step in steps:
                printer.show(step)
        printer.end_line()
        return printer
    finally:
        await source.close()


def _question(prompt: str | None, file: Path | None) -> str:
    from openglm.errors import ConfigError, DataError

    if (prompt is None) == (file is None):
        raise ConfigError('give the question as PROMPT or with -f FILE, for example: glm generate "What is 2 + 3?"')
    if file is None:
        return sys.stdin.read() if prompt == "-" else prompt or ""
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: is not UTF-8 text") from None


def _report(printer: TurnPrinter) -> str:
    import dataclasses
    import json

    from openglm.text.openai_messages import message_to_openai

    usage = dataclasses.asdict(printer.usage) if printer.usage is not None else None
    report = {"message": message_to_openai(printer.message), "finish_reason": printer.finish_reason, "usage": usage}
    return json.dumps(report, ensure_ascii=False, indent=2)
