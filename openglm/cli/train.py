"""`glm train`: run a training recipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[str, typer.Argument(help="What to train. `nano` is the embedded model, from scratch.")] = "nano",
    out: Annotated[Path, typer.Option(help="Folder of the run: settings, log, resumable state, finished model.")] = Path("runs/nano"),
    resume: Annotated[bool, typer.Option(help="Go on from the last saved step of the run in --out.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the whole run.")] = 3000,
    tokens_per_step: Annotated[int, typer.Option(min=64, help="Tokens in one step, over all workers.")] = 8192,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 3e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights, data and tokenizer.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes of one thread each; 0 means one per core.")] = 0,
) -> None:
    """Train a model from scratch on generated data.

    The run can be stopped at any time and continued with --resume; it then sees the data it would have seen.

      glm train nano --out runs/nano            about two hours on two cores
      glm train nano --out runs/try --steps 50  a few minutes, to see it work
    """
    from openglm.env import worker_place

    place = worker_place()
    if place is None:
        _launch(workers)
    else:
        _train(recipe, out, resume, steps, tokens_per_step, learning_rate, seed, *place)


def _launch(workers: int) -> None:
    """Run this very command line once per worker, under torch's launcher."""
    count = workers or len(os.sched_getaffinity(0))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for variable in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):  # keep freed blocks: returning them costs 15 % of a step
        os.environ.setdefault(variable, str(2**30))
    os.execv(sys.executable, [*launcher, "-m", "openglm.cli.main", *sys.argv[1:]])


def _train(
    recipe: str, out: Path, resume: bool, steps: int, tokens_per_step: int, learning_rate: float, seed: int, rank: int, count: int
) -> None:
    import torch

    from openglm.config.train import TrainConfig
    from openglm.errors import ConfigError
    from openglm.train.nano import train_nano
    from openglm.train.progress import TrainingProgress
    from openglm.train.workers import Workers

    if recipe != "nano":
        raise ConfigError(f"no recipe is called {recipe!r}; known: nano")
    torch.set_num_threads(1)
    config = TrainConfig(num_steps=steps, tokens_per_step=tokens_per_step, learning_rate=learning_rate, seed=seed)
    crew = Workers.join(rank, count)
    with TrainingProgress(config.num_steps) as progress:
        model = train_nano(out, config, workers=crew, resume=resume, report=progress.show)
    crew.leave()
    if crew.is_first:
        typer.echo(f"The model is in {model}. Try it: glm chat {model}")
