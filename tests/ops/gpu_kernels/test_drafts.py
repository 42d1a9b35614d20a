"""Chains of drafts on the kernels themselves: recorded or not they are the same, bit for bit, and those of the layer called by itself."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "engine"))
from recorded_graphs import RecordedGraphs

from openglm.config import variant
from openglm.engine.draft_graphs import DraftGraphs, DraftInputs
from openglm.engine.graphs import StepGraphs
from openglm.model import ForwardContext, GlmModel, PagedBatch, allocate_kv

NUM_TOKENS = 200


@torch.inference_mode()
def test_ragged_chains_through_a_graph():
    model = GlmModel(variant("tiny-air")).init_weights(7)
    model.on_device().pack(lambda name: "float32")
    table = torch.tensor([[3, 1], [4, 6], [2, 5], [0, 0]])
    kv = allocate_kv(model.config, 7)
    settings = {"max_num_seqs": 3, "max_rows_each": 3, "max_model_len": 128, "row_tile": None}
    steps = StepGraphs(model, RecordedGraphs(), table=table, kv=kv, **settings)
    graphs = DraftGraphs(model.mtp.packed, steps, num_tokens=NUM_TOKENS)
    alone, other = kv[-1].clone(), [layer.clone() for layer in kv]
    hidden = torch.randn(6, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    inputs = DraftInputs([5, 9, 13, 100], [3, 0], [3, 1], [62, 7], [2, 1], [2, 0])
    found = graphs.draft(hidden, inputs)
    asked = {name: getattr(inputs, name) for name in ("tokens", "first_rows", "counts", "positions", "depths")}
    expected = model.mtp.packed.draft(hidden, **asked, page_table=table[[2, 0]], kv=alone, num_tokens=NUM_TOKENS)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1, 0], theirs[1, 0])
    assert torch.equal(kv[-1], alone) and not kv[-1][0].any()
    # the first sequence again, by the layer itself
    ids, states, start, count = torch.tensor([5, 9, 13]), hidden[3:6], 62, 3
    for step in range(2):
        at = torch.arange(start, start + count)
        slots = table[2, at // 64] * 64 + at % 64
        batch = PagedBatch((0, count), (start + count,), table[2:3], slots, other)
        states = model.mtp_forward(ids, states, ForwardContext(at, batch))[-1:]
        ids = model.logits(states)[:, :NUM_TOKENS].argmax(-1)
        assert int(found[0][0, step]) == int(ids)
        start, count = start + count, 1
    torch.testing.assert_close(kv[-1][2], other[-1][2])
