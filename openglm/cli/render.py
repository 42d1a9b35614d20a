"""`glm render`: the exact prompt of a conversation, to see what the model sees."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from openglm.text.checkpoint_template import ChatTemplate
    from openglm.text.messages import Conversation
    from openglm.text.template import TemplateStyle
    from openglm.text.tokenizer import Tokenizer

VARIANTS: dict[str, TemplateStyle] = {"glm-4.5": "glm-4.5", "glm-4.5-air": "glm-4.5", "glm-4.6": "glm-4.5", "glm-4.7": "glm-4.7"}
"""Published models and the template style of each."""


def command(
    file: Annotated[Path, typer.Argument(help="OpenAI messages as JSON: a list, or an object with messages and tools.", metavar="FILE")],
    tools: Annotated[Path | None, typer.Option(help="Tools as a JSON list; replaces the tools in FILE.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model directory, or glm-4.5, glm-4.5-air, glm-4.6, glm-4.7. Default: the embedded model.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Print the token ids (a JSON list) instead of the text.")] = False,
    no_thinking: Annotated[bool, typer.Option("--no-thinking", help="Close the think block in the prompt.")] = False,
) -> None:
    """Print the exact prompt that a conversation becomes, without a newline at the end.

    echo '[{"role": "user", "content": "Hello"}]' > chat.json

    glm render chat.json --model glm-4.6

    glm render chat.json --tools tools.json --no-thinking

    glm render chat.json --model ./GLM-4.5-Air --ids
    """
    from openglm.cli.json_input import read_json
    from openglm.errors import ConfigError, DataError, RequestError

    document = read_json(file)
    body: dict[str, Any] = document if isinstance(document, dict) else {"messages": document}
    if tools is not None:
        body = {**body, "tools": read_json(tools)}
    template, tokenizer = _load(model)
    try:
        conversation, add_generation_prompt = _conversation(body, no_thinking=no_thinking)
        rendered = template.render(conversation, add_generation_prompt=add_generation_prompt)
    except RequestError as error:
        named_tools = tools is not None and (error.param or "").startswith("tools")
        raise DataError(f"{tools if named_tools else file}: {error}") from error
    finally:
        template.close()
    if not ids:
        typer.echo(rendered.text.encode(errors="replace"), nl=sys.stdout.isatty())
        return
    if tokenizer is None:
        raise ConfigError(f"--ids needs a tokenizer and {model} is only a name; give a model directory with --model")
    typer.echo(str(tokenizer.encode_segments(rendered.segments)))


def _conversation(body: dict[str, Any], *, no_thinking: bool) -> tuple[Conversation, bool]:
    """The conversation of a request body and whether the prompt for the reply is wanted (it is, if not said)."""
    from openglm.errors import RequestError
    from openglm.text.openai_messages import conversation_from_openai

    settings = body.get("chat_template_kwargs") or {}
    if not isinstance(settings, dict):
        raise RequestError("chat_template_kwargs: expected an object", param="chat_template_kwargs")
    settings = {**body, **settings}
    flags: dict[str, bool] = {}
    for name in ("enable_thinking", "clear_thinking", "add_generation_prompt"):
        value = settings.get(name)
        if value is not None and not isinstance(value, bool):
            raise RequestError(f"{name}: expected true or false", param=name)
        flags[name] = True if value is None else value
    conversation = conversation_from_openai(
        body.get("messages"),
        body.get("tools"),
        thinking=flags["enable_thinking"] and not no_thinking,
        keep_thinking=not flags["clear_thinking"],
    )
    return conversation, flags["add_generation_prompt"]


def _load(model: str | None) -> tuple[ChatTemplate, Tokenizer | None]:
    """The template, and the tokenizer where there is one."""
    import openglm
    from openglm.errors import ConfigError
    from openglm.text.checkpoint_template import BuiltinTemplate, load_chat_template

    name = (model or "").lower().removeprefix("zai-org/")
    if model is not None and not Path(model).is_dir() and name in VARIANTS:
        return BuiltinTemplate(VARIANTS[name]), None
    directory = Path(model) if model is not None else Path(openglm.__file__).parent / "nano"
    if not directory.is_dir():
        wanted = f"{model!r} is no directory and no known name" if model is not None else "the embedded model is not installed"
        raise ConfigError(f"{wanted}; give a model directory or one of {', '.join(VARIANTS)} with --model")
    tokenizer = _tokenizer(directory)
    added = tokenizer.added_tokens if tokenizer is not None else None
    return load_chat_template(directory, added_tokens=added), tokenizer


def _tokenizer(directory: Path) -> Tokenizer | None:
    if not (directory / "tokenizer.json").is_file():
        return None
    from openglm.text.tokenizer import Tokenizer

    return Tokenizer.from_dir(directory)
