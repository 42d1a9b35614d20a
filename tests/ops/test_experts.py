"""Router and experts against loops over single tokens."""

import pytest
import torch

from openglm import ops

HIDDEN, EXPERTS, WIDTH = 24, 8, 12


def naive_route(x, weight, bias, k, n_group, topk_group, norm, scaling):
    experts, weights = [], []
    for row in x.double():
        scores = torch.sigmoid(weight.double() @ row)
        choice = (scores + bias.double()).tolist()
        size = len(choice) // n_group
        groups = sorted(range(n_group), key=lambda g: -sum(sorted(choice[g * size : (g + 1) * size])[-2:]))[:topk_group]
        allowed = [e for e in range(len(choice)) if n_group == 1 or e // size in groups]
        chosen = sorted(sorted(allowed, key=lambda e: -choice[e])[:k])
        w = scores[chosen]
        weights.append((w / w.sum() if norm else w) * scaling)
        experts.append(torch.tensor(chosen))
    return torch.stack(experts), torch.stack(weights)


@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2)])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("row_tile", [None, 16])
def test_route_equals_a_loop_over_tokens(n_group, topk_group, norm, row_tile):
    generator = torch.Generator().manual_seed(n_group)
    x = torch.randn(50, HIDDEN, generator=generator)
    weight, bias = torch.randn(EXPERTS, HIDDEN, generator=generator) * 0.3, torch.randn(EXPERTS, generator=generator)
    routing = ops.route(
        x,
        weight,
        bias,
        num_experts_per_tok=3,
        n_group=n_group,
        topk_group=topk_group,
        norm_topk_prob=norm,
        scaling=2.5,
        row_tile=row_tile,
    )
    experts, weights = naive_route(x, weight, bias, 3, n_group, topk_group, norm, 2.5)
    assert torch.equal(routing.experts, experts)
    torch.testing.assert_close(routing.weights.double(), weights, atol=1e-6, rtol=1e-5)


def test_bias_moves_the_choice_and_not_the_weights():
    x, weight = torch.zeros(1, HIDDEN), torch.zeros(EXPERTS, HIDDEN)
    bias = torch.tensor([0.0, 0, 0, 0, 0, 9, 0, 9])
    routing = ops.route(x, weight, bias, num_experts_per_tok=2)
    assert routing.experts.tolist() == [[5, 7]]
    assert routing.weights.tolist() == [[0.5, 0.5]]


def test_router_stays_fp32_under_autocast():
    x, weight = torch.randn(9, HIDDEN), torch.randn(EXPERTS, HIDDEN)
    plain = ops.route(x, weight, torch.zeros(EXPERTS), num_experts_per_tok=2)
    with torch.autocast("cpu", torch.bfloat16):
        cast = ops.route(x, weight, torch.zeros(EXPERTS), num_experts_per_tok=2)
    assert torch.equal(plain.scores, cast.scores)


@pytest.mark.parametrize("row_tile", [None, 16])
def test_experts_equal_a_loop_over_pairs(row_tile):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(37, HIDDEN, generator=generator)
    gate_up = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=generator)
    down = torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator)
    bias = torch.tensor([5.0, 0, 0, 0, 0, 0, 0, -5])  # one crowded expert, one empty one
    routing = ops.route(x, torch.randn(EXPERTS, HIDDEN, generator=generator), bias, num_experts_per_tok=3)
    out = ops.experts_mlp(x, routing, gate_up, down, row_tile=row_tile)
    expected = torch.zeros(37, HIDDEN, dtype=torch.float64)
    for t in range(37):
        for e, w in zip(routing.experts[t], routing.weights[t], strict=True):
            gate, up = (gate_up[e].double() @ x[t].double()).chunk(2)
            expected[t] += w.double() * (down[e].double() @ (torch.nn.functional.silu(gate) * up))
    torch.testing.assert_close(out.double(), expected, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_and_linear_do_not_depend_on_batch_company(dtype):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(53, HIDDEN, generator=generator).to(dtype)
    gate_up = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=generator).to(dtype)
    down = torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator).to(dtype)
    router, bias = torch.randn(EXPERTS, HIDDEN, generator=generator), torch.zeros(EXPERTS)

    def run(rows):
        routing = ops.route(rows, router, bias, num_experts_per_tok=3, row_tile=16)
        return ops.experts_mlp(rows, routing, gate_up, down, row_tile=16)

    together, linear = run(x), ops.linear(x, gate_up[0], row_tile=16)
    for t in range(53):
        assert torch.equal(run(x[t : t + 1])[0], together[t])
        assert torch.equal(ops.linear(x[t : t + 1], gate_up[0], row_tile=16)[0], linear[t])


def test_balance_loss_is_one_for_uniform_routing_and_grows_with_collapse():
    scores = torch.full((8, 4), 0.5)
    uniform = ops.Routing(torch.tensor([[0, 1], [2, 3]] * 4), torch.ones(8, 2), scores)
    document_of_token = torch.tensor([0] * 4 + [1] * 4)
    assert float(ops.balance_loss(uniform, document_of_token, 2)) == pytest.approx(1.0)
    collapsed = ops.Routing(torch.tensor([[0, 1]] * 8), torch.ones(8, 2), torch.tensor([[0.9, 0.9, 0.1, 0.1]] * 8))
    assert float(ops.balance_loss(collapsed, document_of_token, 2)) == pytest.approx(1.8)
