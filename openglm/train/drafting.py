"""The last stage of a run: the MTP layer learns to draft several tokens from its own state, the trunk stays as it is.

Trained one token ahead, the layer is right nearly always, but a second draft, for which it is given its own output instead of
the trunk's state (see `engine.speculation`), is right only half as often. Here position q is given what the layer put out at
q - 1, again and again to `draft_depth`, and every depth has the same target t_{q+2}.

One thing differs from drafting: all positions of a depth attend to each other's keys, where the engine has keys of true
states for every position before the chain. Nothing but the MTP layer's own parameters changes, so no answer of the model does.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.config.train import TrainConfig
from openglm.model import ForwardContext
from openglm.text.tokenizer import Tokenizer
from openglm.train.data import Batch, heldout_batches
from openglm.train.loop import HELDOUT_SEED, Report, Trainer
from openglm.train.loss import weighted_sum
from openglm.train.optimizers import build_optimizers
from openglm.train.workers import Workers

_TASKS = ("tool_call", "tool_result", "no_tool", "add")


class DraftTrainer(Trainer):
    """A run that starts from the weights of a finished one."""

    def __init__(self, folder: Path, architecture: ModelConfig, config: TrainConfig, tokenizer: Tokenizer, workers: Workers) -> None:
        super().__init__(folder, architecture, config, tokenizer, workers)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith("mtp."))
        self.optimizers = build_optimizers(self.model, config)

    def loss(self, batch: Batch, totals: Tensor) -> tuple[Tensor, Report]:
        """The mean over depths of the drafts' cross-entropy; `loss` is that of the first, `mtp_loss` that of the last."""
        rows = batch.weights[:, 1].nonzero().squeeze(1)
        losses = [
            weighted_sum(self.model, drafted, batch.targets[:, 1], batch.weights[:, 1], rows) / totals[1].clamp(min=1e-6)
            for drafted in self._chain(batch)
        ]
        total = torch.stack(losses).mean()
        return total, {"loss": float(losses[0].detach()), "mtp_loss": float(losses[-1].detach())}

    def balance_routers(self) -> Report:
        """Routers keep their biases in this stage."""
        return {}

    @torch.no_grad()
    def evaluate(self) -> Report:
        """Share of held-out trained tokens that the draft of each depth gets right: `draft_1`, `draft_2`, ..."""
        config = self.config
        right, count = torch.zeros(config.draft_depth), 0.0
        for batch in heldout_batches(self.tokenizer, _TASKS, config.eval_episodes, HELDOUT_SEED, 2 * config.tokens_per_step):
            wanted = batch.weights[:, 1] > 0
            count += float(wanted.sum())
            for depth, drafted in enumerate(self._chain(batch)):
                right[depth] += (self.model.logits(drafted[wanted]).argmax(-1) == batch.targets[wanted, 1]).sum()
        return {f"draft_{depth + 1}": float(share) for depth, share in enumerate(right / max(1.0, count))}

    def _chain(self, batch: Batch) -> list[Tensor]:
        """The layer's outputs [T, H] at every depth, the first from the trunk's states."""
        ctx = ForwardContext.dense(batch.lengths)
        owners = batch.document_of_token
        opens = torch.cat([torch.ones(1, dtype=torch.bool), owners[1:] != owners[:-1]]).unsqueeze(1)  # a document's first position
        outputs: list[Tensor] = []
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                hidden = self.model(batch.tokens, ctx)
            state = hidden
            for _ in range(self.config.draft_depth):
                outputs.append(self.model.mtp_forward(batch.next_tokens, state, ctx))
                state = torch.where(opens, hidden, outputs[-1].roll(1, 0))
        return outputs
