"""Decoding ahead of the host changes nothing but time: tokens, log probabilities, endings and pages are the same, whatever happens."""

import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from types import SimpleNamespace

import constrained_runs
import pytest
import torch
from engine_runs import MACHINE, drain, generate, merged, preempt_often, tiny_model
from recorded_graphs import ReadsLengths, RecordedGraphs
from test_device_sampler import CountsWaits, HostKernel
from test_fault_injection import Bomb, Text

from openglm.config import variant
from openglm.config.engine import EngineConfig, kv_token_bytes, resolve
from openglm.engine.constraint import Constraint
from openglm.engine.core import EngineCore
from openglm.engine.draft_depth import Candidate, FixedDepth
from openglm.engine.loading import stop_ids, thinking_tokens, vocabulary_of
from openglm.engine.request import EngineOutput, GenerationRequest, SamplingParams, siblings
from openglm.engine.scheduling import SchedulingParams
from openglm.ops import cpu, kv_tensors
from openglm.text.detokenizer import IncrementalDetokenizer

PATIENT = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, logprobs=1)


def make_core(*, overlap: bool = True, detokenizer=None, clock=None, kernel=None, model=None, **settings) -> EngineCore:
    """Over the tiny model, with stand-ins for graphs and sampling."""
    asked = {"max_model_len": 512, "seed": 0, "deterministic": True, "native_kernels": False, "num_speculative_tokens": 0, **settings}
    config, _ = resolve(EngineConfig(dtype="float32", overlap_scheduling=overlap, **asked), variant("tiny-air"), MACHINE)
    return EngineCore(
        model or ReadsLengths(tiny_model()),  # type: ignore[arg-type]
        config,
        detokenizer=detokenizer,
        clock=clock or (lambda: 0.0),
        graph_device=RecordedGraphs(),
        sample_kernel=kernel or HostKernel(),
    )


def device(core: EngineCore) -> RecordedGraphs:
    return core.runner.graphs.device


class Sometimes(FixedDepth):
    """Drafts in three steps of ten."""

    def __init__(self, depth: int) -> None:
        super().__init__(depth)
        self._depth, self._step = depth, 0

    def rests(self) -> bool:
        self._step += 1
        return self._step % 10 > 3

    def choose(self, candidates, context):
        return [min(self._depth, candidate.room) for candidate in candidates]


@dataclass
class Run:
    """What came of a workload, and the engine afterwards."""

    core: EngineCore
    outputs: dict[str, EngineOutput] = field(default_factory=dict)
    num_preempted: int = 0

    def answers(self, *, drafts: bool, cached: bool) -> dict[str, tuple]:
        return {
            name: (
                o.token_ids, o.logprobs, o.prompt_logprobs, o.finish_reason, o.stop_reason, o.stop_logprobs, o.error, o.num_prompt_tokens,
                (o.num_drafted, o.num_accepted) if not drafts else None, (o.num_cached_tokens, o.cache_outcome) if cached else None,
            )
            for name, o in self.outputs.items()
        }  # fmt: skip

    def published(self) -> dict[str, list[torch.Tensor]]:
        """Content of the cached pages by key."""
        pages = self.core.scheduler.pool._page_of
        return {key: [tensor[page] for layer in self.core.runner.kv for tensor in kv_tensors(layer)] for key, page in pages.items()}


def workload_core(*, overlap: bool, depth: int, clock: Callable[[], float], **settings) -> EngineCore:
    tokenizer, model = constrained_runs.tokenizer(), constrained_runs.random_model()
    asked = {"max_model_len": 256, "seed": 0, "deterministic": True, "native_kernels": False, "num_speculative_tokens": depth, **settings}
    config, _ = resolve(EngineConfig(dtype="float32", overlap_scheduling=overlap, **asked), model.config, MACHINE)
    ends = stop_ids(constrained_runs.model_directory(None), model.config, tokenizer)
    core = EngineCore(
        ReadsLengths(model),  # type: ignore[arg-type]
        config,
        num_tokens=tokenizer.num_tokens,
        stop_ids=ends,
        detokenizer=lambda: IncrementalDetokenizer(tokenizer, skip_special=False),
        thinking=thinking_tokens(tokenizer),
        vocabulary=vocabulary_of(tokenizer, ends),
        clock=clock,
        graph_device=RecordedGraphs(),
        sample_kernel=HostKernel(),
    )
    if depth:
        core.depth_policy = Sometimes(depth)
    return core


def random_params(rng: random.Random, num_tokens: int) -> SamplingParams:
    settings: dict = {"max_tokens": rng.choice((1, 2, 7, 40, 90, 150)), "ignore_eos": rng.random() < 0.7}
    settings |= rng.choice(({"temperature": 0}, {"temperature": 0.8, "seed": rng.randrange(99)}, {"top_k": 8, "top_p": 0.9}))
    if rng.random() < 0.4:
        settings["logprobs"] = rng.randrange(4)
    if rng.random() < 0.2:
        settings["prompt_logprobs"] = 1
    if rng.random() < 0.3:
        settings["stop_token_ids"] = tuple(rng.sample(range(num_tokens), 60))
    if rng.random() < 0.3:
        settings["stop"] = (rng.choice("aet "), "the")
    if rng.random() < 0.15:
        settings |= rng.choice(
            (
                {"repetition_penalty": 1.3},
                {"logit_bias": {5: 3.0}, "min_tokens": min(5, settings["max_tokens"])},
                {"thinking_budget": 4},
                {"constraint": Constraint("regex", "[abc]{6}")},
            )
        )
    return SamplingParams(**settings)


def run_workload(seed: int, *, overlap: bool, depth: int, preempt: int = 0, **settings) -> Run:
    """Requests that come in waves; who is to be aborted, or to expire, is when it has said so many tokens."""
    rng = random.Random(seed)
    now = [0.0]
    run = Run(workload_core(overlap=overlap, depth=depth, clock=lambda: now[0], **settings))
    core = run.core
    if preempt:
        preempt_often(core, every=preempt)
    arrivals: dict[int, list[GenerationRequest]] = {}
    ends: dict[str, int] = {}
    shared = [rng.randrange(core.num_tokens) for _ in range(130)]
    for number in range(18):
        params = random_params(rng, core.num_tokens)
        prompt = rng.choice((shared[:70], shared, [])) + [rng.randrange(core.num_tokens) for _ in range(rng.choice((1, 5, 40)))]
        if params.constraint is not None or params.thinking_budget is not None:
            prompt = constrained_runs.prompt(constrained_runs.CONTENT if params.constraint is not None else constrained_runs.REASONING)
        scheduling = SchedulingParams(timeout_s=5.0 if number == 7 else None, priority=rng.randrange(2))
        count = 1 if number == 7 else rng.choice((1, 1, 1, 2))
        family = siblings(GenerationRequest(f"r{number}", prompt, params, scheduling=scheduling), count)
        arrivals.setdefault(12 * rng.randrange(8), []).extend(family)
        if rng.random() < 0.25:
            ends[f"r{number}"] = rng.randrange(1, 12)
    said: dict[str, list[EngineOutput]] = {}
    call = 0
    while arrivals or core.has_work:  # waves with time between them, in which nobody comes
        for request in arrivals.pop(call, []):
            core.add(request)
        for output in core.step():
            said.setdefault(output.request_id, []).append(output)
        assert core.scheduler.check() is None
        for name, outputs in said.items():
            num_said, is_over = sum(len(output.token_ids) for output in outputs), outputs[-1].finish_reason is not None
            if name == "r7" and num_said >= 3:
                now[0] = 6.0
            if not is_over and num_said >= ends.get(name, math.inf):
                outputs.append(core.abort(name))
        call += 1
    run.outputs = {name: merged(outputs) for name, outputs in said.items()}
    assert len(run.outputs) >= 18
    return run


ROOMY = {"max_num_seqs": 8, "max_num_batched_tokens": 200, "kv_cache_tokens": 64 * 200}
GIB_PER_PAGE = 64 * kv_token_bytes(constrained_runs.random_model().config, "float32") / 2**30
TIGHT = {"max_num_seqs": 5, "max_num_batched_tokens": 64, "kv_cache_tokens": 64 * 6, "kv_offloading_size": 6.5 * GIB_PER_PAGE}


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("settings", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("seed", [2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 16))])
def test_random_workloads_end_alike(seed, settings, depth):
    on, off = (run_workload(seed, overlap=overlap, depth=depth, **settings) for overlap in (True, False))
    roomy = settings is ROOMY
    assert on.answers(drafts=depth > 0, cached=False) == off.answers(drafts=depth > 0, cached=False)
    ours, theirs = on.core.stats(), off.core.stats()
    assert (ours.num_steps_ahead > 40 or seed > 3) and theirs.num_steps_ahead == 0  # in some, one with penalties always runs
    assert (ours.num_finished, ours.num_generated_tokens) == (theirs.num_finished, theirs.num_generated_tokens)
    for stats in (ours, theirs):
        assert stats.pages_held == 0 == stats.kv_accounting_errors and stats.pages_free + stats.pages_cached == stats.pages_total
    assert roomy or seed > 3 or ours.num_preemptions > 0
    mine, yours = on.published(), off.published()
    assert not roomy or mine.keys() == yours.keys()
    common = mine.keys() & yours.keys()
    assert common
    for key in common:
        assert all(torch.equal(a, b) for a, b in zip(mine[key], yours[key], strict=True)), "published pages are final"


@pytest.mark.parametrize("depth", [0, 1])
def test_preempted_from_outside_while_a_step_is_in_flight(depth):
    on, off = (run_workload(5, overlap=overlap, depth=depth, preempt=7, **ROOMY) for overlap in (True, False))
    assert on.answers(drafts=True, cached=False) == off.answers(drafts=True, cached=False)
    assert on.core.stats().num_steps_ahead > 10 and on.core.stats().num_preemptions > 0


def test_without_arrivals_every_call_returns_the_same():
    """So all counts agree, too."""
    rng = random.Random(1)
    prompts = [[rng.randrange(384) for _ in range(rng.randrange(1, 90))] for _ in range(6)]
    each = [
        SamplingParams(max_tokens=5 + 13 * i, seed=i, top_k=30, logprobs=i % 3, stop_token_ids=tuple(range(40 * i, 40 * i + 9)))
        for i in range(6)
    ]
    cores = [make_core(overlap=overlap) for overlap in (True, False)]
    for core in cores:
        for i, prompt in enumerate(prompts):
            core.add(GenerationRequest(f"r{i}", prompt, each[i]))
    while cores[1].has_work:
        assert cores[0].has_work
        ours, theirs = (core.step() for core in cores)
        assert ours == theirs
        if cores[0].num_steps == 9:
            assert cores[0].abort("r4") == cores[1].abort("r4")
    assert not cores[0].has_work
    ours, theirs = (core.stats() for core in cores)
    assert ours.num_steps_ahead > 50
    ours.num_steps_ahead, ours.times = 0, theirs.times
    assert ours == theirs


class Watch(CountsWaits):
    """Counts waits of the host, those within the device's own work aside."""

    def __init__(self, core: EngineCore, kernel: HostKernel) -> None:
        super().__init__(kernel)
        self._device = device(core)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self._device.running:
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def test_the_host_reads_a_step_only_when_the_next_one_is_launched():
    kernel = HostKernel()
    core = make_core(kernel=kernel)
    core.add(GenerationRequest("a", [1, 2, 3], PATIENT))
    core.add(GenerationRequest("b", [4, 5], PATIENT))
    core.step()  # the prompts, without a graph
    events = device(core).events
    events.clear()
    with Watch(core, kernel) as watch:
        for _ in range(17):
            core.step()
    assert events == ["launch", "ask", "read"] * 17
    assert watch.waits == 17, "the host waits nowhere else"
    assert core.stats().num_steps_ahead == 17
    launched, read = (list(accumulate(event == kind for event in ["launch", *events])) for kind in ("launch", "read"))
    assert all(ahead - behind in (1, 2) for ahead, behind in zip(launched, read, strict=True))
    events.clear()
    drain(core)
    assert events == ["launch", "ask", "read", "read"], "the end by length is known, so nothing is launched in vain"


def test_prompt_lookup_goes_on_ahead_while_nobody_looks():
    answers = []
    for overlap in (True, False):
        core = make_core(overlap=overlap, num_speculative_tokens=2, speculative_method="ngram")
        core.depth_policy = Sometimes(2)
        outputs = generate(core, [[1, 2, 3, 1, 2, 3, 1], [7] * 9], SamplingParams(max_tokens=60, temperature=0, ignore_eos=True))
        answers.append(outputs)
        assert (core.stats().num_steps_ahead > 20) is overlap
    assert answers[0] == answers[1] and sum(output.num_drafted for output in answers[0]) > 0


def test_an_idle_engine_holds_no_unread_step():
    core = make_core()
    core.add(GenerationRequest("a", [1, 2, 3], PATIENT))
    for _ in range(5):
        core.step()
    assert core._pipeline._ahead is not None
    core.abort("a")
    assert not core.has_work
    assert core.step() == []
    assert core._pipeline._ahead is None
    (again,) = generate(core, [[1, 2, 3]], PATIENT)
    assert again.token_ids == generate(make_core(overlap=False), [[1, 2, 3]], PATIENT)[0].token_ids


def test_a_request_that_comes_starts_one_call_later():
    core = make_core()
    core.add(GenerationRequest("a", [1, 2, 3], PATIENT))
    for _ in range(4):
        core.step()
    core.add(GenerationRequest("b", [4, 5, 6], PATIENT))
    assert [[o.request_id for o in core.step()] for _ in range(3)] == [["a"], ["a", "b"], ["a", "b"]]


def test_a_full_engine_goes_on_ahead_though_requests_wait():
    core = make_core(max_num_seqs=1)
    for name in "ab":
        core.add(GenerationRequest(name, [1, 2, 3], PATIENT))
    outputs = drain(core)
    assert merged(outputs["a"]).token_ids == merged(outputs["b"]).token_ids
    assert core.stats().num_steps_ahead == 2 * 19


def test_waiting_for_pages_does_not_stop_it():
    core = make_core(max_num_seqs=2, max_model_len=128, kv_cache_tokens=128)
    core.add(GenerationRequest("a", [1] * 70, PATIENT))
    core.add(GenerationRequest("b", [2] * 70, PATIENT))
    outputs = drain(core)
    assert core.stats().num_steps_ahead == 2 * 19 and core.stats().num_preemptions == 0
    assert [len(merged(outputs[name]).token_ids) for name in "ab"] == [20, 20]


def test_a_row_that_is_not_finite_ends_its_request_and_leaves_nothing_behind(caplog):
    prompts = [[i + 1, 2, 3] for i in range(4)]
    expected = generate(make_core(overlap=False), prompts, PATIENT)
    core = make_core()
    for i, prompt in enumerate(prompts):
        core.add(GenerationRequest(f"r{i}", prompt, PATIENT))
    outputs: dict[str, list] = {f"r{i}": [] for i in range(4)}
    for call in range(40):
        if call == 6:
            core.runner.kv[0][core._live["r2"][0].pages[0]] = math.nan  # the step in flight has been computed
        for output in core.step():
            outputs[output.request_id].append(output)
    results = [merged(outputs[f"r{i}"]) for i in range(4)]
    assert results[2].error.code == "not_finite" and results[2].token_ids == expected[2].token_ids[:7]
    assert [results[i] for i in (0, 1, 3)] == [expected[i] for i in (0, 1, 3)]
    assert all(bool(tensor.isfinite().all()) for layer in core.runner.kv for tensor in kv_tensors(layer))
    assert core.scheduler.check() is None and core.stats().pages_held == 0
    assert core.stats().num_steps_ahead > 15


def _break_temperature(core: EngineCore) -> None:
    sequence = core._live["r1"][0]
    sequence.params = SamplingParams(max_tokens=20, ignore_eos=True)
    object.__setattr__(sequence, "params", SimpleNamespace(greedy=False, temperature=Bomb(), logprobs=None))


def _break_detokenizer(core: EngineCore) -> None:
    core._live["r1"][1]._detokenizer = Bomb()


def _break_reading(core: EngineCore) -> None:
    draw, row = core._pipeline._ahead.draw, 1
    plain = draw.sampled

    def sampled(asked):
        if asked == row:
            raise FloatingPointError("injected")
        return plain(asked)

    draw.sampled = sampled


@pytest.mark.parametrize(("fault", "num_said"), [(_break_temperature, 7), (_break_detokenizer, 6), (_break_reading, 6)])
def test_an_exception_is_that_of_one_request(fault, num_said, caplog):
    asked = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, logprobs=1, stop=("never",))
    prompts = [[i + 1, 2, 3] for i in range(4)]
    expected = generate(make_core(overlap=False, detokenizer=Text), prompts, asked)
    core = make_core(detokenizer=Text)
    for i, prompt in enumerate(prompts):
        core.add(GenerationRequest(f"r{i}", prompt, asked))
    outputs: dict[str, list] = {f"r{i}": [] for i in range(4)}
    with caplog.at_level(logging.CRITICAL):
        for call in range(40):
            if call == 6:
                fault(core)
            for output in core.step():
                outputs[output.request_id].append(output)
    results = [merged(outputs[f"r{i}"]) for i in range(4)]
    assert results[1].error.code == "internal" and results[1].token_ids == expected[1].token_ids[:num_said]
    assert [results[i] for i in (0, 2, 3)] == [expected[i] for i in (0, 2, 3)]
    assert core.scheduler.check() is None and core.stats().pages_held == 0
    assert core.stats().num_steps_ahead > 15, "the others go on ahead"


def test_wrong_accounting_is_repaired_while_a_step_is_in_flight(caplog):
    prompts = [[i + 1] * 70 for i in range(3)]
    expected = generate(make_core(overlap=False), prompts, PATIENT)
    core = make_core()
    for i, prompt in enumerate(prompts):
        core.add(GenerationRequest(f"r{i}", prompt, PATIENT))
    said: dict[str, list[EngineOutput]] = {}
    with caplog.at_level(logging.CRITICAL):
        while core.has_work:
            for output in core.step():
                said.setdefault(output.request_id, []).append(output)
            if core.num_steps == 8:
                core.scheduler.pool._references[0] += 1
                core.check_pages()
    assert [merged(said[f"r{i}"]).token_ids for i in range(3)] == [output.token_ids for output in expected]
    assert core.stats().kv_accounting_errors == 1


def test_new_weights_and_a_flushed_cache_take_effect_at_the_next_token():
    model = ReadsLengths(tiny_model())
    core = make_core(model=model)
    core.add(GenerationRequest("a", [1, 2, 3], PATIENT))
    for _ in range(5):
        core.step()
    lost = core._pipeline._ahead
    assert lost is not None
    core.set_weight_version(1)
    assert core._pipeline._ahead is None
    (output,) = core.step()
    assert output.token_ids and core._pipeline._ahead is not lost
    core.reset_prefix_cache()
    assert core._pipeline._ahead is None
    assert [o.token_ids for o in drain(core)["a"]][-1] and core.stats().pages_cached == 0


def test_reasoning_is_stopped_at_the_next_token_in_both_ways():
    prompt, answers = constrained_runs.prompt(constrained_runs.REASONING), []
    for overlap in (True, False):
        core = workload_core(overlap=overlap, depth=0, clock=lambda: 0.0)
        core.add(GenerationRequest("a", prompt, PATIENT))
        outputs = [output for _ in range(6) for output in core.step()]
        assert (core.stats().num_steps_ahead > 0) is overlap
        core.stop_thinking("a")
        outputs += drain(core)["a"]
        answers.append(merged(outputs).token_ids)
    assert answers[0] == answers[1]
    assert constrained_runs.tokenizer().end_think in answers[0][6:8]


class LazyMTP:
    """Stands for an MTP layer on a device: its answers are tensors."""

    capturable = False

    def __init__(self, inner, device: RecordedGraphs) -> None:
        self._inner, self._device = inner, device
        self.damaged_at = -1
        self.num_chains = 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def draft(self, hidden, **asked):
        chains, logits = self._inner.draft(hidden, **asked)
        self._device.events.append("draft")
        self.num_chains += 1
        depth = asked["depths"][0]
        tokens, values = (torch.tensor([[*row, *[0] * depth][:depth] for row in rows], dtype=torch.float64) for rows in (chains, logits))
        if self.num_chains == self.damaged_at:
            values[0] = math.nan
        return tokens.long(), values.float()


class LazyDrafts(ReadsLengths):
    """A packed model whose MTP layer answers like one on a device."""

    def __init__(self, device: RecordedGraphs) -> None:
        inner = tiny_model("tiny-355b", "bfloat16", native=True)
        super().__init__(inner)
        self.lazy = LazyMTP(inner.mtp.packed, device)

    @property
    def mtp(self):
        return SimpleNamespace(packed=self.lazy)


def lazy_core(*, lazy: bool, **settings) -> EngineCore:
    asked = {"max_model_len": 512, "seed": 0, "deterministic": True, "native_kernels": True, "num_speculative_tokens": 2, **settings}
    config, _ = resolve(EngineConfig(dtype="bfloat16", **asked), variant("tiny-355b"), MACHINE)
    graphs = RecordedGraphs()
    model = LazyDrafts(graphs) if lazy else ReadsLengths(tiny_model("tiny-355b", "bfloat16", native=True))
    return EngineCore(model, config, num_tokens=24, graph_device=graphs, sample_kernel=HostKernel())  # type: ignore[arg-type]


needs_native = pytest.mark.skipif(not cpu.available(), reason="needs the native kernels")


@needs_native
def test_drafts_are_read_when_the_next_step_needs_them():
    core = lazy_core(lazy=True)
    core.add(GenerationRequest("a", [1, 2, 3], PATIENT))
    core.step()
    events = device(core).events
    events.clear()
    core.step()
    assert events == ["read", "launch", "ask", "read", "draft", "ask"], "drafts of the step before first, those of this one not at all"


@needs_native
@pytest.mark.parametrize("sometimes", [False, True])
@pytest.mark.parametrize("preempt", [0, 5])
def test_drafts_read_later_are_the_same(preempt, sometimes):
    """Also where steps without drafts between them are launched ahead."""
    rng = random.Random(2)
    prompts = [[rng.randrange(24) for _ in range(n)] for n in (1, 63, 64, 65, 130)]
    each = [SamplingParams(max_tokens=25, temperature=i % 2, seed=i, logprobs=1) for i in range(5)]
    found = []
    for lazy in (True, False):
        core = lazy_core(lazy=lazy, overlap_scheduling=lazy)
        if sometimes:
            core.depth_policy = Sometimes(2)
        if preempt:
            preempt_often(core, every=preempt)
        found.append((generate(core, prompts, each), core.stats()))
    (ours, mine), (theirs, yours) = found
    assert ours == theirs
    assert (mine.num_steps_ahead > 5) is sometimes
    assert mine.accepted_by_position == yours.accepted_by_position and (sometimes or mine.accepted_by_position[0] > 0)
    assert mine.drafted_by_position == yours.drafted_by_position and mine.drafted_by_position[1] > 0
    assert (mine.pages_cached, mine.num_steps, mine.pages_held) == (yours.pages_cached, yours.num_steps, 0)


@needs_native
@pytest.mark.parametrize("end", ["goes on", "aborted"])
def test_damaged_drafts_leave_no_page_to_others_though_they_are_read_later(end):
    core = lazy_core(lazy=True)
    (plain,) = generate(lazy_core(lazy=False), [[1] * 63], PATIENT)
    core.runner.model.lazy.damaged_at = 1  # with the chain that completes the first page
    core.add(GenerationRequest("a", [1] * 63 + [plain.token_ids[0]], PATIENT))
    outputs = core.step()
    sequence = core._live["a"][0]
    assert core._unread_drafts is not None and core.scheduler.pool.is_published(sequence.pages[0]), "published before it is known"
    if end == "aborted":
        core.abort("a")
        assert not sequence.healthy and core.stats().pages_cached == 0
    else:
        outputs += drain(core)["a"]
        assert merged(outputs).token_ids[:19] == plain.token_ids[1:]
        assert not sequence.healthy and core.stats().pages_cached == 0
    core.add(GenerationRequest("b", [1] * 70, PATIENT))
    assert core.step()[0].num_cached_tokens == 0
    assert core.scheduler.check() is None


def test_requests_aborted_at_any_point_while_steps_are_in_flight_leak_no_page():
    rng = random.Random(4)
    core = make_core(max_model_len=128, kv_cache_tokens=64 * 5, max_num_seqs=4, max_num_batched_tokens=40)
    live: list[str] = []
    for number in range(300):
        prompt = [rng.randrange(384) for _ in range(rng.choice((1, 3, 62, 70)))]
        core.add(GenerationRequest(f"r{number}", prompt, SamplingParams(max_tokens=50, temperature=0, ignore_eos=True)))
        live.append(f"r{number}")
        if number % 40 == 0:
            core.scheduler.preempt_all()
        while len(live) > rng.randrange(7):
            for _ in range(rng.randrange(5)):
                finished = [output.request_id for output in core.step() if output.finish_reason is not None]
                live = [name for name in live if name not in finished]
            if live:
                assert core.abort(live.pop(rng.randrange(len(live)))) is not None
            assert core.scheduler.check() is None
    for name in live:
        core.abort(name)
    stats = core.stats()
    assert not core.has_work and core.step() == []
    assert stats.num_steps_ahead > 50 and stats.num_finished["abort"] > 200
    assert stats.pages_held == 0 == stats.kv_accounting_errors and stats.pages_free + stats.pages_cached == stats.pages_total


def test_a_depth_of_zero_rests():
    assert FixedDepth(0).rests() and not FixedDepth(1).rests()
    assert FixedDepth(1).choose([Candidate("a", 3)], 10) == [1]
