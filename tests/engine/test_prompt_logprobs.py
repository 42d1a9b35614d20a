"""Log probabilities of prompts: right, bounded, delivered once, and the same bits however the prompt is processed."""

import random
from functools import cache

import pytest
import torch
from engine_runs import drain, generate, make_core, merged, tiny_model

from openglm.engine import prompt_logprobs
from openglm.engine.llm import LLM
from openglm.engine.request import GenerationRequest, SamplingParams, siblings, validate_request
from openglm.errors import RequestError
from openglm.model import ForwardContext

FEW = 24
SCORED = SamplingParams(max_tokens=6, temperature=0, logprobs=2, prompt_logprobs=2)
ONLY_SCORED = SamplingParams(max_tokens=0, prompt_logprobs=1)


def prompts() -> list[list[int]]:
    rng = random.Random(8)
    return [[rng.randrange(FEW) for _ in range(n)] for n in (1, 2, 64, 65, 130, 200)]


@cache
def alone(name: str, dtype: str):
    def run(prompt):
        core = make_core(name, dtype=dtype, num_tokens=FEW, num_speculative_tokens=0, enable_prefix_caching=False)
        (output,) = generate(core, [prompt], SCORED)
        return output.token_ids, output.logprobs, output.prompt_logprobs

    return [run(prompt) for prompt in prompts()]


def found(outputs) -> list[tuple]:
    return [(o.token_ids, o.logprobs, o.prompt_logprobs) for o in outputs]


def test_they_are_those_of_a_plain_forward():
    model = tiny_model()
    for prompt in prompts():
        (output,) = generate(make_core(num_tokens=FEW), [prompt], SCORED)
        entries = output.prompt_logprobs
        assert [entry.token for entry in entries] == prompt[1:]
        with torch.inference_mode():
            hidden = model(torch.tensor(prompt), ForwardContext.dense([len(prompt)]))
            logprobs = model.logits(hidden)[:-1, :FEW].log_softmax(-1)
        for entry, row in zip(entries, logprobs, strict=True):
            assert entry.logprob == pytest.approx(float(row[entry.token]), abs=1e-5)
            best = row.topk(2)
            assert [i for i, _ in entry.top] == best.indices.tolist()
            assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize(("name", "dtype"), [("tiny-355b", "float32"), ("tiny-air", "bfloat16")])
@pytest.mark.parametrize(("depth", "chunk", "seqs"), [(0, 512, 8), (1, 7, 3), (3, 64, 6)])
def test_chunks_company_and_drafts_change_no_bit(name, dtype, depth, chunk, seqs):
    core = make_core(name, dtype=dtype, num_tokens=FEW, num_speculative_tokens=depth, max_num_batched_tokens=chunk, max_num_seqs=seqs)
    assert found(generate(core, prompts(), SCORED)) == alone(name, dtype)


@pytest.mark.parametrize("every", [2, 5])
def test_preemption_in_mid_prompt_changes_no_bit(every):
    core = make_core(
        "tiny-355b",
        num_tokens=FEW,
        num_speculative_tokens=1,
        max_num_batched_tokens=32,
        max_num_seqs=4,
        max_preemptions=3,
        kv_cache_tokens=512,
    )
    for i, prompt in enumerate(prompts()):
        core.add(GenerationRequest(f"r{i}", prompt, SCORED))
    outputs: dict[str, list] = {}
    steps = 0
    while core.has_work:
        steps += 1
        if steps % every == 0 and steps < 40:
            core.scheduler.preempt_all()
        for output in core.step():
            outputs.setdefault(output.request_id, []).append(output)
    assert core.stats().num_preemptions > 3
    assert found(merged(outputs[f"r{i}"]) for i in range(6)) == alone("tiny-355b", "float32")


def test_they_equal_the_log_probabilities_that_generation_reports():
    core = make_core(num_tokens=FEW)
    (written,) = generate(core, [prompts()[4]], SamplingParams(max_tokens=20, temperature=1, seed=3, logprobs=3))
    whole = [*prompts()[4], *written.token_ids]
    (scored,) = generate(core, [whole], SamplingParams(max_tokens=0, prompt_logprobs=3))
    assert scored.prompt_logprobs[-20:] == written.logprobs


def test_a_scored_prompt_ignores_the_cache_and_fills_it():
    core = make_core(num_tokens=FEW)
    prompt = prompts()[5]
    for _ in range(2):
        (output,) = generate(core, [prompt], SCORED)
        assert output.num_cached_tokens == 0
        assert (output.token_ids, output.logprobs, output.prompt_logprobs) == generate_alone(prompt)
    (plain,) = generate(core, [prompt], SamplingParams(max_tokens=6, temperature=0, logprobs=2))
    assert plain.num_cached_tokens == 192 and plain.prompt_logprobs is None


def generate_alone(prompt):
    (output,) = generate(make_core(num_tokens=FEW, enable_prefix_caching=False), [prompt], SCORED)
    return output.token_ids, output.logprobs, output.prompt_logprobs


@pytest.mark.parametrize("depth", [0, 2])
def test_max_tokens_0_scores_and_generates_nothing(depth):
    core = make_core(num_tokens=FEW, num_speculative_tokens=depth, max_num_batched_tokens=65, max_num_seqs=4)
    outputs = generate(core, prompts(), ONLY_SCORED)
    assert [(o.token_ids, o.finish_reason, len(o.prompt_logprobs)) for o in outputs] == [([], "length", len(p) - 1) for p in prompts()]
    stats = core.stats()
    assert stats.num_generated_tokens == 0 and stats.num_prefill_tokens == sum(map(len, prompts()))
    assert stats.pages_held == 0 and stats.kv_accounting_errors == 0
    (again,) = generate(core, [prompts()[5]], SamplingParams(max_tokens=1))
    assert again.num_cached_tokens == 192


def test_several_answers_share_one_scored_prompt():
    core = make_core(num_tokens=FEW)
    first, *others = siblings(GenerationRequest("a", prompts()[4], SCORED), 3)
    for request in (first, *others):
        core.add(request)
    outputs = {name: merged(items) for name, items in drain(core).items()}
    assert len(outputs["a"].prompt_logprobs) == 129
    assert all(outputs[r.id].prompt_logprobs is None and outputs[r.id].num_cached_tokens == 128 for r in others)
    results = LLM.from_core(make_core(num_tokens=FEW)).generate([prompts()[4], prompts()[2]], SCORED, n=2)
    assert [len(r.prompt_logprobs) for r in results] == [129, 129, 63, 63]
    assert results[0].prompt_logprobs == outputs["a"].prompt_logprobs


def test_the_head_never_runs_over_more_rows_than_a_block(monkeypatch):
    core = make_core(num_tokens=FEW, max_model_len=512)
    seen = []
    logits = core.runner.logits
    monkeypatch.setattr(core.runner, "logits", lambda hidden: (seen.append(hidden.shape[0]), logits(hidden))[1])
    (output,) = generate(core, [[1, 2, 3] * 150], ONLY_SCORED)
    assert len(output.prompt_logprobs) == 449 and max(seen) == prompt_logprobs.ROW_BLOCK


def test_a_position_that_is_not_finite_ends_the_request_alone():
    core = make_core(num_tokens=FEW, max_num_batched_tokens=64, max_num_seqs=4)
    expected = generate(make_core(num_tokens=FEW, max_num_batched_tokens=64, max_num_seqs=4), prompts()[:4], SCORED)
    score = core.prompt_scorer.score

    def poisoned(batch, hidden):
        for span in batch.spans:
            if span.sequence.id == "r4" and span.start == 0:
                hidden = hidden.clone()
                hidden[span.first_row] = float("nan")
        score(batch, hidden)

    core.prompt_scorer.score = poisoned
    for i, prompt in enumerate(prompts()[:5]):
        core.add(GenerationRequest(f"r{i}", prompt, SCORED))
    outputs = {name: merged(items) for name, items in drain(core).items()}
    assert (outputs["r4"].finish_reason, outputs["r4"].error.code) == ("error", "not_finite")
    assert found(outputs[f"r{i}"] for i in range(4)) == found(expected)


def test_what_cannot_be_scored_is_refused_with_a_reason():
    with pytest.raises(RequestError, match="max_tokens must be at least 1"):
        SamplingParams(max_tokens=0)
    with pytest.raises(RequestError, match="prompt_logprobs must be between 0 and 20"):
        SamplingParams(prompt_logprobs=21)
    request = GenerationRequest("a", [1] * 100_000, SamplingParams(prompt_logprobs=20))
    with pytest.raises(RequestError, match="20 alternatives for 100000 prompt tokens are too many"):
        validate_request(request, num_tokens=10, max_model_len=200_000)
