"""`glm bench`: measure, print a table, write JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openglm.cli.report_file import writable


def command(
    what: Annotated[str, typer.Argument(help="What to measure: server.")] = "server",
    model: Annotated[Path | None, typer.Option(help="Model directory. Default: the embedded glm-nano.")] = None,
    serve_flags: Annotated[str, typer.Option(help="Further flags for glm serve, as one string.")] = "",
    streams: Annotated[int, typer.Option(min=1, help="Streams of the measurement with company.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; the median counts.")] = 5,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens per answer.")] = 128,
    json_file: Annotated[Path | None, typer.Option("--json", callback=writable, help="Also write the figures here.")] = None,
) -> None:
    """Measure a running system and print figures that name machine and command.

    glm bench server                                             the embedded model, as a user meets it

    glm bench server --serve-flags "--num-speculative-tokens 0"  the same without MTP drafts
    """
    import shlex

    import msgspec
    from rich.console import Console
    from rich.table import Table

    from openglm.bench.server import measure_server
    from openglm.errors import ConfigError

    if what != "server":
        raise ConfigError(f"no measurement is called {what!r}; known: server")
    errors = Console(stderr=True)
    flags = [*([str(model)] if model else []), *shlex.split(serve_flags)]
    figures = measure_server(flags, streams=streams, rounds=rounds, tokens=tokens, progress=errors.print)
    machine = figures.machine
    table = Table(title=f"{figures.command}  ({machine.cores} cores, {machine.cpu}, torch {machine.torch})")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("ready after", f"{figures.ready_s:.2f} s")
    table.add_row("first token", f"{figures.first_token_ms:.0f} ms")
    table.add_row("one stream", f"{figures.single_stream_tokens_per_second:.0f} tok/s")
    table.add_row(f"{figures.streams} streams, all together", f"{figures.total_tokens_per_second:.0f} tok/s")
    table.add_row("memory (RSS of all processes)", f"{figures.rss_bytes / 2**20:.0f} MiB")
    Console().print(table)
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
