"""`glm train`: run a training recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[str, typer.Argument(help="What to train. `nano` is the embedded model, from scratch.")] = "nano",
    out: Annotated[Path, typer.Option(help="Folder of the run: settings, log, resumable state, finished model.")] = Path("runs/nano"),
    resume: Annotated[bool, typer.Option(help="Go on from the last saved step of the run in --out.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the whole run.")] = 5000,
    tokens_per_step: Annotated[int, typer.Option(min=64, help="Tokens in one step.")] = 6144,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 3e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights, data and tokenizer.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 means all cores.")] = 0,
) -> None:
    """Train a model from scratch on generated data.

    The run can be stopped at any time and continued with --resume; it then sees the data it would have seen.

      glm train nano --out runs/nano            about two hours on two cores
      glm train nano --out runs/try --steps 50  a few minutes, to see it work
    """
    import torch

    from openglm.config.train import TrainConfig
    from openglm.errors import ConfigError
    from openglm.train.nano import train_nano
    from openglm.train.progress import TrainingProgress

    if recipe != "nano":
        raise ConfigError(f"no recipe is called {recipe!r}; known: nano")
    if threads:
        torch.set_num_threads(threads)
    config = TrainConfig(num_steps=steps, tokens_per_step=tokens_per_step, learning_rate=learning_rate, seed=seed)
    with TrainingProgress(config.num_steps) as progress:
        model = train_nano(out, config, resume=resume, report=progress.show)
    typer.echo(f"The model is in {model}. Try it: glm chat {model}")
