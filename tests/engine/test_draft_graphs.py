"""Chains of drafts through graphs are the chains without, bit for bit: drafts, logits and pages, at ragged depths and with padding."""

import random
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from engine_runs import MACHINE, generate
from recorded_graphs import RecordedGraphs

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from device_stand_ins import stand_ins  # noqa: F401

from openglm.config import variant
from openglm.config.engine import EngineConfig, resolve
from openglm.engine.core import EngineCore
from openglm.engine.draft_graphs import DraftGraphs, DraftInputs, DraftShape
from openglm.engine.graphs import StepGraphs
from openglm.engine.request import SamplingParams
from openglm.model import GlmModel, allocate_kv

SEQUENCES, PAGES, NUM_TOKENS = 5, 4, 200


def on_device() -> GlmModel:
    model = GlmModel(variant("tiny-air")).init_weights(7)
    model.on_device().pack(lambda name: "float32")
    return model


def graphs_of(model: GlmModel, device: RecordedGraphs | None = None) -> tuple[DraftGraphs, StepGraphs]:
    pages = torch.randperm(SEQUENCES * PAGES, generator=torch.Generator().manual_seed(1)).view(SEQUENCES, PAGES) + 1
    steps = StepGraphs(
        model,
        device or RecordedGraphs(),
        table=torch.cat([pages, torch.zeros(1, PAGES, dtype=torch.int64)]),
        kv=allocate_kv(model.config, SEQUENCES * PAGES + 1),
        max_num_seqs=SEQUENCES,
        max_rows_each=4,
        max_model_len=PAGES * 64,
        row_tile=None,
    )
    return DraftGraphs(model.mtp.packed, steps, num_tokens=NUM_TOKENS), steps


def random_call(rng: random.Random, num: int, *, rows: int) -> tuple[torch.Tensor, DraftInputs]:
    """States of a step, of which every sequence settled a part, in any order."""
    counts = [rng.randint(1, rows) for _ in range(num)]
    depths = sorted((rng.randint(1, 3) for _ in range(num)), reverse=True)
    order = rng.sample(range(num), num)
    firsts = dict(zip(order, accumulate((counts[r] + 1 for r in order), initial=0), strict=False))
    positions = [rng.choice((0, 61, 62, 63, 100, 256 - counts[r] - depths[r])) for r in range(num)]
    tokens = [rng.randrange(NUM_TOKENS) for _ in range(sum(counts))]
    hidden = torch.randn(sum(counts) + num, variant("tiny-air").hidden_size, generator=torch.Generator().manual_seed(rng.randrange(1000)))
    return hidden, DraftInputs(tokens, [firsts[r] for r in range(num)], counts, positions, depths, rng.sample(range(SEQUENCES), num))


@pytest.mark.usefixtures("stand_ins")
@torch.inference_mode()
def test_graphs_draft_what_single_calls_draft_and_write_the_same_pages():
    model, rng = on_device(), random.Random(4)
    graphs, steps = graphs_of(model)
    alone = steps.kv[-1].clone()
    for num, rows in ((1, 1), (3, 1), (2, 4), (5, 3), (4, 4), (1, 4)):
        hidden, inputs = random_call(rng, num, rows=rows)
        found = graphs.draft(hidden, inputs)
        asked = {name: getattr(inputs, name) for name in ("tokens", "first_rows", "counts", "positions", "depths")}
        expected = model.mtp.packed.draft(hidden, **asked, page_table=steps.table[inputs.table_rows], kv=alone, num_tokens=NUM_TOKENS)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == theirs.shape == (num, inputs.depths[0])
            for r, depth in enumerate(inputs.depths):
                assert torch.equal(ours[r, :depth], theirs[r, :depth])
        assert torch.equal(steps.kv[-1], alone)
        assert int(found[0].max()) < NUM_TOKENS
    assert not alone[0].any(), "nobody's page stays empty"
    assert sum(graphs.num_replays.values()) == 6


@pytest.mark.usefixtures("stand_ins")
def test_recording_ahead_writes_nothing_and_counts_its_memory():
    device = RecordedGraphs()
    graphs, steps = graphs_of(on_device(), device)
    graphs.record_all()
    assert set(graphs.num_replays) == {DraftShape(r, q, d, 256) for r in (1, 2, 4, 5) for q in (1, 4) for d in (1, 2, 3)}
    assert steps.memory_bytes == 1000 * device.num_captured == 24_000
    assert not any(layer.any() for layer in steps.kv)


@pytest.mark.usefixtures("stand_ins")
def test_what_no_graph_holds_runs_without():
    graphs, _ = graphs_of(on_device(), RecordedGraphs(out_of_memory_after=0))
    hidden, inputs = random_call(random.Random(1), 2, rows=2)
    assert graphs.draft(hidden, inputs) is None, "there is no memory for it"
    for counts, positions, depths in (([5], [0], [1]), ([1], [0], [4]), ([1], [255], [2])):
        assert graphs.shape_of(DraftInputs([0] * counts[0], [0], counts, positions, depths, [0])) is None


def core_of(model: GlmModel, device: RecordedGraphs | None) -> EngineCore:
    asked = {"max_model_len": 192, "seed": 0, "deterministic": True, "native_kernels": False, "num_speculative_tokens": 3}
    config, _ = resolve(EngineConfig(dtype="float32", max_num_seqs=4, **asked), variant("tiny-air"), MACHINE)
    return EngineCore(model, config, num_tokens=24, graph_device=device)  # type: ignore[arg-type]


@pytest.mark.usefixtures("stand_ins")
def test_an_engine_drafts_the_same_with_graphs_and_without():
    model, rng = on_device(), random.Random(5)
    prompts = [[rng.randrange(24) for _ in range(n)] for n in (3, 62, 20)]
    params = [SamplingParams(max_tokens=n, temperature=0, logprobs=1, ignore_eos=True) for n in (5, 12, 8)]
    plain, device = core_of(model, None), RecordedGraphs()
    core = core_of(model, device)
    expected, found = generate(plain, prompts, params), generate(core, prompts, params)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.token_ids, ours.logprobs, ours.num_drafted) == (theirs.token_ids, theirs.logprobs, theirs.num_drafted)
    replays = core.proposer.graphs.num_replays
    assert sum(replays.values()) > 3 and plain.proposer.graphs is None
    assert len({shape.depth for shape in replays}) > 1, "depths end with the answers"
