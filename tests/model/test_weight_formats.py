"""What rounding the weights costs in the end: logits of the embedded model on a conversation, per format, against fp32 weights.

The figures are those of `docs/architecture.md` ("Weight formats"); the limits here are a third above them.
"""

import pytest
import torch

from openglm.checkpoint import load_model, load_packed_model
from openglm.config.engine import model_directory
from openglm.engine.draft_check import check_text
from openglm.model import ForwardContext, GlmModel, PagedBatch, allocate_kv
from openglm.ops import PAGE_SIZE, cpu
from openglm.text.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(cpu.available() is None, reason="no native kernels on this machine")

# Error of a logit (root mean square) relative to the spread of a row's logits, and divergence of the next token's distribution in nats.
LIMITS = {"fp8": (0.147, 0.0263), "int8": (0.071, 0.0033), "w8a8": (0.078, 0.0068), "int4": (0.324, 0.158)}


@torch.inference_mode()
def logits(model: GlmModel, tokens: torch.Tensor, num_tokens: int) -> torch.Tensor:
    count = len(tokens)
    positions, pages = torch.arange(count), torch.arange(-(-count // PAGE_SIZE))
    kv = allocate_kv(model.config, len(pages), model.embed_tokens.dtype)
    batch = PagedBatch((0, count), (count,), pages.unsqueeze(0), positions, kv)
    return model.logits(model(tokens, ForwardContext(positions, batch, native=model.is_packed)))[:, :num_tokens].double()


@pytest.fixture(scope="module")
def conversation() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Tokens, their exact logits, and the size of the vocabulary in use."""
    tokenizer = Tokenizer.from_dir(model_directory(None))
    tokens = torch.tensor(check_text(tokenizer))
    exact = logits(load_model(model_directory(None), dtype=torch.float32), tokens, tokenizer.num_tokens)
    return tokens, exact, tokenizer.num_tokens


def difference(found: torch.Tensor, exact: torch.Tensor) -> tuple[float, float, float]:
    """(relative error of the logits, divergence in nats, share of positions with another likeliest token)."""
    error = (found - exact).square().mean().sqrt() / exact.std(1).mean()
    expected = exact.log_softmax(-1)
    divergence = (expected.exp() * (expected - found.log_softmax(-1))).sum(-1).mean()
    return float(error), float(divergence), float((found.argmax(-1) != exact.argmax(-1)).double().mean())


@pytest.mark.parametrize("to", LIMITS)
def test_logits_move_by_no_more_than_is_stated(conversation, to):
    tokens, exact, num_tokens = conversation
    found = logits(load_packed_model(model_directory(None), dtype=torch.float32, to=to), tokens, num_tokens)
    error, divergence, changed = difference(found, exact)
    print(f"{to}: error {error:.4f}, divergence {divergence:.5f}, other tokens {changed:.3f}")
    assert error <= LIMITS[to][0] and divergence <= LIMITS[to][1]


def test_without_rounding_only_the_order_of_sums_differs(conversation):
    tokens, exact, num_tokens = conversation
    found = logits(load_packed_model(model_directory(None), dtype=torch.float32), tokens, num_tokens)
    assert difference(found, exact)[0] <= 1e-4
