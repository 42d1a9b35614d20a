"""The stage that teaches the MTP layer to draft from its own state."""

from dataclasses import replace

import pytest
import torch

from openglm.config.train import TrainConfig
from openglm.model import ForwardContext
from openglm.train.drafting import DraftTrainer
from openglm.train.loop import Trainer

CONFIG = TrainConfig(num_steps=8, tokens_per_step=400, warmup_steps=2, eval_every=100, eval_episodes=1, save_every=8, log_every=1, seed=3)


@pytest.fixture
def finished(tmp_path, architecture, tokenizer):
    trainer = Trainer.open(tmp_path, architecture, CONFIG, tokenizer)
    trainer.run(lambda line: None)
    return trainer


def drafting(trainer: Trainer, num_steps: int) -> DraftTrainer:
    config = replace(CONFIG, draft_steps=num_steps).drafting()
    return DraftTrainer.open(trainer.folder / "drafting", trainer.model.config, config, trainer.tokenizer, weights_from=trainer.folder)


def test_only_the_mtp_layer_changes_and_its_later_drafts_improve(finished):
    stage, lines = drafting(finished, 16), []
    batch = next(stage._batches())
    totals = torch.cat([batch.weights.sum(0), torch.tensor([len(batch.tokens), len(batch.lengths)])])
    unlearned = stage.loss(batch, totals)[1]
    stage.run(lines.append)
    learned = stage.loss(batch, totals)[1]
    before, after = finished.model.state_dict(), stage.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("mtp.") for name in changed)
    assert learned["mtp_loss"] < unlearned["mtp_loss"] - 0.02 and learned["loss"] < unlearned["loss"]
    assert {"heldout/draft_1", "heldout/draft_2", "heldout/draft_3"} <= lines[-1].keys()


def test_a_later_depth_is_given_the_layers_own_output_of_the_position_before(finished):
    stage = drafting(finished, 1)
    batch = next(stage._batches())
    first, second, _ = stage._chain(batch)
    start, length = sum(batch.lengths[:-1]), batch.lengths[-1]
    rows = slice(start, start + length)
    ctx = ForwardContext.dense([length])
    with torch.autocast("cpu", torch.bfloat16):
        hidden = stage.model(batch.tokens[rows], ctx)
        own = stage.model.mtp_forward(batch.next_tokens[rows], hidden, ctx)
        chained = stage.model.mtp_forward(batch.next_tokens[rows], torch.cat([hidden[:1], own[:-1]]), ctx)
    assert torch.allclose(first[rows], own, atol=0.05)
    assert torch.allclose(second[rows], chained, atol=0.05)
    assert not torch.allclose(second[rows], own, atol=0.05)
