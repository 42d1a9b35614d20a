"""What a narrower KV cache costs: log probabilities of glm-nano's own answers to held-out questions, by KV dtype.

The model is fp32 and reads the same tokens each time, so the KV dtype is the only difference. Run with `-s` for the figures.
"""

from functools import cache

import pytest
import torch

from openglm.checkpoint import load_model
from openglm.config.engine import model_directory
from openglm.eval.tasks import TASKS, draw_items
from openglm.model import ForwardContext, PagedBatch, allocate_kv
from openglm.ops import FP8, PAGE_SIZE
from openglm.text.template import render
from openglm.text.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(not (model_directory(None) / "config.json").is_file(), reason="the embedded model is not built yet")

NUM_PER_TASK = 2
ANSWER_TOKENS = 24


@cache
def nano():
    return load_model(model_directory(None), dtype=torch.float32, device="cpu")


def forward(tokens, kv, start):
    """Logits of `tokens` at positions from `start` on; pages of `kv` are used in order."""
    positions = torch.arange(start, start + len(tokens))
    num_pages = -(-(start + len(tokens)) // PAGE_SIZE)
    batch = PagedBatch((0, len(tokens)), (start + len(tokens),), torch.arange(num_pages)[None], positions, kv)
    model = nano()
    return model.logits(model(torch.tensor(tokens), ForwardContext(positions, batch)))


@cache
def answered():
    """(prompt, greedy answer) pairs, the answers with fp32 KV."""
    tokenizer = Tokenizer.from_dir(model_directory(None))
    items = [item for task in TASKS[:9] for item in draw_items(task, NUM_PER_TASK, 0)]
    pairs = []
    for item in items:
        prompt = tokenizer.encode_segments(render(item.prompt, "glm-4.5").segments)
        kv = allocate_kv(nano().config, -(-(len(prompt) + ANSWER_TOKENS) // PAGE_SIZE))
        answer = [int(forward(prompt, kv, 0)[-1].argmax())]
        while len(answer) < ANSWER_TOKENS and answer[-1] not in tokenizer.stop_ids:
            answer.append(int(forward(answer[-1:], kv, len(prompt) + len(answer) - 1)[0].argmax()))
        pairs.append((prompt, answer))
    return pairs


@cache
def log_probabilities(dtype):
    """Of every answer's positions: the whole distribution, in one table [positions, vocab]."""
    rows = []
    with torch.inference_mode():
        for prompt, answer in answered():
            tokens = prompt + answer[:-1]
            kv = allocate_kv(nano().config, -(-len(tokens) // PAGE_SIZE), dtype)
            rows.append(forward(tokens, kv, 0)[len(prompt) - 1 :].log_softmax(-1))
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("dtype", "mean", "highest", "agreement"),
    [(torch.float32, 1e-6, 1e-4, 1.0), (torch.bfloat16, 0.002, 0.2, 0.995), (FP8, 0.02, 1.5, 0.98)],
)
def test_log_probabilities_by_kv_dtype(dtype, mean, highest, agreement):
    with torch.inference_mode():
        chosen = torch.tensor([token for _, answer in answered() for token in answer])
    exact, found = log_probabilities(torch.float32), log_probabilities(dtype)
    difference = (found - exact).gather(1, chosen[:, None]).abs()
    divergence = (exact.exp() * (exact - found)).sum(-1)
    same = (found.argmax(-1) == chosen).double().mean()
    print(
        f"\n{dtype}: {len(chosen)} tokens of {len(answered())} answers, |logprob difference| mean {difference.mean():.2e} "
        f"max {difference.max():.2e}, KL mean {divergence.mean():.2e}, same greedy token {same:.2%}"
    )
    assert float(difference.mean()) <= mean and float(difference.max()) <= highest
    assert float(same) >= agreement
    if dtype == FP8:
        assert float(difference.mean()) > 0
