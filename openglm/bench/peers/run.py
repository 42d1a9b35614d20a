"""Who is measured when: round after round, every engine and format in a process of its own, one at a time.

A round visits all of them, forwards and backwards in turn, so that a machine that gets slower or faster favours none. Every figure is
appended to `results.jsonl` as soon as it is there; a run that is started again goes on where the last one stopped. Figures of other
settings or of another machine are left alone and not counted.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from openglm.bench.machine import Machine, this_machine
from openglm.bench.peers import environments
from openglm.bench.peers.cold_files import disk_bytes_per_second, forget, weight_files
from openglm.bench.peers.gguf_file import FORMATS as GGUF_FORMATS
from openglm.bench.peers.job import Job, Workload
from openglm.bench.peers.slices import make_checkpoint, slice_config
from openglm.errors import ConfigError

ENGINES: dict[str, tuple[str, ...]] = {
    "openglm": ("bf16", "fp8", "int8", "w8a8", "int4"),
    "llama.cpp": tuple(GGUF_FORMATS),
    "transformers": ("bf16 eager", "bf16 grouped_mm"),
}
WORKLOADS = (
    *(Workload("prefill", tokens) for tokens in (128, 512, 2048)),
    *(Workload("decode", context, batch) for context in (512, 8192) for batch in (1, 2, 4, 8, 16)),
)
QUICK_WORKLOADS = (Workload("prefill", 128), Workload("decode", 128, 1), Workload("decode", 128, 4))
_WORKER_TIMEOUT_S = 2 * 3600.0
_WORKERS = {
    name: f"openglm.bench.peers.{module}_worker" for name, module in zip(ENGINES, ("openglm", "llama", "transformers"), strict=True)
}


class Setting(msgspec.Struct, frozen=True):
    """What must be equal for two figures to belong to one comparison."""

    slice: str
    scale: int
    threads: int
    machine: Machine


class Figure(msgspec.Struct, frozen=True):
    """One measurement: seconds of a prompt or of one step."""

    setting: Setting
    engine: str
    format: str
    workload: str
    round: int
    seconds: float
    runs: int
    read_bytes_per_second: float | None = None
    """The ceilings of openglm's kernels, measured right after it: reading memory, and products of this format."""
    peak_flops: float | None = None
    experts_hit: float | None = None
    """Routed experts of a layer that a decoding step read, on average."""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What is not measured twice."""
        return self.engine, self.format, self.workload, self.round


class Load(msgspec.Struct, frozen=True):
    """What an engine said when it was ready."""

    setting: Setting
    engine: str
    format: str
    loaded_s: float
    version: str
    file_bytes: int
    """Of the weights on the disk, of which nothing was in memory before."""
    disk_bytes_per_second: float | None
    """Of the disk alone, measured just before."""


_Entry = TypeVar("_Entry", Figure, Load)


class PeerFigures(msgspec.Struct, frozen=True):
    """Everything that a report needs."""

    setting: Setting
    rounds: int
    workloads: tuple[str, ...]
    figures: tuple[Figure, ...]
    loads: tuple[Load, ...]
    missing: dict[str, str]
    """Engines that were not measured, and why."""
    failures: tuple[str, ...]
    """Workloads that an engine could not run."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and where its files are."""

    slice: str
    out: Path
    scale: int = 1
    threads: int = 1
    rounds: int = 3
    engines: Sequence[str] = tuple(ENGINES)
    formats: Sequence[str] | None = None
    workloads: Sequence[Workload] = WORKLOADS

    def __post_init__(self) -> None:
        """Refuse names that do not exist."""
        unknown = [engine for engine in self.engines if engine not in ENGINES]
        known = [format for formats in ENGINES.values() for format in formats]
        unknown += [format for format in self.formats or () if format not in known]
        if unknown:
            raise ConfigError(f"unknown: {', '.join(map(repr, unknown))[:200]}; engines {', '.join(ENGINES)}; formats {', '.join(known)}")

    @property
    def contestants(self) -> list[tuple[str, str]]:
        """(engine, format), in the order of a round."""
        chosen = [(engine, format) for engine in ENGINES if engine in self.engines for format in ENGINES[engine]]
        return [pair for pair in chosen if self.formats is None or pair[1] in self.formats]


def measure_peers(plan: Plan, *, install: bool = False, progress: Callable[[str], None]) -> PeerFigures:
    """Make what is not there yet - weights, files, on request llama.cpp - and measure what is not measured yet."""
    config = slice_config(plan.slice, plan.scale)
    setting = Setting(plan.slice, plan.scale, plan.threads, this_machine())
    folder = plan.out / (plan.slice if plan.scale == 1 else f"{plan.slice}-{plan.scale}")
    make_checkpoint(config, folder / "checkpoint", progress=progress)
    places, missing = _places(plan, install, progress)
    store, load_store = folder / "results.jsonl", folder / "loads.jsonl"
    done = {figure.key: figure for figure in _read(store, Figure) if figure.setting == setting}
    loads = {(load.engine, load.format): load for load in _read(load_store, Load) if load.setting == setting}
    failures: list[str] = []
    for number in range(plan.rounds):
        pairs = [pair for pair in plan.contestants if pair[0] in places]
        for engine, format in pairs if number % 2 == 0 else pairs[::-1]:
            left = tuple(w for w in plan.workloads if (engine, format, w.name, number) not in done)
            if not left:
                continue
            progress(f"round {number + 1} of {plan.rounds}: {engine}, {format}, {len(left)} workloads")
            place = places[engine]
            try:
                model = _model(engine, format, folder, place, plan.threads)
                files = weight_files(model)
                disk = disk_bytes_per_second(files[0])
                said = {"engine": engine, "format": format, "setting": setting}
                cold = {"file_bytes": forget(files), "disk_bytes_per_second": disk}
                job = Job(str(model), format, plan.threads, config.vocab_size, left)
                for line in _run_worker(engine, place, job):
                    if "loaded_s" in line:
                        loads[engine, format] = msgspec.convert(line | said | cold, Load)
                        _append(load_store, loads[engine, format])
                    elif "error" in line:
                        failures.append(f"{engine}, {format}, {line['workload']}: {line['error']}")
                    else:
                        figure = msgspec.convert(line | said | {"round": number}, Figure)
                        done[figure.key] = figure
                        _append(store, figure)
            except _WorkerFailed as error:
                failures.append(f"{engine}, {format}: {error}")
                progress(failures[-1])
    wanted = {workload.name for workload in plan.workloads}
    figures = tuple(f for f in done.values() if f.workload in wanted and f.round < plan.rounds and (f.engine, f.format) in plan.contestants)
    names = tuple(workload.name for workload in plan.workloads)
    return PeerFigures(setting, plan.rounds, names, figures, tuple(loads.values()), missing, tuple(failures))


def _places(plan: Plan, install: bool, progress: Callable[[str], None]) -> tuple[dict[str, environments.Environment], dict[str, str]]:
    places: dict[str, environments.Environment] = {}
    missing: dict[str, str] = {}
    for engine in plan.engines:
        place = environments.find(engine, plan.out)
        if place.python is None and install and engine == "llama.cpp":
            environments.install_llama(plan.out, progress)
            place = environments.find(engine, plan.out)
        if place.python is None:
            missing[engine] = place.missing
            progress(f"{engine} is left out: {place.missing}")
        else:
            places[engine] = place
    return places, missing


def _model(engine: str, format: str, folder: Path, place: environments.Environment, threads: int) -> Path:
    """The files of a contestant; those of llama.cpp are made on first use."""
    checkpoint = folder / "checkpoint"
    if engine != "llama.cpp":
        return checkpoint
    for needed in dict.fromkeys(("BF16", format)):
        target = folder / f"{needed}.gguf"
        if not target.exists():
            command = [str(place.python), "-m", "openglm.bench.peers.gguf_file", str(checkpoint), str(target), needed, str(threads)]
            done = subprocess.run(command, env=place.variables, capture_output=True, text=True, check=False)
            if done.returncode:
                raise _WorkerFailed(f"{target.name} could not be made: {_end_of(done.stderr)}")
    return folder / f"{format}.gguf"


class _WorkerFailed(Exception):
    """A worker ended badly; its message says how."""


def _run_worker(engine: str, place: environments.Environment, job: Job) -> Iterator[dict[str, object]]:
    """The lines of one worker process, as they come."""
    command = [str(place.python), "-m", _WORKERS[engine]]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=place.variables, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        said: list[bytes] = []
        listener = threading.Thread(target=lambda errors=process.stderr: said.append(errors.read()), daemon=True)
        listener.start()
        alarm = threading.Timer(_WORKER_TIMEOUT_S, process.kill)
        alarm.start()
        ended = False
        try:
            process.stdin.write(job.encode())
            process.stdin.close()
            for line in process.stdout:
                try:
                    found = json.loads(line)
                except ValueError:
                    continue  # something that the engine itself printed
                if isinstance(found, dict):
                    yield found
            ended = True
        except BrokenPipeError:
            ended = True  # it died before it read its job; how is told below
        finally:
            alarm.cancel()
            if not ended:
                process.kill()  # the caller lost interest
            code = process.wait()
            listener.join()
    if code:
        raise _WorkerFailed(f"the process ended with code {code}: {_end_of(b''.join(said).decode(errors='replace'))}")


def _end_of(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _read(store: Path, kind: type[_Entry]) -> Iterator[_Entry]:
    """What earlier runs found; a line that was cut off when one was stopped is passed over."""
    if not store.exists():
        return
    for line in store.read_bytes().splitlines():
        try:
            yield msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError:
            continue


def _append(store: Path, entry: Figure | Load) -> None:
    whole = not store.exists() or store.stat().st_size == 0 or store.read_bytes().endswith(b"\n")
    with store.open("ab") as file:
        file.write((b"" if whole else b"\n") + msgspec.json.encode(entry) + b"\n")
