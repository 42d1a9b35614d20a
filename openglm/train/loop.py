"""The training loop: one batch, one backward, one optimizer step, and the record of it.

A run lives in one folder: `run.json` (settings), `tokenizer.json`, `log.jsonl` (one line per report), `state.safetensors`.
Started again in the same folder with `resume`, it goes on from the last saved step with the data of that step.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.config.train import TrainConfig
from openglm.errors import DataError
from openglm.model import ForwardContext, GlmModel
from openglm.synth import TASKS
from openglm.text.tokenizer import Tokenizer
from openglm.train.balance import RouterBalance
from openglm.train.data import Batch, heldout_batches, training_batch
from openglm.train.loss import pretrain_losses
from openglm.train.optimizers import build_optimizers
from openglm.train.score import teacher_forced_accuracy
from openglm.train.state import STATE_FILE, load_state, load_weights, save_state
from openglm.train.workers import Workers

Report = dict[str, float]
HELDOUT_SEED = 20_000  # far from any training seed; the held-out split is disjoint by construction anyway


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine from the peak to `final_lr_ratio` of it."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    floor = config.final_lr_ratio
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Trainer:
    """One run: model, optimizers, data and the folder it writes to."""

    def __init__(self, folder: Path, architecture: ModelConfig, config: TrainConfig, tokenizer: Tokenizer, workers: Workers) -> None:
        self.folder = folder
        self.config = config
        self.tokenizer = tokenizer
        self.workers = workers
        self.model = GlmModel(architecture).init_weights(config.seed)
        self.optimizers = build_optimizers(self.model, config)
        self.balance = RouterBalance(self.model)
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        self._lock: int | None = None  # descriptor of the folder's lock file, held as long as the run lives

    @classmethod
    def open(
        cls,
        folder: Path,
        architecture: ModelConfig,
        config: TrainConfig,
        tokenizer: Tokenizer,
        *,
        workers: Workers = Workers(),
        resume: bool = False,
        weights_from: Path | None = None,
    ) -> Trainer:
        """Start a run in `folder`, or take up the one that is there; refuses to mix two runs. A new run begins with the weights of
        the run in `weights_from`, else with random ones."""
        settings = {"model": architecture.to_hf(), "train": dataclasses.asdict(config)}
        record = folder / "run.json"
        started = (folder / STATE_FILE).exists()
        if started and not resume:
            raise DataError(f"{folder} already holds a run; add --resume to continue it, or choose another folder")
        if started:
            _refuse_other_settings(record, settings)
        trainer = cls(folder, architecture, config, tokenizer, workers)
        if workers.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            trainer._lock = _lock(folder)
        if started:
            progress = load_state(folder, trainer.model, trainer.optimizers)
            trainer.step, trainer.tokens, trainer.seconds = int(progress["step"]), int(progress["tokens"]), progress["seconds"]
        elif weights_from is not None:
            load_weights(weights_from, trainer.model)
        if workers.is_first:
            record.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
            _truncate_log(folder / "log.jsonl", trainer.step)
        return trainer

    def run(self, report: Callable[[Report], None]) -> None:
        """Train to the last step; `report` receives every line that goes to the log."""
        for batch in self._batches():
            started = time.monotonic()
            line = self._step(batch)
            self.step += 1
            self.tokens += int(line.pop("tokens"))
            self.seconds += time.monotonic() - started
            finished = self.step == self.config.num_steps
            evaluated = self.step % self.config.eval_every == 0 or finished
            if not self.workers.is_first:
                continue
            if evaluated:
                line |= {f"heldout/{task}": accuracy for task, accuracy in self.evaluate().items()}
            if evaluated or self.step % self.config.log_every == 0:
                line |= {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
                with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps({key: round(value, 5) for key, value in line.items()}) + "\n")
                report(line)
            if finished or self.step % self.config.save_every == 0:
                self.save()
        self.workers.meet()  # nobody reads the last state before the first worker has saved it

    def close(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def save(self) -> None:
        """Make the present step the one a resumed run starts from."""
        progress = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        save_state(self.folder, self.model, self.optimizers, progress)

    def evaluate(self) -> dict[str, float]:
        """Share of held-out episodes per task whose every trained token is the argmax; `mtp` is the draft's token accuracy."""
        batches = heldout_batches(self.tokenizer, list(TASKS), self.config.eval_episodes, HELDOUT_SEED, 2 * self.config.tokens_per_step)
        return teacher_forced_accuracy(self.model, batches)

    def loss(self, batch: Batch, totals: Tensor) -> tuple[Tensor, Report]:
        """What to descend on, this worker's share of the step's loss, and its parts by name, which add up over workers.

        `totals` are the step's loss weights of trunk and MTP layer, its tokens and its documents, over all workers.
        """
        mtp_weight, _ = self.config.phase(self.step / self.config.num_steps)
        ctx = ForwardContext.dense(batch.lengths, on_routing=self.balance.record)
        with torch.autocast("cpu", torch.bfloat16):
            losses = pretrain_losses(self.model, batch, ctx, totals[:2])
        balance = self.balance.loss(batch.document_of_token, len(batch.lengths)) * (len(batch.lengths) / totals[3])
        total = losses.trunk + mtp_weight * losses.mtp + self.config.balance_weight * balance
        return total, {"loss": float(losses.trunk.detach()), "mtp_loss": float(losses.mtp.detach())}

    def balance_routers(self) -> Report:
        """Move the routers' biases after a step; returns what to report of it."""
        _, rate = self.config.phase(self.step / self.config.num_steps)
        return {"max_violation": self.balance.update(rate, self.workers)}

    def _step(self, batch: Batch) -> Report:
        config = self.config
        started = time.monotonic()
        rate = learning_rate(config, self.step)
        totals = self.workers.sum(torch.cat([batch.weights.sum(0), torch.tensor([len(batch.tokens), len(batch.lengths)])]))
        loss, parts = self.loss(batch, totals)
        loss.backward()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.workers.sum_gradients(trained)
        norm = torch.nn.utils.clip_grad_norm_(trained, config.grad_clip)
        if not math.isfinite(float(norm)):
            raise DataError(f"step {self.step}: the gradient is not finite; resume from the last saved state with a lower learning rate")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        sums = self.workers.sum(torch.tensor(list(parts.values()))).tolist()
        return {
            **dict(zip(parts, sums, strict=True)),
            "grad_norm": float(norm),
            "learning_rate": rate,
            **self.balance_routers(),
            "tokens": float(totals[2]),
            "tokens_per_second": float(totals[2]) / (time.monotonic() - started),
        }

    def _batches(self) -> Iterator[Batch]:
        """Batches from the present step to the last, each prepared while the one before is trained on."""
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(training_batch, self.tokenizer, self.config, self.step, self.workers)
            for step in range(self.step, self.config.num_steps):
                batch = coming.result()
                if step + 1 < self.config.num_steps:
                    coming = pool.submit(training_batch, self.tokenizer, self.config, step + 1, self.workers)
                yield batch


def _lock(folder: Path) -> int:
    """Take the folder for this process; the system frees it when the process ends, however it ends."""
    lock = os.open(folder / "lock", os.O_CREAT | os.O_WRONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise DataError(f"{folder}: another process trains in this folder; wait for it, or choose another folder") from None
    return lock


def _refuse_other_settings(record: Path, settings: dict[str, Any]) -> None:
    """Raise `DataError` naming every setting in which the run of `record` differs."""
    try:
        former = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{record}: cannot be read as JSON: {error}") from None
    present = json.loads(json.dumps(settings))
    differences = [
        f"{part}.{key}: {former.get(part, {}).get(key)} there, {value} here"
        for part, values in present.items()
        for key, value in values.items()
        if former.get(part, {}).get(key) != value
    ]
    if differences:
        raise DataError(
            f"{record} describes a run with other settings ({'; '.join(differences)}); resume with those, or choose another folder"
        )


def _truncate_log(path: Path, step: int) -> None:
    """Drop what an interrupted run logged after its last saved step."""
    if path.exists():
        lines = [line for line in path.read_text("utf-8").splitlines() if line and json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in lines), "utf-8")
