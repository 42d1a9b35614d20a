"""From episodes to token batches: whole documents, mixed kinds, no padding, addressable by step.

Batch `step` is a pure function of (seed, step), so a run that resumes sees exactly the data it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from openglm.config.train import TrainConfig
from openglm.synth import Episode, generate, mixture
from openglm.synth.invention import PieceRandom
from openglm.text.template import TemplateStyle, encode_training, render_training
from openglm.text.tokenizer import Tokenizer
from openglm.train.workers import Workers

STYLE: TemplateStyle = "glm-4.5"


@dataclass(frozen=True)
class Document:
    """One rendered conversation; `trained[i]` says that token i is the model's to produce."""

    task: str
    tokens: list[int]
    trained: list[bool]


@dataclass(frozen=True)
class Batch:
    """Documents end to end, T tokens. `targets[:, d]` is the token d + 1 further on (0 behind a document's end).

    `weights[:, d]` is the loss weight of predicting the token d + 1 further on; 0 where the document has no such token.
    """

    tokens: Tensor  # [T] int64
    targets: Tensor  # [T, 2] int64
    weights: Tensor  # [T, 2] fp32
    document_of_token: Tensor  # [T] int64
    lengths: tuple[int, ...]
    tasks: tuple[str, ...]

    @property
    def next_tokens(self) -> Tensor:
        """The token one further on [T]: what the trunk predicts and the MTP layer is given."""
        return self.targets[:, 0]


def document(tokenizer: Tokenizer, episode: Episode) -> Document:
    """Render and encode an episode exactly as inference would show it."""
    tokens, trained = encode_training(tokenizer, render_training(episode.conversation, STYLE))
    return Document(episode.task, tokens, trained)


def pack(documents: Sequence[Document], *, prompt_weight: float = 0.0) -> Batch:
    """Join documents; trained tokens weigh 1 in the loss, others `prompt_weight`."""
    tokens, targets, weights = [], [], []
    for doc in documents:
        ids = torch.tensor(doc.tokens)
        weight = torch.where(torch.tensor(doc.trained), 1.0, prompt_weight)
        tokens.append(ids)
        targets.append(torch.stack([_shift(ids, 1), _shift(ids, 2)], dim=1))
        weights.append(torch.stack([_shift(weight, 1), _shift(weight, 2)], dim=1))
    lengths = tuple(len(doc.tokens) for doc in documents)
    owners = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    tasks = tuple(doc.task for doc in documents)
    return Batch(torch.cat(tokens), torch.cat(targets), torch.cat(weights), owners, lengths, tasks)


def training_batch(tokenizer: Tokenizer, config: TrainConfig, step: int, workers: Workers = Workers()) -> Batch:
    """This worker's part of the batch of `step`: episodes drawn from the mixture of that point until the token budget is full."""
    progress = step / config.num_steps
    rng = PieceRandom(f"{config.seed}/{step}", letter_pieces(tokenizer))
    shares = mixture(config.mixture_from + (1 - config.mixture_from) * progress)
    documents: list[Document] = []
    total = 0
    while total < config.tokens_per_step or len(documents) < workers.count:
        task = rng.choices(list(shares), weights=list(shares.values()))[0]
        doc = document(tokenizer, generate(task, rng, "train"))
        if len(doc.tokens) <= config.max_document_tokens:
            documents.append(doc)
            total += len(doc.tokens)
    documents.sort(key=lambda doc: len(doc.tokens))  # equal work for every worker
    return pack(documents[workers.rank :: workers.count], prompt_weight=config.prompt_loss_weight(progress))


@cache
def letter_pieces(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The tokens of two or more small Latin letters, in the order of their ids."""
    texts = (tokenizer.decode([token]) for token in range(tokenizer.num_tokens))
    return tuple(text for text in texts if len(text) > 1 and text.isascii() and text.isalpha() and text.islower())


def heldout_batches(tokenizer: Tokenizer, tasks: Sequence[str], num_episodes: int, seed: int, tokens_per_batch: int) -> list[Batch]:
    """`num_episodes` held-out episodes per task, packed."""
    documents = []
    for task in tasks:
        rng = random.Random(f"{seed}/{task}")
        documents += [document(tokenizer, generate(task, rng, "heldout")) for _ in range(num_episodes)]
    batches: list[Batch] = []
    while documents:
        taken, total = [], 0
        while documents and total < tokens_per_batch:
            taken.append(documents.pop())
            total += len(taken[-1].tokens)
        batches.append(pack(taken))
    return batches


def _shift(values: Tensor, distance: int) -> Tensor:
    """values[i + distance] at place i, zeros behind the end."""
    shifted = torch.zeros_like(values)
    if distance < len(values):
        shifted[:-distance] = values[distance:]
    return shifted
