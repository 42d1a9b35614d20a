"""Cheap accuracy during training: is every token that the model must produce its argmax?

For greedy decoding this equals exact match of the whole turn, without generating anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from openglm.model import ForwardContext, GlmModel
from openglm.train.data import Batch


@torch.no_grad()
def teacher_forced_accuracy(model: GlmModel, batches: Sequence[Batch]) -> dict[str, float]:
    """Share of documents per task with every trained token predicted; `mtp_draft` is the share of trained tokens the MTP layer guesses.

    Batches must have been packed with prompt weight 0.
    """
    right: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    drafts_right = drafts = 0.0
    for batch in batches:
        ctx = ForwardContext.dense(batch.lengths)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(batch.tokens, ctx)
            correct = model.logits(hidden).argmax(-1) == batch.targets[:, 0]
            if model.has_mtp:
                guess = model.logits(model.mtp_forward(batch.next_tokens, hidden, ctx)).argmax(-1)
                wanted = batch.weights[:, 1] > 0
                drafts_right += float((guess == batch.targets[:, 1])[wanted].sum())
                drafts += float(wanted.sum())
        wrong = (~correct & (batch.weights[:, 0] > 0)).split(list(batch.lengths))
        for task, errors in zip(batch.tasks, wrong, strict=True):
            seen[task] += 1
            right[task] += not bool(errors.any())
    accuracy = {task: right[task] / count for task, count in seen.items()}
    return accuracy | ({"mtp_draft": drafts_right / drafts} if drafts else {})
