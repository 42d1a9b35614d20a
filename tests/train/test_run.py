"""A whole run: it learns, it resumes to the same weights, several workers equal one, and it refuses to mix runs."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from openglm.checkpoint import load_model
from openglm.config.train import TrainConfig
from openglm.errors import DataError
from openglm.train.balance import RouterBalance
from openglm.train.loop import Trainer, learning_rate
from openglm.train.nano import export
from openglm.train.workers import Workers

CONFIG = TrainConfig(num_steps=6, tokens_per_step=300, warmup_steps=2, eval_every=100, eval_episodes=1, save_every=3, log_every=1, seed=3)


def open_run(folder, architecture, tokenizer, config=CONFIG, **options):
    (folder / "tokenizer.json").parent.mkdir(parents=True, exist_ok=True)
    return Trainer.open(folder, architecture, config, tokenizer, **options)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path, architecture, tokenizer):
    whole = open_run(tmp_path / "whole", architecture, tokenizer)
    whole.run(lambda line: None)

    class Killed(Exception):
        pass

    def die_at_five(line):
        if line["step"] == 5:
            raise Killed

    first = open_run(tmp_path / "parts", architecture, tokenizer)
    with pytest.raises(Killed):
        first.run(die_at_five)
    first.close()
    second = open_run(tmp_path / "parts", architecture, tokenizer, resume=True)
    assert second.step == 3
    second.run(lambda line: None)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    logs = [[json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()] for run in ("whole", "parts")]
    assert [line["step"] for line in logs[1]] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]


def test_loss_falls_and_the_exported_model_loads(tmp_path, architecture, tokenizer):
    config = replace(CONFIG, num_steps=12)
    trainer = open_run(tmp_path, architecture, tokenizer, config)
    (tmp_path / "tokenizer.json").write_text("{}")
    lines = []
    trainer.run(lines.append)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert "heldout/add" in lines[-1] and 0 <= lines[-1]["heldout/mtp_draft"] <= 1
    export(trainer, tmp_path / "model", logs=[tmp_path / "log.jsonl"])
    loaded = load_model(tmp_path / "model", dtype=torch.float32)
    for name, value in trainer.model.state_dict().items():
        rounded = value if "correction_bias" in name else value.bfloat16().float()
        assert torch.equal(rounded, loaded.state_dict()[name]), name


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, architecture, tokenizer):
    trainer = open_run(tmp_path, architecture, tokenizer)
    trainer.save()
    with pytest.raises(DataError, match="--resume"):
        open_run(tmp_path, architecture, tokenizer)
    with pytest.raises(DataError, match="another process"):
        open_run(tmp_path, architecture, tokenizer, resume=True)
    trainer.close()
    with pytest.raises(DataError, match=r"train\.seed: 3 there, 4 here"):
        open_run(tmp_path, architecture, tokenizer, replace(CONFIG, seed=4), resume=True)
    (tmp_path / "state.safetensors").write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"state\.safetensors"):
        open_run(tmp_path, architecture, tokenizer, resume=True)


def test_learning_rate_warms_up_and_ends_at_its_floor():
    config = TrainConfig(num_steps=1000, warmup_steps=10, learning_rate=1.0, final_lr_ratio=0.1)
    rates = [learning_rate(config, step) for step in range(1001)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and max(rates) == 1.0
    assert rates[1000] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_balance_makes_crowded_experts_less_attractive(architecture, tokenizer):
    trainer = Trainer(None, architecture, CONFIG, tokenizer, Workers())
    balance: RouterBalance = trainer.balance
    line = trainer._step(next(trainer._batches()))
    assert line["max_violation"] > 0 and not balance.routings
    assert set(balance.routers) == {1, 2, 3}  # two trunk layers and the MTP layer
    bias = balance.routers[1].e_score_correction_bias
    assert bool((bias.abs() <= CONFIG.bias_update_rate).all()) and bool(bias.any())


WORKER = """
import sys, torch
from pathlib import Path
from openglm.env import worker_place
from openglm.text.tokenizer import Tokenizer
from openglm.train.loop import Trainer
from openglm.train.workers import Workers
from openglm.config import ModelConfig
from openglm.config.train import TrainConfig
import itertools
import json
torch.set_num_threads(1)
folder = Path(sys.argv[1])
settings = json.loads((folder / "settings.json").read_text())
settings["adam_betas"] = tuple(settings["adam_betas"])
workers = Workers.join(*worker_place())
trainer = Trainer.open(
    folder / "run",
    ModelConfig.from_file(folder / "config.json"),
    TrainConfig(**settings),
    Tokenizer.from_file(folder / "tokenizer.json"),
    workers=workers,
)
trainer.run(lambda line: None)
workers.leave()
"""


def test_two_workers_train_like_one(tmp_path, architecture, tokenizer):
    import dataclasses

    from openglm.synth import corpus_sample
    from openglm.train.tokenizer import train_tokenizer

    config = replace(CONFIG, num_steps=2, save_every=2, tokens_per_step=900)
    single = open_run(tmp_path / "single", architecture, tokenizer, config)
    single.run(lambda line: None)
    (tmp_path / "settings.json").write_text(json.dumps(dataclasses.asdict(config)))
    (tmp_path / "config.json").write_text(json.dumps(architecture.to_hf()))
    (tmp_path / "tokenizer.json").write_text(train_tokenizer(corpus_sample(1, 400), num_tokens=512))
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(tmp_path)], env=environment, check=False, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    both = open_run(tmp_path / "run", architecture, tokenizer, config, resume=True)
    both.close()
    logs = [json.loads((tmp_path / run / "log.jsonl").read_text().splitlines()[-1]) for run in ("single", "run")]
    assert logs[0]["tokens"] == logs[1]["tokens"]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], abs=2e-3)
    for name, value in single.model.state_dict().items():
        if value.dim() > 1:
            difference = (value - both.model.state_dict()[name]).abs().mean() / value.abs().mean()
            assert float(difference) < 0.05, name
