"""Several answers to one prompt: it is processed once, and each answer is what a request of its own would get."""

import pytest
from engine_runs import drain, generate, make_core, merged

from openglm.engine.llm import LLM
from openglm.engine.request import GenerationRequest, SamplingParams, siblings

PROMPT = [i % 50 for i in range(200)]
DRAWN = SamplingParams(max_tokens=10, seed=2**63 - 2, logprobs=0)


def test_siblings_differ_in_id_and_seed_only():
    first, *others = siblings(GenerationRequest("a", PROMPT, DRAWN), 4)
    assert first == GenerationRequest("a", PROMPT, DRAWN)
    assert [(o.id, o.follows, o.prompt_ids) for o in others] == [(f"a.{i}", "a", PROMPT) for i in (1, 2, 3)]
    assert [o.params.seed for o in others] == [2**63 - 1, -(2**63), -(2**63) + 1]


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("chunk", [48, 512])
def test_the_prompt_is_processed_once_and_the_answers_are_unchanged(depth, chunk):
    requests = siblings(GenerationRequest("a", PROMPT, DRAWN), 4)
    core = make_core(num_speculative_tokens=depth, max_num_batched_tokens=chunk, max_num_seqs=8)
    for request in requests:
        core.add(request)
    core.add(GenerationRequest("b", [1, 2, 3], DRAWN))  # is not held up by those who wait
    if chunk == 512:
        assert {output.request_id for output in core.step()} == {"a", "b"}
    outputs = drain(core)
    found = [merged(outputs[request.id][-10:]) for request in requests[1:]]
    assert [o.num_cached_tokens for o in found] == [192] * 3
    expected = generate(make_core(num_speculative_tokens=0), [PROMPT] * 3, [request.params for request in requests[1:]])
    assert [(o.token_ids, o.logprobs) for o in found] == [(o.token_ids, o.logprobs) for o in expected]


def test_siblings_run_when_the_first_is_aborted_and_when_it_is_over():
    core = make_core()
    for request in siblings(GenerationRequest("a", PROMPT, DRAWN), 3):
        core.add(request)
    core.abort("a.2")
    core.abort("a")
    assert set(drain(core)) == {"a.1"}
    late = siblings(GenerationRequest("a", PROMPT, DRAWN), 2)[1]
    core.add(late)
    assert merged(drain(core)["a.1"]).num_cached_tokens == 192
    assert core.stats().pages_held == 0


def test_offline_results_of_one_prompt_lie_side_by_side():
    llm = LLM.from_core(make_core(num_tokens=60))
    results = llm.generate([PROMPT, [1, 2]], SamplingParams(max_tokens=4, seed=1), n=3)
    assert len(results) == 6
    single = llm.generate([PROMPT, [1, 2]], SamplingParams(max_tokens=4, seed=3))
    assert [r.token_ids for r in results[2::3]] == [r.token_ids for r in single]
    with pytest.raises(ValueError, match="n must be"):
        llm.generate([[1]], n=0)
