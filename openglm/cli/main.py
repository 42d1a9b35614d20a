"""Entry point of `glm`: finds the verb, loads only its module, and turns our own errors into one clear line.

The verb's module is imported when the verb is used, so `glm --help` costs the import of typer and nothing else. Even typer is
imported inside `main`, where a Ctrl-C that comes early ends the command as quietly as a late one.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openglm import __version__
from openglm.errors import OpenGLMError

if TYPE_CHECKING:
    import typer

VERBS = {
    "serve": "Serve a model over the OpenAI API (the embedded glm-nano if none is named).",
    "chat": "Chat in the terminal, with a local model or any OpenAI-compatible server.",
    "launch": "Start a coding agent (claude, opencode, codex, cline) against a running server.",
    "generate": "Answer one prompt and exit.",
    "render": "Print the exact prompt that a conversation becomes.",
    "parse": "Turn generated text into an assistant message (JSON).",
    "train": "Train the embedded model from scratch.",
    "eval": "Score a model on held-out generated tasks.",
    "bench": "Measure a running server.",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EPILOG = "To begin: [bold]glm serve[/bold], then in another terminal [bold]glm chat --url http://127.0.0.1:8000/v1[/bold]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; openglm's own errors and unusable files end it with exit code 2, Ctrl-C with 130, without a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _mend_standard_streams()
    try:
        if given and given[0] in VERBS:
            _verb(given[0])(given[1:], prog_name=f"glm {given[0]}")
        else:
            _overview()(given or ["--help"], prog_name="glm")
    except OpenGLMError as error:
        sys.stderr.write(f"glm: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise  # no file of the user's: a mistake of ours, whose place the traceback tells
        sys.stderr.write(f"glm: {error.filename or 'writing'}: {error.strerror}\n")
        raise SystemExit(2) from None


def _mend_standard_streams() -> None:
    """Whatever the caller did to them, reading and writing must not fail for reasons that have nothing to do with the command.

    A stream that was closed (`<&-`) becomes the null device, and what the terminal's encoding cannot show is escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  # open as long as the process lives
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _verb(name: str) -> typer.Typer:
    """The command of one verb: the function `command` of its module."""
    import typer

    module = importlib.import_module(f"openglm.cli.{name}")
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    # A verb may bring its own command class (foreign flags) and settings.
    command_class = getattr(module, "COMMAND_CLASS", None)
    app.command(name, cls=command_class, context_settings=getattr(module, "CONTEXT_SETTINGS", None))(module.command)
    return app


def _overview() -> typer.Typer:
    """What `glm` alone understands: help, version, and the list of verbs (which `main` runs itself)."""
    import typer

    app = typer.Typer(
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        epilog=EPILOG,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"glm {__version__}")
            raise typer.Exit

    @app.callback(help="Serve, use and train GLM-4.5, GLM-4.5-Air, GLM-4.6 and GLM-4.7 with one model definition.")
    def options(version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Show the version.")) -> None:
        del version

    for verb, summary in VERBS.items():
        app.command(verb, help=summary)(lambda: None)
    return app


if __name__ == "__main__":
    main()
