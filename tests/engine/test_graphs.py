"""Steps through graphs give the tokens and log probabilities of steps without, bit for bit."""

import pytest
import torch
from engine_runs import MACHINE, generate, make_core, preempt_often, tiny_model
from recorded_graphs import ReadsLengths, RecordedGraphs
from test_exactness import FEW_TOKENS, Model, alone, prompts, results

from openglm.config import variant
from openglm.config.engine import EngineConfig, resolve
from openglm.engine.core import EngineCore
from openglm.engine.graphs import Shape, StepGraphs
from openglm.engine.request import SamplingParams
from openglm.ops import cpu

MODELS = [Model("tiny-air", "float32"), *([Model("tiny-355b", "bfloat16", True)] if cpu.available() else [])]


def graph_core(model: Model, device: RecordedGraphs | None = None, **settings) -> EngineCore:
    asked = {"max_model_len": 512, "seed": 0, "deterministic": True, "native_kernels": model.native, **settings}
    config, _ = resolve(EngineConfig(dtype=model.dtype, **asked), variant(model.name), MACHINE)
    inner = tiny_model(model.name, model.dtype, native=model.native)
    return EngineCore(ReadsLengths(inner), config, num_tokens=FEW_TOKENS, graph_device=device or RecordedGraphs())  # type: ignore[arg-type]


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_graphs_change_no_token(model, depth):
    core = graph_core(model, num_speculative_tokens=depth)
    assert results(core) == alone(model)
    replays = core.runner.graphs.num_replays
    assert sum(replays.values()) > 10
    assert {shape.rows_each for shape in replays} <= set(range(1, depth + 2))
    assert max(shape.rows_each for shape in replays) == depth + 1


@pytest.mark.parametrize(("model", "depth"), [(MODELS[0], 2), (MODELS[-1], 3)])
def test_preempted_in_random_company_and_in_chunks_too(model, depth):
    core = graph_core(
        model, num_speculative_tokens=depth, max_model_len=192, kv_cache_tokens=448, max_num_batched_tokens=100, max_num_seqs=5
    )
    preempt_often(core, every=7)
    assert results(core) == alone(model)
    assert core.stats().num_preemptions > 0
    assert len(core.runner.graphs.num_replays) > 2, "several shapes were used"


def test_a_long_answer_enters_its_new_pages_through_the_graph():
    plain = make_core(num_tokens=FEW_TOKENS, num_speculative_tokens=1)
    core = graph_core(MODELS[0], num_speculative_tokens=1)
    asked = SamplingParams(max_tokens=150, temperature=0, ignore_eos=True)
    chosen = prompts()[:3]
    assert [o.token_ids for o in generate(core, chosen, asked)] == [o.token_ids for o in generate(plain, chosen, asked)]


def test_what_finds_no_memory_for_its_graph_runs_without():
    device = RecordedGraphs(out_of_memory_after=1)
    core = graph_core(MODELS[0], device, num_speculative_tokens=1)
    assert results(core) == alone(MODELS[0])
    assert device.num_captured == 1 == len(core.runner.graphs.num_replays)
    assert core.runner.graphs.memory_bytes == 1000


def test_recording_ahead_writes_no_kv_and_takes_all_shapes_of_short_contexts():
    device = RecordedGraphs()
    core = graph_core(MODELS[0], device, num_speculative_tokens=1, max_num_seqs=6)
    core.runner.graphs.record_all()
    assert set(core.runner.graphs.num_replays) == {Shape(r, q, 512) for r in (1, 2, 4, 6) for q in (1, 2)}
    assert device.used_bytes() == core.runner.graphs.memory_bytes == 8000
    assert all(not layer.any() for layer in core.runner.kv)
    assert results(core) == alone(MODELS[0])
    assert device.num_captured == 8, "no shape was recorded twice"
    assert device.waits > 0, "staging memory is not written before it was read"


def test_shapes_cover_every_batch_with_the_smallest_and_nothing_beyond():
    graphs = StepGraphs(
        tiny_model(), RecordedGraphs(), table=torch.zeros(49, 1024, dtype=torch.int64), kv=(), max_num_seqs=48, max_rows_each=4,
        max_model_len=50_000, row_tile=None,
    )  # fmt: skip
    assert graphs.shape_of(1, 1, 1) == (1, 1, 2048)
    assert graphs.shape_of(33, 4, 2049) == (48, 4, 8192)
    assert graphs.shape_of(3, 2, 40_000) == (4, 2, 50_000)
    for beyond in ((49, 1, 1), (1, 5, 1), (1, 1, 50_001), (0, 1, 1)):
        assert graphs.shape_of(*beyond) is None


def test_without_a_gpu_there_are_no_graphs():
    assert make_core().runner.graphs is None
