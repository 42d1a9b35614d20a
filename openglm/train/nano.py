"""The recipe of `glm-nano`, the embedded model: tokenizer, architecture, three stages, export. One call does all of it.

`glm train nano --out DIR` is this file; the same seed on the same machine gives the same data, tokenizer and steps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from openglm.checkpoint import save_model
from openglm.config import ModelConfig, variant
from openglm.config.train import TrainConfig
from openglm.synth import corpus_sample
from openglm.text.tokenizer import Tokenizer
from openglm.train.drafting import DraftTrainer
from openglm.train.loop import Report, Trainer
from openglm.train.tokenizer import train_tokenizer
from openglm.train.workers import Workers

NUM_CORPUS_EPISODES = 20_000


def train_nano(folder: Path, config: TrainConfig, *, workers: Workers, resume: bool, report: Callable[[Report], None]) -> Path:
    """Train (or go on training) in `folder`; returns the folder of the finished model, `folder`/model."""
    tokenizer = _tokenizer(folder, config.seed)
    trainer = Trainer.open(folder, nano_config(tokenizer), config, tokenizer, workers=workers, resume=resume)
    trainer.run(report)
    done, stages = config.num_steps, [trainer]
    for name, kind, settings in (("refinement", Trainer, config.refining()), ("drafting", DraftTrainer, config.drafting())):
        if not settings.num_steps:
            continue
        place, source = folder / name, stages[-1].folder
        stage = kind.open(place, trainer.model.config, settings, tokenizer, workers=workers, resume=place.exists(), weights_from=source)
        stage.run(_counting_on(report, done))
        done += settings.num_steps
        stages.append(stage)
    target = folder / "model"
    if workers.is_first:
        export(stages[-1], target, logs=[stage.folder / "log.jsonl" for stage in stages])
    return target


def _counting_on(report: Callable[[Report], None], done: int) -> Callable[[Report], None]:
    """`report`, with the steps of earlier stages added."""
    return lambda line: report(line | {"step": done + line["step"]})


def nano_config(tokenizer: Tokenizer) -> ModelConfig:
    """The architecture with the stop and padding ids of this tokenizer."""
    return replace(variant("glm-nano"), eos_token_id=tuple(tokenizer.stop_ids), pad_token_id=tokenizer.endoftext)


def export(trainer: Trainer, target: Path, *, logs: Sequence[Path]) -> None:
    """Write the model in the official layout in bf16, with tokenizer, generation defaults and the logs of the stages."""
    config = trainer.model.config
    save_model(trainer.model, target, dtype=torch.bfloat16)
    run = logs[0].parent
    shutil.copyfile(run / "tokenizer.json", target / "tokenizer.json")
    for log in logs:
        name = "training" if log.parent == run else log.parent.name
        shutil.copyfile(log, target / f"{name}_log.jsonl")
    defaults = {"eos_token_id": list(config.eos_token_id), "pad_token_id": config.pad_token_id, "temperature": 0.0}
    (target / "generation_config.json").write_text(json.dumps(defaults, indent=2) + "\n", "utf-8")


def _tokenizer(folder: Path, seed: int) -> Tokenizer:
    """The run's tokenizer, trained if the folder has none. Every worker would train the same one, so a race is harmless."""
    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        definition = train_tokenizer(corpus_sample(seed, NUM_CORPUS_EPISODES), num_tokens=variant("glm-nano").vocab_size)
        part = folder / f"tokenizer.json.{os.getpid()}"
        part.write_text(definition, "utf-8")
        part.replace(path)
    return Tokenizer.from_file(path)
