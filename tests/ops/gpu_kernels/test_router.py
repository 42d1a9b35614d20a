from __future__ import annotations

import pytest
import torch

from openglm.ops import reference
from openglm.ops.triton.router import route


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("rows", "experts", "chosen", "shared"), [(0, 8, 2, 1), (3, 20, 4, 0), (7, 160, 8, 1)])
def test_routing_equals_the_reference(norm: bool, rows: int, experts: int, chosen: int, shared: int) -> None:
    make = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(*shape, generator=make) for shape in ((rows, 32), (experts, 32), (experts,)))
    ids, weights = route(x, weight, bias, num_experts_per_tok=chosen, norm_topk_prob=norm, scaling=2.5, num_shared=shared)
    expected = reference.experts.route(x, weight, bias, num_experts_per_tok=chosen, norm_topk_prob=norm, scaling=2.5)
    assert torch.equal(ids[:, :chosen].long(), expected.experts)
    assert ids[:, chosen:].tolist() == [list(range(experts, experts + shared))] * rows
    torch.testing.assert_close(weights[:, :chosen], expected.weights)
    assert bool((weights[:, chosen:] == 1).all())
