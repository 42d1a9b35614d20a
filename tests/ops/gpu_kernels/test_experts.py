"""Experts on the device in the interpreter, against the reference in fp32 on the same (rounded) weights."""

from itertools import zip_longest

import pytest
import torch

from openglm.ops import FP8, reference
from openglm.ops.triton.experts import TILES, DeviceExperts, path_of
from openglm.ops.triton.tuning import tuner

H, M, EXPERTS, SLOTS = 40, 24, 6, 3
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def make(dtype=torch.float32, fp8=False, shared=1):
    """Experts, and their weights in fp32."""
    seed = torch.Generator().manual_seed(3)
    stack = EXPERTS + shared
    gate_up, down = (torch.randn(*shape, generator=seed) / 4 for shape in ((stack, 2 * M, H), (stack, H, M)))
    router, bias = torch.randn(EXPERTS, H, generator=seed), torch.randn(EXPERTS, generator=seed) / 9
    if fp8:
        scales = [w.abs().amax(-1) / 448 for w in (gate_up, down)]
        codes = [(w / s.unsqueeze(-1)).to(FP8) for w, s in zip((gate_up, down), scales, strict=True)]
        weights = [c.float() * s.unsqueeze(-1) for c, s in zip(codes, scales, strict=True)]
    else:
        scales, codes = [None, None], [gate_up.to(dtype), down.to(dtype)]
        weights = [c.float() for c in codes]
    settings = {"num_experts_per_tok": SLOTS, "norm_topk_prob": True, "scaling": 2.5}
    return DeviceExperts(*codes, *scales, router=router, router_bias=bias, num_shared=shared, **settings), weights, (router, bias, settings)


def expected(x, weights, ids, stacks):
    """Pair by pair; ids outside the stack add nothing."""
    out = torch.zeros(x.shape, dtype=torch.float32)
    for t, s in ((t, s) for t in range(ids.shape[0]) for s in range(ids.shape[1])):
        e = int(ids[t, s])
        if 0 <= e < stacks[0].shape[0]:
            gate, up = (stacks[0][e] @ x[t].float()).chunk(2)
            out[t] += weights[t, s] * (stacks[1][e] @ (torch.nn.functional.silu(gate) * up))
    return out


def inputs(tokens, dtype=torch.float32):
    seed = torch.Generator().manual_seed(tokens)
    return [torch.randn(tokens, H, generator=seed).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("tokens", [0, 1, 5, 19])
@pytest.mark.parametrize(
    ("dtype", "fp8"), [(torch.float32, False), (torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
def test_experts_with_a_shared_one_equal_the_reference(tokens, dtype, fp8):
    experts, (gate_up, down), (router, bias, settings) = make(dtype, fp8)
    x, residual = inputs(tokens, dtype)
    found = experts(x, residual)
    assert found.dtype == dtype
    if not tokens:
        assert found.shape == (0, H)
        return
    routing = reference.experts.route(x, router, bias, **settings)
    total = reference.experts.experts_mlp(x.float(), routing, gate_up[:EXPERTS], down[:EXPERTS])
    total += expected(x, torch.ones(tokens, 1), torch.full((tokens, 1), EXPERTS), (gate_up, down))
    wanted = residual.float() + total
    assert float((found.float() - wanted).abs().max() / wanted.abs().max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("tokens", [3, 35])
@pytest.mark.parametrize("kind", ["skewed", "one", "elsewhere"])
def test_any_routing_and_ids_that_live_elsewhere(tokens, kind):
    experts, stacks, _ = make(shared=0)
    x, _ = inputs(tokens)
    seed = torch.Generator().manual_seed(7)
    ids = torch.randint(-1, EXPERTS + 3, (tokens, SLOTS), generator=seed, dtype=torch.int32)
    if kind == "one":
        ids.fill_(4)
    elif kind == "skewed":
        ids = torch.where(ids < 5, 0, 5).int()
    weights = torch.rand(tokens, SLOTS, generator=seed)
    found = experts.routed(x, weights, ids)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected(x, weights, ids, stacks), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [4, 18])
def test_a_nan_spoils_no_other_token_and_none_where_its_experts_are_elsewhere(tokens):
    experts, _, _ = make(shared=0)
    x, _ = inputs(tokens)
    ids = torch.arange(tokens * SLOTS, dtype=torch.int32).view(tokens, SLOTS) % EXPERTS
    ids[1] = -1
    weights = torch.ones(tokens, SLOTS)
    clean = experts.routed(x, weights, ids)
    x[0], x[1], weights[1] = float("nan"), float("nan"), float("nan")
    found = experts.routed(x, weights, ids)
    assert found[0].isnan().all()
    assert not found[1].any()
    assert torch.equal(found[2:], clean[2:])


@pytest.mark.parametrize(("path", "tokens"), [("few", 3), ("some", 17), ("many", 130), ("prompt", 1030)])
def test_every_tile_gives_the_sum(monkeypatch, path, tokens):
    assert path_of(tokens) == path
    x, _ = inputs(tokens)
    seed = torch.Generator().manual_seed(9)
    ids = torch.randint(0, EXPERTS, (tokens, 1), generator=seed, dtype=torch.int32)
    weights = torch.rand(tokens, 1, generator=seed)
    for places in zip_longest(*(TILES[f"{path} {kind}"] for kind in ("gate_up", "down"))):
        for kind, tile in zip(("gate_up", "down"), places, strict=True):
            if tile is not None:
                monkeypatch.setitem(TILES, f"{path} {kind}", [tile])
        tuner.cache_clear()  # it remembers the choice of the round before
        experts, stacks, _ = make(fp8=True, shared=0)
        found = experts.routed(x, weights, ids)
        assert {tile for tile in places if tile is not None} <= set(experts._chosen.values())
        torch.testing.assert_close(found, expected(x, weights, ids, stacks), rtol=1e-4, atol=1e-5)
    tuner.cache_clear()


def test_tiles_of_a_path_share_the_height_that_pairs_are_sorted_into():
    for path in ("few", "some", "many", "prompt"):
        assert len({tile.rows for kind in ("gate_up", "down") for tile in TILES[f"{path} {kind}"]}) == 1
    assert [path_of(tokens) for tokens in (1, 16, 17, 128, 129, 1024, 1025, 1 << 20)] == [
        "few", "few", "some", "some", "many", "many", "prompt", "prompt",
    ]  # fmt: skip


def test_weights_that_do_not_fit_are_refused():
    stack = torch.zeros(2, 8, 4)
    with pytest.raises(ValueError, match="do not fit"):
        DeviceExperts(
            stack,
            stack,
            router=torch.zeros(2, 4),
            router_bias=torch.zeros(2),
            num_experts_per_tok=1,
            norm_topk_prob=True,
            scaling=1.0,
            num_shared=0,
        )


@pytest.mark.parametrize("tokens", [2, 17])
def test_widths_of_several_uneven_blocks_and_rows_without_regard_to_company(tokens):
    height, width = 530, 270
    seed = torch.Generator().manual_seed(5)
    stacks = [torch.randn(*shape, generator=seed) / 16 for shape in ((2, 2 * width, height), (2, height, width))]
    router, bias = torch.randn(2, height, generator=seed), torch.zeros(2)
    experts = DeviceExperts(*stacks, router=router, router_bias=bias, num_experts_per_tok=1, norm_topk_prob=True, scaling=1.0, num_shared=0)
    x, residual = (torch.randn(tokens, height, generator=seed) for _ in range(2))
    routing = reference.experts.route(x, router, bias, num_experts_per_tok=1)
    found = experts(x, residual)
    torch.testing.assert_close(found, residual + reference.experts.experts_mlp(x, routing, *stacks), rtol=1e-4, atol=1e-4)
    ids, weights = routing.experts.int(), routing.weights
    together = experts.routed(x, weights, ids)
    x[1:], ids[1:] = 0, 1 - ids[1:]
    assert torch.equal(experts.routed(x, weights, ids)[0], together[0])
