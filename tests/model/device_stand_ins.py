"""The kernels that `openglm.ops.triton.layer` composes, written with the reference ops: the composition is tested without Triton.

Their signatures are those of the kernels. Where Triton is installed, `tests/ops/triton/test_layer.py` runs the same steps on the kernels.
"""

import sys
import types
from itertools import pairwise

import pytest
import torch

from openglm import ops
from openglm.ops.reference import norm

ROW_TILE = 16  # as with the kernels, a row does not depend on its company


class DeviceLinear:
    def __init__(self, weight, *, scales=None, bias=None, quantize_activations=False):
        assert (weight.dtype == ops.FP8) == (scales is not None)
        self.weight, self.scales, self.bias, self.quantize = weight, scales, bias, quantize_activations

    def _wide(self, x):
        weight = self.weight.float() if self.scales is None else self.weight.float() * self.scales.unsqueeze(1)
        return ops.linear(x.float(), weight, None if self.bias is None else self.bias.float(), row_tile=ROW_TILE)

    def __call__(self, x, residual=None):
        out = self._wide(x).to(x.dtype)
        return out if residual is None else residual + out

    def logits(self, x):
        return self._wide(x)

    def rounds(self, rows, dtype):
        return self.quantize and rows > 4  # what the kernels do with rounded rows is tested with them


class DeviceExperts:
    def __init__(self, gate_up, down, gate_up_scales, down_scales, *, router, router_bias, num_shared, **settings):
        self.gate_up, self.down = (
            w.float() if s is None else w.float() * s.unsqueeze(-1) for w, s in ((gate_up, gate_up_scales), (down, down_scales))
        )
        self.router, self.bias, self.num_shared, self.settings = router, router_bias, num_shared, settings
        assert len(gate_up) == len(down) == len(router) + num_shared

    def __call__(self, x, residual):
        ids, weights = route(x, self.router, self.bias, num_shared=self.num_shared, **self.settings)
        return residual + self.routed(x, weights, ids).to(x.dtype)

    def routed(self, x, weights, ids):
        total = torch.zeros(x.shape, dtype=torch.float32)
        for token, place in (ids < len(self.gate_up)).nonzero().tolist():
            expert = ids[token, place]
            hidden = ops.swiglu(ops.linear(x[token : token + 1].float(), self.gate_up[expert]))
            total[token] += weights[token, place] * ops.linear(hidden, self.down[expert])[0]
        return total


def route(x, weight, bias, *, num_shared, counters=None, **settings):
    routing = ops.route(x, weight, bias, **settings, row_tile=ROW_TILE)
    shared = torch.arange(len(weight), len(weight) + num_shared, dtype=torch.int32).expand(len(x), -1)
    return torch.cat([routing.experts.int(), shared], 1), torch.cat([routing.weights, torch.ones(len(x), num_shared)], 1)


def rope_and_write(qkv, *, num_heads, q_norm, k_norm, eps, rope_table, positions, slots, kv, bias=None):
    qkv = qkv if bias is None else qkv + bias
    settings = {"num_heads": num_heads, "q_norm": q_norm, "k_norm": k_norm, "eps": eps}
    kept = (slots >= 0).nonzero().flatten()
    out = qkv.new_zeros(len(qkv), num_heads, ops.kv_tensors(kv)[0].shape[-1])
    out[kept] = ops.rope_and_write(qkv[kept], **settings, rope=rope_table[positions[kept]], slots=slots[kept], kv=kv)
    return out


def paged_attention(queries, kv, batch, *, scale):
    num_requests, page_table = batch.num_requests, batch.page_table
    starts, lengths = batch.offsets[: num_requests + 1].tolist(), batch.offsets[num_requests + 1 :].tolist()
    assert all(b - a <= batch.max_query_len for a, b in pairwise(starts)) and max(lengths) <= batch.max_kv_len
    real = [r for r in range(num_requests) if lengths[r]]
    out = torch.zeros_like(queries)
    if not real:
        return out
    assert all(starts[r + 1] == starts[s] for r, s in pairwise(real)), "requests of length 0 stand behind the others"
    bounds = [starts[r] for r in real] + [starts[real[-1] + 1]]
    out[: bounds[-1]] = ops.paged_attention(
        queries[: bounds[-1]],
        kv,
        query_starts=bounds,
        kv_lengths=[lengths[r] for r in real],
        page_table=page_table[real],
        scale=scale,
        row_tile=ROW_TILE,
    )
    return out


@pytest.fixture
def stand_ins(monkeypatch):
    """`openglm.ops.triton.layer` imported anew on top of these."""
    for name, content in {
        "linear": {"DeviceLinear": DeviceLinear},
        "experts": {"DeviceExperts": DeviceExperts},
        "router": {"route": route, "tickets": lambda device: None},
        "norm": {"rms_norm": norm.rms_norm, "add_rms_norm": lambda x, r, *rest: (norm.rms_norm(x + r, *rest), x + r)},
        "rope": {"rope_and_write": rope_and_write},
        "attention": {"paged_attention": paged_attention},
    }.items():
        module = types.ModuleType(f"openglm.ops.triton.{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "openglm.ops.triton.layer", None)
    monkeypatch.delitem(sys.modules, "openglm.ops.triton.layer")
