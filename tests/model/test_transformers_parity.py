"""The trunk against transformers' `Glm4MoeForCausalLM`, on random models whose every weight matters.

The weights go the way of a real user: transformers draws and saves them, `load_model` reads what it wrote.
"""

import functools
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from paged_session import PagedSession

from openglm.checkpoint import load_model
from openglm.config import ModelConfig, variant
from openglm.model import ForwardContext, GlmModel

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

TOLERANCE = 2e-5
WIDE = ModelConfig(
    vocab_size=512,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=12,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=192,
    moe_intermediate_size=48,
    n_routed_experts=16,
    num_experts_per_tok=4,
    first_k_dense_replace=2,
    max_position_embeddings=1024,
    routed_scaling_factor=1.5,
    use_qk_norm=True,
    eos_token_id=(1,),
    pad_token_id=0,
    dtype="float32",
)
CONFIGS = {
    "tiny-air": variant("tiny-air"),
    "tiny-355b": variant("tiny-355b"),
    "wide": WIDE,
    "expert groups": replace(WIDE, n_group=4, topk_group=2, n_shared_experts=2, num_hidden_layers=3),
    "plain": replace(
        WIDE,
        use_qk_norm=False,
        attention_bias=False,
        norm_topk_prob=False,
        first_k_dense_replace=0,
        rope_theta=1e4,
        partial_rotary_factor=0.25,
    ),
    "all dense": replace(WIDE, first_k_dense_replace=4, partial_rotary_factor=1.0),
}
BOTH_SHAPES = ("tiny-air", "tiny-355b")
ALL = [(name, seed) for name in BOTH_SHAPES for seed in (0, 1, 2)] + [(name, 0) for name in CONFIGS if name not in BOTH_SHAPES]


@functools.cache
def pair(name: str, seed: int) -> tuple[torch.nn.Module, GlmModel]:
    """The same random model in transformers and here. Biases, norms and the router's bias are far from their neutral values."""
    data = replace(CONFIGS[name], num_nextn_predict_layers=0).to_hf()
    config = transformers.Glm4MoeConfig.from_dict(data, attn_implementation="eager", experts_implementation="eager")
    theirs = transformers.Glm4MoeForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in [*theirs.named_parameters(), *theirs.named_buffers()]:
            noise = torch.randn(value.shape, generator=generator)
            if key.endswith("e_score_correction_bias"):
                value.copy_(0.2 * noise)
            elif key.endswith("bias"):
                value.copy_(0.5 * noise)
            elif "norm" in key:
                value.copy_(1 + 0.3 * noise)
            elif "inv_freq" not in key:
                value.copy_(noise / value.shape[-1] ** 0.5)
        theirs.lm_head.weight.mul_(0.5)
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_model(Path(folder))
    return theirs, ours


def tokens_of(model: GlmModel, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def their_logits(theirs: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return theirs(input_ids=tokens[None], use_cache=False).logits[0]


def assert_equal_logits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.2, "logits so small that the tolerance proves nothing"
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("name", "seed"), ALL)
@pytest.mark.parametrize("row_tile", [None, 16])
@torch.no_grad()
def test_packed_documents_give_the_logits_of_each_document_alone(name, seed, row_tile):
    theirs, ours = pair(name, seed)
    documents = [tokens_of(ours, n, n) for n in (1, 65, 2, 64, 63, 17, 129)]
    hidden = ours(torch.cat(documents), ForwardContext.dense([len(d) for d in documents], row_tile=row_tile))
    logits = ours.logits(hidden, row_tile=row_tile).split([len(d) for d in documents])
    for document, got in zip(documents, logits, strict=True):
        assert_equal_logits(got, their_logits(theirs, document))


@pytest.mark.parametrize(("name", "seed"), ALL)
@torch.no_grad()
def test_every_layer_gives_the_same_hidden_states(name, seed):
    theirs, ours = pair(name, seed)
    tokens = tokens_of(ours, 70)
    outputs = []
    hooks = [layer.register_forward_hook(lambda *call: outputs.append(call[-1])) for layer in ours.layers]
    final = ours(tokens, ForwardContext.dense([len(tokens)]))
    for hook in hooks:
        hook.remove()
    expected = theirs(input_ids=tokens[None], use_cache=False, output_hidden_states=True).hidden_states
    for index, (got, want) in enumerate(zip([*outputs[:-1], final], expected[1:], strict=True)):
        scale = want.abs().max()
        assert (got - want[0]).abs().max() <= TOLERANCE * scale, f"layer {index}"


@pytest.mark.parametrize(("name", "seed"), [("tiny-air", 0), ("tiny-355b", 0), ("wide", 0), ("expert groups", 0), ("plain", 0)])
@pytest.mark.parametrize("row_tile", [None, 16])
@pytest.mark.parametrize("length", [63, 64, 65, 127, 128, 129])
@torch.no_grad()
def test_prefill_in_chunks_then_decode_over_pages_gives_the_uncached_logits(name, seed, row_tile, length):
    theirs, ours = pair(name, seed)
    decoded = 3
    session = PagedSession(ours, num_requests=3, max_length=length + decoded, seed=length, row_tile=row_tile)
    tokens = {r: tokens_of(ours, length + decoded, seed=10 * length + r) for r in range(3)}
    collected: dict[int, list[torch.Tensor]] = {r: [] for r in tokens}

    def step(spans: dict[int, tuple[int, int]]) -> None:
        hidden = session.trunk({r: tokens[r][a:b] for r, (a, b) in spans.items()}, {r: a for r, (a, _) in spans.items()})
        for r, states in hidden.items():
            collected[r].append(ours.logits(states, row_tile=row_tile))

    step({0: (0, length), 1: (0, 1), 2: (0, 60)})  # whole, one token, and a chunk that ends before the page does
    step({2: (60, length), 1: (1, length)})
    for position in range(length, length + decoded):
        step({1: (position, position + 1), 0: (position, position + 1), 2: (position, position + 1)})
    for r, parts in collected.items():
        assert_equal_logits(torch.cat(parts), their_logits(theirs, tokens[r]))


@pytest.mark.parametrize("name", BOTH_SHAPES)
@torch.no_grad()
def test_decoding_equals_transformers_decoding_with_its_own_cache(name):
    theirs, ours = pair(name, 0)
    tokens = tokens_of(ours, 68, seed=5)
    session = PagedSession(ours, num_requests=1, max_length=68)
    cache = transformers.DynamicCache(config=theirs.config)
    for first, last in [(0, 62), *((i, i + 1) for i in range(62, 68))]:
        want = theirs(input_ids=tokens[None, first:last], past_key_values=cache, use_cache=True).logits[0]
        got = ours.logits(session.trunk({0: tokens[first:last]}, {0: first})[0])
        assert_equal_logits(got, want)


@pytest.mark.parametrize("name", BOTH_SHAPES)
@torch.no_grad()
def test_positions_near_the_context_limit_agree(name):
    theirs, ours = pair(name, 1)
    tokens = tokens_of(ours, 20)
    positions = torch.arange(20) + ours.config.max_position_embeddings - 20
    want = theirs(input_ids=tokens[None], position_ids=positions[None], use_cache=False).logits[0]
    context = replace(ForwardContext.dense([20]), positions=positions)
    assert_equal_logits(ours.logits(ours(tokens, context)), want)


@pytest.mark.parametrize("name", BOTH_SHAPES)
@torch.no_grad()
def test_bf16_stays_close_to_transformers_in_fp32(name):
    """Rounded activations pick another expert for a few tokens, hence most tokens, not all."""
    theirs, ours = pair(name, 2)
    tokens = tokens_of(ours, 100)
    want = their_logits(theirs, tokens)
    low = GlmModel(ours.config, dtype=torch.bfloat16)
    low.load_state_dict(ours.state_dict())
    got = low.logits(low(tokens, ForwardContext.dense([100])))
    close = ((got - want).abs().amax(-1) < 0.1 * want.std()).float().mean()
    assert close > 0.8, f"only {close:.0%} of the tokens are close"
