"""`glm bench`: measure, print a table, write JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openglm.cli.report_file import writable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

    from openglm.bench.machine import Machine
    from openglm.bench.marks import Mark
    from openglm.config.engine import EngineConfig


def command(
    what: Annotated[str, typer.Argument(help="What to measure: server, streaming, offline, recovery, kernels, peers or gpu.")] = "server",
    row: Annotated[str | None, typer.Argument(help="gpu: ceilings, kernels, decode, mtp, prefill or transformers.")] = None,
    model: Annotated[Path | None, typer.Option(help="Model directory. Default: the embedded glm-nano.")] = None,
    serve_flags: Annotated[str, typer.Option(help="server, streaming, recovery: further flags for glm serve, as one string.")] = "",
    streams: Annotated[int | None, typer.Option(min=1, help="server, streaming, recovery: streams at once. Default: 8, 64, 32.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Repetitions, of which the median counts. Default: 5; recovery 20, streaming and peers 3.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="server, streaming, offline: tokens per answer.")] = 128,
    quick: Annotated[bool, typer.Option("--quick", help="offline, kernels, peers: a smoke run, whose figures mean nothing.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="kernels, peers: threads of every engine.")] = 1,
    weights: Annotated[str, typer.Option(help="kernels: bfloat16, fp8, int8, int4 or w8a8.")] = "bfloat16",
    slice_: Annotated[str, typer.Option("--slice", help="peers: air or 355b.")] = "air",
    scale: Annotated[int, typer.Option(min=1, help="peers: divide widths, experts and vocabulary, to try the tools.")] = 1,
    engines: Annotated[str, typer.Option(help="peers: openglm, llama.cpp and transformers, or some of them, with commas.")] = "",
    formats: Annotated[str, typer.Option(help="peers: some of the engines' formats, with commas; without, all of them.")] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="peers, gpu: results so far, from which a run goes on, and reports. Default: build/peers, build/gpu."),
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="peers: compile llama.cpp into an environment of its own first.")] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="gpu: without a GPU, small shapes in Triton's interpreter; the figures mean nothing.")
    ] = False,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="gpu: time budget, of which 70 % are used. Default: the row's.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", callback=writable, help="Also write the figures here.")] = None,
) -> None:
    """Measure a running system and print figures that name machine and command.

    glm bench server                                             the embedded model, as a user meets it

    glm bench server --serve-flags "--num-speculative-tokens 0"  the same without MTP drafts

    glm bench streaming                                          the server's CPU per token event, jitter, HTTP against the engine alone

    glm bench offline                                            the engine alone: streams, draft depths, step parts, prefix cache

    glm bench recovery                                           kill -9 of the engine under 32 streams, 20 times

    glm bench kernels --threads 2                                every CPU kernel at real widths, against the machine's limits

    glm bench peers --threads 2 --install                        beside llama.cpp and transformers on a slice of GLM-4.5-Air; hours

    glm bench gpu decode                                         GLM-4.5-Air-FP8 at full size on this GPU, weights made there
    """
    import shlex

    import msgspec
    from rich.console import Console

    from openglm.errors import ConfigError

    tell = Console(stderr=True).print
    if row is not None and what != "gpu":
        raise ConfigError(f"glm bench {what:.40} takes no further argument; got {row!r:.40}")
    flags = [*([str(model)] if model else []), *shlex.split(serve_flags)]
    match what:
        case "server":
            figures, tables = _server(flags, streams or 8, rounds or 5, tokens, tell)
        case "streaming":
            figures, tables = _streaming(flags, streams or 64, rounds or 3, tokens, tell)
        case "offline":
            figures, tables = _offline(model, rounds, tokens, quick, tell)
        case "recovery":
            figures, tables = _recovery(flags, streams or 32, rounds or 20, tell)
        case "kernels":
            figures, tables = _kernels(threads, weights, quick, tell)
        case "peers":
            chosen = [[name.strip() for name in names.split(",") if name.strip()] for names in (engines, formats)]
            figures, tables = _peers(slice_, scale, threads, rounds or 3, chosen, out or Path("build/peers"), quick, install, tell)
        case "gpu":
            figures, tables = _gpu(row, out or Path("build/gpu"), rehearse, minutes, tell)
        case _:
            raise ConfigError(f"no measurement is called {what!r:.40}; known: server, streaming, offline, recovery, kernels, peers, gpu")
    for table in tables:
        Console().print(table)
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
    if what == "gpu":
        _end_of(figures)


def _server(flags: list[str], streams: int, rounds: int, tokens: int, tell: Callable[[str], None]) -> tuple[object, list[Table]]:
    from openglm.bench.server import measure_server

    figures = measure_server(flags, streams=streams, rounds=rounds, tokens=tokens, progress=tell)
    table = _table(figures.command, figures.machine, "figure", "value")
    table.add_row("ready after", f"{figures.ready_s:.2f} s")
    table.add_row("first token", f"{figures.first_token_ms:.0f} ms")
    table.add_row("one stream", f"{figures.single_stream_tokens_per_second:.0f} tok/s")
    table.add_row(f"{figures.streams} streams, all together", f"{figures.total_tokens_per_second:.0f} tok/s")
    table.add_row("memory (RSS of all processes)", f"{figures.rss_bytes / 2**20:.0f} MiB")
    return figures, [table]


def _streaming(flags: list[str], streams: int, rounds: int, tokens: int, tell: Callable[[str], None]) -> tuple[object, list[Table]]:
    from openglm.bench.streaming import measure_streaming

    figures = measure_streaming(flags, _engine_config(flags), streams=streams, rounds=rounds, tokens=tokens, progress=tell)
    table = _table(f"{figures.command}, {figures.streams} streams", figures.machine, "figure", "value")
    table.add_row("server CPU per event", f"{figures.server_us_per_event:.1f} us ({figures.server_us_per_token:.1f} per token)")
    table.add_row("client CPU per event, on the same machine", f"{figures.client_us_per_event:.1f} us")
    table.add_row("events, all together", f"{figures.events_per_second:.0f}/s of {figures.tokens_per_event:.2f} tokens")
    table.add_row("gap between events of a stream, median", f"{figures.gap_ms:.1f} ms")
    table.add_row("distance of gaps from their median, p99", f"{figures.jitter_p99_ms:.1f} ms")
    table.add_row("the same of the model's own text, of which white space waits", f"{figures.text_jitter_p99_ms:.1f} ms")
    table.add_row("a step's last event after its first, p99", f"{figures.spread_p99_ms:.1f} ms")
    table.add_row(f"{figures.compared_streams} streams over HTTP", f"{figures.http_tokens_per_second:.0f} tok/s")
    table.add_row(f"{figures.compared_streams} streams offline", f"{figures.offline_tokens_per_second:.0f} tok/s")
    return figures, [table, _marks(figures.marks)]


def _engine_config(flags: list[str]) -> EngineConfig:
    """The engine that `glm serve` runs with these flags."""
    from dataclasses import fields

    from typer.main import get_command

    from openglm.cli import serve
    from openglm.config.engine import EngineConfig

    app = typer.Typer(add_completion=False)
    app.command("serve", cls=serve.COMMAND_CLASS)(serve.command)
    given = get_command(app).make_context("serve", list(flags)).params
    return EngineConfig(**{field.name: given[field.name] for field in fields(EngineConfig) if field.name in given})


def _marks(marks: Sequence[Mark]) -> Table:
    table = _table(None, None, "mark", "measured", "aim", "")
    for mark in marks:
        value = "not measured" if mark.value is None else f"{mark.value:.3g}"
        table.add_row(mark.name, value, mark.aim, {True: "holds", False: "missed", None: ""}[mark.holds])
    return table


def _offline(model: Path | None, rounds: int | None, tokens: int, quick: bool, tell: Callable[[str], None]) -> tuple[object, list[Table]]:
    from openglm.bench.offline import STREAMS, measure_offline

    name = str(model) if model else None
    if quick:
        figures = measure_offline(name, streams=(1, 2), depths=(2,), rounds=rounds or 1, tokens=8, prefix_tokens=256, progress=tell)
    else:
        figures = measure_offline(name, rounds=rounds or 5, tokens=tokens, progress=tell)
    counts = [count for count in STREAMS if any(speed.streams == count for speed in figures.speeds)]
    title = f"glm bench offline, {figures.model}: tokens/s, median of {figures.rounds}"
    speeds = _table(title, figures.machine, "drafts", *(f"{count} stream{'s' * (count > 1)}" for count in counts))
    for variant in dict.fromkeys(speed.variant for speed in figures.speeds):
        medians = {speed.streams: speed.median for speed in figures.speeds if speed.variant == variant}
        speeds.add_row(variant, *(f"{medians[count]:.0f}" for count in counts))
    parts = _table(None, None, "figure", "value")
    total = sum(figures.step_ms.values())
    for part, milliseconds in figures.step_ms.items():
        parts.add_row(
            f"{part}, per step at {figures.step_streams} streams", f"{milliseconds:.3f} ms ({milliseconds / max(total, 1e-9):.1%})"
        )
    parts.add_row(f"first token, {figures.prefix_tokens} tokens shared, cold", f"{figures.first_token_cold_ms:.0f} ms")
    parts.add_row("the same, warm", f"{figures.first_token_warm_ms:.0f} ms")
    return figures, [speeds, parts, _marks(figures.marks)]


def _recovery(flags: list[str], streams: int, rounds: int, tell: Callable[[str], None]) -> tuple[object, list[Table]]:
    from openglm.bench.recovery import measure_recovery

    figures = measure_recovery(flags, streams=streams, rounds=rounds, progress=tell)
    table = _table(
        f"{figures.command}, engine killed under {streams} streams", figures.machine, "kill", "told", "last told", "ready", "answered"
    )
    for number, one in enumerate(figures.rounds, 1):
        times = (f"{seconds:.2f} s" for seconds in (one.last_told_s, one.ready_s, one.answered_s))
        table.add_row(str(number), f"{one.num_told} of {streams}", *times)
    table.caption = f"{figures.num_good} of {rounds}: everyone told within 1 s, ready within 10 s, the port open all the time"
    return figures, [table]


def _kernels(threads: int, weights: str, quick: bool, tell: Callable[[str], None]) -> tuple[object, list[Table]]:
    from openglm.bench.kernels import measure_kernels
    from openglm.config.engine import QUANTIZATIONS
    from openglm.errors import ConfigError

    known = ("bfloat16", *QUANTIZATIONS)
    if weights not in known:
        raise ConfigError(f"--weights must be one of {', '.join(known)}; got {weights!r}")
    settings: dict[str, Any] = {"threads": threads, "weights": weights, "progress": tell}
    if quick:
        figures = measure_kernels(("glm-nano",), rows=(1, 2), contexts=(128,), seconds=0.01, **settings)
    else:
        figures = measure_kernels(**settings)
    title = f"glm bench kernels, {figures.weights} weights, {figures.instruction_set}, {figures.threads} thread(s)"
    table = _table(title, figures.machine, "model", "op", "rows", "time", "GB/s", "of reading", "GFLOP/s", "of peak")
    for one in figures.figures:
        reading, flops = one.num_bytes / one.seconds, one.flops / one.seconds
        table.add_row(
            one.variant,
            one.op,
            str(one.rows),
            f"{one.seconds * 1e6:.0f} us",
            f"{reading / 1e9:.1f}" + ("" if one.cold else " *"),
            f"{reading / figures.read_bytes_per_second:.0%}",
            f"{flops / 1e9:.0f}",
            f"{flops / one.peak_flops:.0%}",
        )
    table.caption = (
        f"ceilings in this run: {figures.read_bytes_per_second / 1e9:.1f} GB/s, "
        f"{' and '.join(f'{peak / 1e9:.0f}' for peak in sorted({one.peak_flops for one in figures.figures}))} GFLOP/s by kind of product; "
        "* from a cache, at least in part"
    )
    return figures, [table]


def _peers(
    slice_: str,
    scale: int,
    threads: int,
    rounds: int,
    chosen: list[list[str]],
    out: Path,
    quick: bool,
    install: bool,
    tell: Callable[[str], None],
) -> tuple[object, list[Table]]:
    from openglm.bench.peers.report import ratios, tokens_per_second, write_report
    from openglm.bench.peers.run import ENGINES, QUICK_WORKLOADS, WORKLOADS, Plan, measure_peers

    engines, formats = chosen
    workloads = QUICK_WORKLOADS if quick else WORKLOADS
    plan = Plan(slice_, out, scale, threads, 1 if quick else rounds, engines or tuple(ENGINES), formats or None, workloads)
    figures = measure_peers(plan, install=install, progress=tell)
    for path in write_report(figures, out / (slice_ if scale == 1 else f"{slice_}-{scale}")):
        tell(f"written: {path}")
    rates = _table(f"glm bench peers, slice {slice_}, tokens/s", figures.setting.machine, "engine", *figures.workloads)
    for (engine, format), by_workload in tokens_per_second(figures).items():
        rates.add_row(f"{engine} {format}", *(f"{by_workload[w]:.1f}" if w in by_workload else "-" for w in figures.workloads))
    compared = _table(None, None, "openglm over its counterpart", *figures.workloads)
    for format, other, by_workload in ratios(figures):
        compared.add_row(f"{format} over {other}", *(f"{by_workload[w]:.2f}" if w in by_workload else "-" for w in figures.workloads))
    return figures, [rates, compared]


def _gpu(row: str | None, out: Path, rehearse: bool, minutes: float | None, tell: Callable[[str], None]) -> tuple[object, list[Table]]:
    import msgspec

    from openglm.bench.gpu.plan import ROWS, find_row
    from openglm.bench.gpu.run import measure_row
    from openglm.errors import ConfigError

    if row is None:
        raise ConfigError(f"glm bench gpu measures one row at a time: {', '.join(known.name for known in ROWS)}")
    figures = measure_row(row, out=out, rehearse=rehearse, minutes=minutes, progress=tell)
    report = out / f"{row}{'-rehearsal' if rehearse else ''}.json"
    report.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
    tell(f"written: {report}")
    columns = [column for column in find_row(row).columns if any(column.value in values for values in figures.cases.values())]
    title = f"glm bench gpu {row}, {figures.setting.gpu}, Triton {figures.setting.triton}"
    table = _table(title, figures.setting.machine, "case", *(column.header for column in columns))
    for case, values in figures.cases.items():
        cells = (column.form.format(column.scale * values[column.value]) if column.value in values else "" for column in columns)
        table.add_row(case, *cells)
    table.min_width = 80
    for case, reason in figures.failures.items():
        table.add_row(f"{case}: FAILED: {reason}")
    notes = [figures.note, figures.clocks]
    notes += [f"no time for {', '.join(figures.left)}; start again to go on"] * bool(figures.left)
    notes += ["interrupted; start again to go on"] * figures.interrupted
    table.caption = "\n".join(note for note in notes if note)
    return figures, [table, *([_marks(figures.marks)] if figures.marks else [])]


def _end_of(figures: object) -> None:
    """Tell a script by the exit status that a row was interrupted, or that a case failed."""
    from openglm.bench.gpu.figures import GpuFigures

    assert isinstance(figures, GpuFigures)
    if figures.interrupted or figures.failures:
        raise typer.Exit(130 if figures.interrupted else 1)


def _table(title: str | None, machine: Machine | None, first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(title=f"{title}  ({machine.cores} cores, {machine.cpu}, torch {machine.torch})" if machine else title)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
