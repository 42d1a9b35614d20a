from __future__ import annotations

from typing import Any

import pytest
import torch

from openglm.ops import reference
from openglm.ops.triton.router import route as route_with
from openglm.ops.triton.router import tickets

COUNTERS = tickets(torch.device("cpu"))


def route(*tensors: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    found = route_with(*tensors, **settings, counters=COUNTERS)
    assert not COUNTERS.any(), "the next launch finds them as this one did"
    return found


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("rows", "experts", "chosen", "shared"), [(0, 8, 2, 1), (3, 20, 4, 0), (7, 160, 8, 1), (17, 12, 3, 1)])
def test_routing_equals_the_reference(norm: bool, rows: int, experts: int, chosen: int, shared: int) -> None:
    make = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(*shape, generator=make) for shape in ((rows, 32), (experts, 32), (experts,)))
    ids, weights = route(x, weight, bias, num_experts_per_tok=chosen, norm_topk_prob=norm, scaling=2.5, num_shared=shared)
    expected = reference.experts.route(x, weight, bias, num_experts_per_tok=chosen, norm_topk_prob=norm, scaling=2.5)
    assert torch.equal(ids[:, :chosen].long(), expected.experts)
    assert ids[:, chosen:].tolist() == [list(range(experts, experts + shared))] * rows
    torch.testing.assert_close(weights[:, :chosen], expected.weights)
    assert bool((weights[:, chosen:] == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_choices_go_to_the_lowest_ids(dtype: torch.dtype) -> None:
    x, weight = torch.ones(2, 8, dtype=dtype), torch.zeros(6, 8, dtype=dtype)
    ids, weights = route(x, weight, torch.zeros(6), num_experts_per_tok=3, norm_topk_prob=True, scaling=1.5, num_shared=0)
    assert ids.tolist() == [[0, 1, 2]] * 2
    torch.testing.assert_close(weights, torch.full((2, 3), 0.5))


@pytest.mark.parametrize("rows", [3, 17])
def test_a_nan_token_has_valid_ids_and_spoils_no_other(rows: int) -> None:
    make = torch.Generator().manual_seed(2)
    x, weight, bias = (torch.randn(*shape, generator=make) for shape in ((rows, 32), (9, 32), (9,)))

    def routed() -> tuple[torch.Tensor, torch.Tensor]:
        return route(x, weight, bias, num_experts_per_tok=4, norm_topk_prob=True, scaling=1.0, num_shared=1)

    ids, weights = routed()
    x[1] = float("nan")
    spoiled_ids, spoiled = routed()
    assert spoiled_ids[1].tolist() == [0, 1, 2, 3, 9]
    assert bool(spoiled[1, :4].isnan().all())
    kept = [i for i in range(rows) if i != 1]
    assert torch.equal(spoiled_ids[kept], ids[kept])
    assert torch.equal(spoiled[kept], weights[kept])
