"""The recipe of `glm-nano`, the embedded model: tokenizer, architecture, run, export. One call does all of it.

`glm train nano --out DIR` is this file; the same seed on the same machine gives the same data, tokenizer and steps.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from openglm.checkpoint import save_model
from openglm.config import ModelConfig, variant
from openglm.config.train import TrainConfig
from openglm.synth import corpus_sample
from openglm.text.tokenizer import Tokenizer
from openglm.train.loop import Report, Trainer
from openglm.train.tokenizer import train_tokenizer

NUM_CORPUS_EPISODES = 20_000


def train_nano(folder: Path, config: TrainConfig, *, resume: bool, report: Callable[[Report], None]) -> Path:
    """Train (or go on training) in `folder`; returns the folder of the finished model, `folder`/model."""
    tokenizer = _tokenizer(folder, config.seed)
    trainer = Trainer.open(folder, nano_config(tokenizer), config, tokenizer, resume=resume)
    trainer.run(report)
    return export(trainer, folder / "model")


def nano_config(tokenizer: Tokenizer) -> ModelConfig:
    """The architecture with the stop and padding ids of this tokenizer."""
    return replace(variant("glm-nano"), eos_token_id=tuple(tokenizer.stop_ids), pad_token_id=tokenizer.endoftext)


def export(trainer: Trainer, target: Path) -> Path:
    """Write the model in the official layout in bf16, with tokenizer, generation defaults and training log."""
    config = replace(trainer.model.config, dtype="bfloat16")
    save_model(trainer.model, target, dtype="bfloat16")
    shutil.copyfile(trainer.folder / "tokenizer.json", target / "tokenizer.json")
    shutil.copyfile(trainer.folder / "log.jsonl", target / "training_log.jsonl")
    defaults = {"eos_token_id": list(config.eos_token_id), "pad_token_id": config.pad_token_id, "temperature": 0.0}
    (target / "generation_config.json").write_text(json.dumps(defaults, indent=2) + "\n", "utf-8")
    return target


def _tokenizer(folder: Path, seed: int) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        definition = train_tokenizer(corpus_sample(seed, NUM_CORPUS_EPISODES), num_tokens=variant("glm-nano").vocab_size)
        path.write_text(definition, "utf-8")
    return Tokenizer.from_file(path)
