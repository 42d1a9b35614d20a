"""`glm parse`: generated text to the assistant message that a client would get."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Start(StrEnum):
    """Where the reply begins; `glm render` prompts end in one of these."""

    undecided = "undecided"
    reasoning = "reasoning"
    content = "content"


def command(
    tools: Annotated[Path | None, typer.Option(help="Tools that were offered, as a JSON list; their schemas type the arguments.")] = None,
    start: Annotated[
        Start,
        typer.Option(
            help="undecided: the model opens <think> itself (GLM-4.5, 4.6); reasoning: the prompt did (4.7); content: no thinking."
        ),
    ] = Start.undecided,
) -> None:
    """Read generated text from standard input and print the assistant message as JSON.

    Tool calls are recognised with or without --tools; without it, arguments become JSON values where they can.

      glm parse < reply.txt

      glm parse --tools tools.json --start content < reply.txt
    """
    from openglm.cli.json_input import read_json
    from openglm.errors import DataError, RequestError
    from openglm.text.openai_messages import message_to_openai, tools_from_openai
    from openglm.text.turn_parser import parse_turn

    try:
        offered = tools_from_openai(read_json(tools)) if tools is not None else ()
    except RequestError as error:
        raise DataError(f"{tools}: {error}") from error
    text = sys.stdin.buffer.read().decode(errors="replace")
    message = parse_turn(text, start.value, offered, parse_calls=True)
    typer.echo(json.dumps(message_to_openai(message), ensure_ascii=False, indent=2).encode(errors="replace"))
