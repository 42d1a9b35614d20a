"""Entry point of `glm`: finds the verb, loads only its module, and turns our own errors into one clear line.

The verb's module is imported when the verb is used, so `glm --help` costs the import of typer and nothing else.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click
import typer
import typer.main

from openglm import __version__
from openglm.errors import OpenGLMError

VERBS = {
    "serve": "Serve a model over the OpenAI API (the embedded glm-nano if none is named).",
    "chat": "Chat in the terminal, with a local model or any OpenAI-compatible server.",
    "generate": "Answer one prompt and exit.",
    "render": "Print the exact prompt that a conversation becomes.",
    "parse": "Turn generated text into an assistant message (JSON).",
    "train": "Train the embedded model from scratch.",
    "eval": "Score a model on held-out generated tasks.",
}


class LazyGroup(click.Group):
    """A group whose commands are typer functions named `command` in `openglm.cli.<verb>`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order a newcomer meets them."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the verb's module; unknown verbs are reported by `resolve_command`."""
        del ctx
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"openglm.cli.{cmd_name}")
        app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        app.command(cmd_name, context_settings=getattr(module, "CONTEXT_SETTINGS", None))(module.command)
        command: click.Command = typer.main.get_command(app)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing any of them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


EPILOG = "Two commands to begin with:  `glm serve`  and, in another terminal,  `glm chat --url http://127.0.0.1:8000/v1`."


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glm")
def app() -> None:
    """Serve, use and train GLM-4.5, GLM-4.5-Air and GLM-4.6 with one model definition."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; openglm's own errors end it with exit code 2 and no traceback."""
    try:
        return app(arguments, prog_name="glm")
    except OpenGLMError as error:
        sys.stderr.write(f"glm: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
