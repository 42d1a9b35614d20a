"""`glm eval nano` from the command line against a real engine (random weights: the path is tested, not the score)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from openglm.checkpoint import save_model
from openglm.cli.main import main
from openglm.config import variant
from openglm.model import GlmModel
from openglm.synth import corpus_sample
from openglm.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("untrained")
    config = variant("tiny-air")
    config = replace(config, vocab_size=1024, eos_token_id=(1023,), max_position_embeddings=1024)
    model = GlmModel(config)
    model.init_weights(0)
    save_model(model, folder)
    (folder / "tokenizer.json").write_text(train_tokenizer(corpus_sample(0, 800), num_tokens=1024), "utf-8")
    return folder


def _run(*arguments: str) -> int:
    try:
        code = main(["eval", *arguments])
    except SystemExit as stop:
        code = stop.code
    return int(code or 0)


def test_an_untrained_model_is_scored_reported_and_fails_strictly(untrained, tmp_path, capsys):
    paths = {"--json": tmp_path / "r.json", "--markdown": tmp_path / "r.md"}
    options = [str(part) for pair in paths.items() for part in pair]
    assert _run("nano", "--model", str(untrained), "--task", "add", "--per-task", "2", "--strict", *options) == 1
    data = json.loads(paths["--json"].read_text("utf-8"))
    assert data["tasks"]["add"]["accuracy"]["total"] == 2
    assert "add" in data["missed_targets"]
    assert "| add | 0.0%" in paths["--markdown"].read_text("utf-8")
    assert "held-out questions" in capsys.readouterr().out


def test_wrong_suite_task_and_folder_end_with_one_line(untrained, tmp_path, capsys):
    for arguments, said in (
        (("mega",), "no suite is called 'mega'"),
        (("nano", "--model", str(untrained), "--task", "addition"), "'addition'"),
        (("nano", "--model", str(tmp_path)), "config.json"),
    ):
        assert _run(*arguments) == 2
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error
