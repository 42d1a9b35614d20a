"""Medians, ratios and floors of a run of `glm bench peers`, as Markdown, JSON and a plot."""

from __future__ import annotations

import html
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from openglm.bench.peers.run import PeerFigures
from openglm.bench.peers.slices import prefill_flops, slice_config, step_bytes

COUNTERPARTS = {
    "bf16": (("llama.cpp", ("BF16",)), ("transformers", ("bf16 eager", "bf16 grouped_mm"))),
    "fp8": (("llama.cpp", ("Q8_0",)), ("transformers", ("bf16 eager", "bf16 grouped_mm"))),
    "int8": (("llama.cpp", ("Q8_0",)), ("transformers", ("bf16 eager", "bf16 grouped_mm"))),
    "w8a8": (("llama.cpp", ("Q8_0",)), ("transformers", ("bf16 eager", "bf16 grouped_mm"))),
    "int4": (("llama.cpp", ("Q4_0",)), ("llama.cpp", ("Q4_K_M",))),
}
_BITS = {"bf16": (16.0, 16.0), "fp8": (8.0, 16.0), "int8": (8.0, 8.0), "w8a8": (8.0, 8.0), "int4": (4.25, 8.0)}  # of layers, of the head
_COLOURS = {"openglm": "#2563eb", "llama.cpp": "#d97706", "transformers": "#6b7280"}


def tokens_per_second(found: PeerFigures) -> dict[tuple[str, str], dict[str, float]]:
    """Median over the rounds, of all sequences together, by (engine, format) and workload."""
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for figure in found.figures:
        seconds.setdefault((figure.engine, figure.format, figure.workload), []).append(figure.seconds)
    rates: dict[tuple[str, str], dict[str, float]] = {}
    for (engine, format, workload), values in seconds.items():
        rates.setdefault((engine, format), {})[workload] = _tokens(workload) / statistics.median(values)
    return rates


def ratios(found: PeerFigures) -> list[tuple[str, str, dict[str, float]]]:
    """(format of openglm, whom it is compared with, ratio by workload); the best of several implementations counts."""
    rates = tokens_per_second(found)
    rows = []
    for format, others in COUNTERPARTS.items():
        own = rates.get(("openglm", format), {})
        for engine, formats in others:
            best = {w: max((rates.get((engine, f), {}).get(w, 0.0) for f in formats), default=0.0) for w in own}
            row = {workload: rate / best[workload] for workload, rate in own.items() if best[workload] > 0.0}
            if row:
                rows.append((format, f"{engine} {' / '.join(formats)}", row))
    return rows


def shares_of_ceilings(found: PeerFigures) -> dict[str, dict[str, float]]:
    """What openglm reaches of the ceilings measured right after each figure, by format and workload; medians over the rounds.

    Decoding: of the read bandwidth, with the bytes of the experts that were hit. Prompts: of the peak of this format's products.
    """
    config = slice_config(found.setting.slice, found.setting.scale)
    every: dict[str, dict[str, list[float]]] = {}
    for figure in found.figures:
        if figure.read_bytes_per_second is None or figure.peak_flops is None:
            continue
        shape = _decode_shape(figure.workload)
        if shape is not None:
            batch, context = shape
            moved = step_bytes(config, *_BITS[figure.format], batch, context, figure.experts_hit)
            share = moved / figure.seconds / figure.read_bytes_per_second
        else:
            share = prefill_flops(config, _tokens(figure.workload)) / figure.seconds / figure.peak_flops
        every.setdefault(figure.format, {}).setdefault(figure.workload, []).append(share)
    return {format: {workload: statistics.median(values) for workload, values in by.items()} for format, by in every.items()}


def markdown(found: PeerFigures) -> str:
    """The report as a page."""
    setting = found.setting
    machine = setting.machine
    rates = tokens_per_second(found)
    shape = slice_config(setting.slice, setting.scale)
    lines = [
        f"# glm bench peers: slice {setting.slice}" + (f", scaled down {setting.scale} times" if setting.scale > 1 else ""),
        "",
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {machine.system}; Python {machine.python}, "
        f"torch {machine.torch}, openglm {machine.openglm}. {setting.threads} threads each, medians of {found.rounds} rounds.",
        f"{shape.num_hidden_layers} layers, hidden {shape.hidden_size}, {shape.n_routed_experts} experts, vocabulary {shape.vocab_size}. "
        "All sequences of a decoding batch have their context in common and differ from then on.",
        "",
    ]
    if setting.scale > 1:
        lines += ["**Scaled down: these figures show that the tools work, and nothing about the engines.**", ""]
    lines += ["## Tokens per second, all sequences together", ""]
    lines += _table(("engine", "format"), found.workloads, [((e, f), by) for (e, f), by in rates.items()], "{:.1f}")
    lines += ["", "## Ratios: openglm over its counterpart", ""]
    lines += _table(("openglm", "over"), found.workloads, [((f, other), by) for f, other, by in ratios(found)], "{:.2f}")
    shares = shares_of_ceilings(found)
    if shares:
        lines += ["", "## Share of the ceilings measured right after each figure", ""]
        lines += ["Prompts: of the peak of this format's products. Decoding: of the read bandwidth, for the experts that were hit.", ""]
        lines += _table(("openglm", ""), found.workloads, [((f, ""), by) for f, by in shares.items()], "{:.0%}")
        peaks = [f.peak_flops for f in found.figures if f.peak_flops is not None]
        reading = [f.read_bytes_per_second for f in found.figures if f.read_bytes_per_second is not None]
        low, high = ([f"{end(values) / 1e9:.0f}" for values in (reading, peaks)] for end in (min, max))
        lines += ["", f"Ceilings: {low[0]} to {high[0]} GB/s, {low[1]} to {high[1]} GFLOP/s."]
    if found.loads:
        lines += ["", "## Loading", "", "With nothing of the files in memory; beside it, what the disk alone needs for them.", ""]
        lines += ["| engine | format | version | ready after | files | disk alone |", "|---|---|---|---:|---:|---:|"]
        for load in found.loads:
            speed = load.disk_bytes_per_second
            alone = "-" if speed is None else f"{load.file_bytes / speed:.1f} s at {speed / 1e9:.1f} GB/s"
            size = f"{load.file_bytes / 1e9:.1f} GB"
            lines.append(f"| {load.engine} | {load.format} | {_cell(load.version)} | {load.loaded_s:.1f} s | {size} | {alone} |")
    for title, problems in (("Not measured", [f"{k}: {v}" for k, v in found.missing.items()]), ("Failed", list(found.failures))):
        if problems:
            lines += ["", f"## {title}", "", *(f"- {_cell(problem)}" for problem in problems)]
    return "\n".join(lines) + "\n"


def plot(found: PeerFigures) -> str:
    """Bars of tokens per second as SVG, one group per workload, in which the fastest has full height."""
    rates = tokens_per_second(found)
    contestants = list(rates)
    bar, gap, height, left, top = 12, 26, 220, 20, 60
    group = bar * len(contestants) + gap
    width = left + max(1, len(found.workloads)) * group + 20
    total = top + height + 90 + 18 * len(contestants)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" font-family="sans-serif" font-size="11">']
    parts.append(f'<rect width="{width}" height="{total}" fill="white"/>')
    title = f"glm bench peers, slice {found.setting.slice}: tokens per second, each group on its own scale"
    parts.append(f'<text x="{left}" y="24" font-size="14">{html.escape(title)}</text>')
    for i, workload in enumerate(found.workloads):
        best = max((by.get(workload, 0.0) for by in rates.values()), default=0.0)
        x = left + i * group
        for j, who in enumerate(contestants):
            rate = rates[who].get(workload)
            if rate is None:
                continue
            tall = height * rate / best
            parts.append(
                f'<rect x="{x + j * bar}" y="{top + height - tall:.1f}" width="{bar - 2}" height="{tall:.1f}" fill="{_COLOURS[who[0]]}" '
                f'fill-opacity="{1 - 0.15 * _place(contestants, who):.2f}"><title>{html.escape(" ".join(who))}: {rate:.1f}</title></rect>'
            )
        parts.append(f'<text transform="translate({x + 6},{top + height + 12}) rotate(30)">{html.escape(workload)}</text>')
        parts.append(f'<text x="{x}" y="{top - 8}" fill="#374151">{best:.0f}</text>')
    for j, who in enumerate(contestants):
        y = top + height + 80 + 18 * j
        opacity = 1 - 0.15 * _place(contestants, who)
        parts.append(f'<rect x="{left}" y="{y}" width="12" height="12" fill="{_COLOURS[who[0]]}" fill-opacity="{opacity:.2f}"/>')
        parts.append(f'<text x="{left + 18}" y="{y + 10}">{html.escape(" ".join(who))}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def write_report(found: PeerFigures, folder: Path) -> list[Path]:
    """`report.md`, `report.json` and `report.svg` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"report.{kind}" for kind in ("md", "json", "svg")]
    paths[0].write_text(markdown(found), "utf-8")
    paths[1].write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    paths[2].write_text(plot(found), "utf-8")
    return paths


def _place(contestants: Sequence[tuple[str, str]], who: tuple[str, str]) -> int:
    return [one for one in contestants if one[0] == who[0]].index(who)


def _tokens(workload: str) -> int:
    shape = _decode_shape(workload)
    return shape[0] if shape is not None else int(workload.split()[1])


def _decode_shape(workload: str) -> tuple[int, int] | None:
    """(batch, context) of a decoding workload."""
    match = re.fullmatch(r"decode batch (\d+) context (\d+)", workload)
    return (int(match[1]), int(match[2])) if match else None


def _table(
    heads: tuple[str, str], columns: Sequence[str], rows: Sequence[tuple[tuple[str, str], dict[str, float]]], form: str
) -> list[str]:
    lines = [f"| {' | '.join((*heads, *columns))} |", "|---|---|" + "---:|" * len(columns)]
    for names, by_column in rows:
        cells = [form.format(by_column[c]) if c in by_column else "-" for c in columns]
        lines.append(f"| {' | '.join((*names, *cells))} |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
