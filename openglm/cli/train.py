"""`glm train`: run a training recipe."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from openglm.config.train import TrainConfig


def command(
    recipe: Annotated[str, typer.Argument(help="What to train. `nano` is the embedded model, from scratch.")] = "nano",
    out: Annotated[Path, typer.Option(help="Folder of the run: settings, log, resumable state, finished model.")] = Path("runs/nano"),
    resume: Annotated[bool, typer.Option(help="Go on from the last saved step of the run in --out.")] = False,
    steps: Annotated[
        int, typer.Option(min=1, help="Optimizer steps of the main stage; a short one that teaches drafting follows.")
    ] = TrainConfig.num_steps,
    tokens_per_step: Annotated[int, typer.Option(min=64, help="Tokens in one step, over all workers.")] = TrainConfig.tokens_per_step,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = TrainConfig.learning_rate,
    seed: Annotated[int, typer.Option(help="Seed of weights, data and tokenizer.")] = TrainConfig.seed,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes of one thread each; 0 means one per core.")] = 0,
) -> None:
    """Train a model from scratch on generated data.

    The run can be stopped at any time and continued with --resume; it then sees the data it would have seen.

      glm train nano --out runs/nano            about two hours and a half on two cores
      glm train nano --out runs/try --steps 50  a few minutes, to see it work
    """
    from openglm.env import worker_place
    from openglm.errors import ConfigError

    if recipe != "nano":
        raise ConfigError(f"no recipe is called {recipe!r}; known: nano")
    place = worker_place()
    if place is None:
        _launch(workers)
    else:
        _train(out, resume, steps, tokens_per_step, learning_rate, seed, *place)


def _launch(workers: int) -> None:
    """Run this very command line once per worker and end as they end; one that fails takes the others with it."""
    count = workers or len(os.sched_getaffinity(0))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    # Keep freed blocks: giving them back to the system costs 15 % of a step.
    memory = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
    command = [sys.executable, "-m", "openglm.cli.main", *sys.argv[1:]]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else the workers would outlive this process
    crew: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            crew.append(subprocess.Popen(command, env=os.environ | memory | meeting | {"RANK": str(rank)}))
        running = set(crew)
        while running and not any(worker.returncode for worker in crew):
            for worker in list(running):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.wait(0.2)
                    running.discard(worker)
    finally:
        for worker in crew:
            worker.terminate()
        for worker in crew:
            worker.wait()
    raise typer.Exit(max((abs(worker.returncode) for worker in crew if worker.returncode != -signal.SIGTERM), default=0))


def _train(out: Path, resume: bool, steps: int, tokens_per_step: int, learning_rate: float, seed: int, rank: int, count: int) -> None:
    import torch

    from openglm.config.train import TrainConfig
    from openglm.train.nano import train_nano
    from openglm.train.progress import TrainingProgress
    from openglm.train.workers import Workers

    torch.set_num_threads(1)
    config = TrainConfig(num_steps=steps, tokens_per_step=tokens_per_step, learning_rate=learning_rate, seed=seed)
    crew = Workers.join(rank, count)
    launcher = os.getppid()
    with TrainingProgress(config.num_steps + config.draft_steps) as progress:

        def report(line: dict[str, float]) -> None:
            if os.getppid() != launcher:  # it was killed; a worker must not go on unseen
                raise SystemExit("the command that started this worker has ended; continue with --resume")
            progress.show(line)

        model = train_nano(out, config, workers=crew, resume=resume, report=report)
    crew.leave()
    if crew.is_first:
        typer.echo(f"The model is in {model}. Try it: glm chat {model}")
