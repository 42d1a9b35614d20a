"""A trained MTP layer passes the check at load time, a broken one switches speculation off with one warning."""

import logging
import shutil
from pathlib import Path

import pytest
import torch

from openglm.checkpoint import load_model, save_model
from openglm.config.engine import EngineConfig, model_directory
from openglm.engine.draft_check import LOWEST_AGREEMENT, check_text, first_draft_agreement, what_is_wrong
from openglm.engine.loading import load_engine
from openglm.engine.mtp import MTPProposer
from openglm.text.tokenizer import Tokenizer

NANO = model_directory(None)


@pytest.fixture
def model():
    return load_model(NANO, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_dir(NANO)


def test_the_embedded_model_passes_by_a_wide_margin(model, tokenizer):
    agreement = first_draft_agreement(model, check_text(tokenizer), num_tokens=tokenizer.num_tokens)
    assert agreement > 2.5 * LOWEST_AGREEMENT
    assert what_is_wrong(model, tokenizer, max_tokens=4096) is None


DAMAGES = {
    "zero": lambda mtp: [p.zero_() for p in mtp.parameters()],
    "random": lambda mtp: [p.normal_(0, 0.02) for p in mtp.parameters() if p.dim() > 1],
    "halves of eh_proj swapped": lambda mtp: mtp.eh_proj.weight.copy_(mtp.eh_proj.weight.roll(mtp.eh_proj.weight.shape[0], 1)),
    "not finite": lambda mtp: mtp.norm.weight.fill_(float("nan")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_broken_layer_is_found(model, tokenizer, damage):
    torch.manual_seed(0)
    with torch.no_grad():
        damage(model.mtp)
    assert what_is_wrong(model, tokenizer, max_tokens=4096)
    assert what_is_wrong(model, tokenizer, max_tokens=20) is None, "too short a context for a verdict"


def test_a_broken_layer_turns_speculation_off_with_one_warning_unless_forced(model, tmp_path, caplog):
    with torch.no_grad():
        model.mtp.eh_proj.weight.zero_()
    directory = Path(shutil.copytree(NANO, tmp_path / "broken", ignore=shutil.ignore_patterns("*.safetensors")))
    save_model(model, directory)

    def load(**settings):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="openglm"):
            loaded = load_engine(EngineConfig(model=str(directory), max_model_len=256, max_num_seqs=2, threads=1, **settings))
        return loaded, [record.getMessage() for record in caplog.records if "speculation" in record.getMessage()]

    loaded, warnings = load()
    assert loaded.core.proposer is None and len(warnings) == 1
    assert "0%" in warnings[0] and "num_speculative_tokens" in warnings[0]
    assert any("num_speculative_tokens 0" in reason for reason in loaded.reasons)
    loaded, warnings = load(num_speculative_tokens=1)
    assert isinstance(loaded.core.proposer, MTPProposer) and warnings == []
