"""A request's tokens and log probabilities are the same, bit for bit, however the engine gets to them.

Random tiny models give nearly flat distributions, so any deviation in the last bit soon changes a token. The yardstick is every prompt
alone, without drafts, without prefix cache, in one chunk.
"""

import random
from functools import cache
from typing import NamedTuple

import pytest
import torch
from engine_runs import generate, make_core, preempt_often, tiny_model

from openglm.config import variant
from openglm.engine.ngram import NgramProposer
from openglm.engine.request import SamplingParams
from openglm.engine.thinking import ThinkingTokens
from openglm.model import ForwardContext
from openglm.ops import cpu


class Model(NamedTuple):
    """A tiny random model, its dtype, and whether the native kernels run it."""

    name: str
    dtype: str
    native: bool = False

    def core(self, **settings):
        return make_core(self.name, dtype=self.dtype, native=self.native, **settings)


KERNELS = (False, True) if cpu.available() else (False,)
ALL = [Model(name, dtype, native) for name in ("tiny-air", "tiny-355b") for dtype in ("float32", "bfloat16") for native in KERNELS]
SOME = [Model("tiny-355b", "float32"), Model("tiny-air", "bfloat16"), *(Model("tiny-355b", "bfloat16", native) for native in KERNELS[1:])]
FEW_TOKENS = 24  # so few that random drafts are sometimes right


def prompts() -> list[list[int]]:
    """Lengths on both sides of page borders; the last two share pages with the one before them."""
    rng = random.Random(3)
    made = [[rng.randrange(FEW_TOKENS) for _ in range(n)] for n in (1, 63, 64, 65, 129, 150)]
    return [*made, [*made[-1][:140], 1, 2, 3], made[-1]]


def params() -> list[SamplingParams]:
    greedy = SamplingParams(max_tokens=14, temperature=0, logprobs=2)
    drawn = [
        SamplingParams(max_tokens=14, temperature=0.8, seed=1, logprobs=1),
        SamplingParams(max_tokens=14, top_k=5, seed=2, logprobs=0),
        SamplingParams(max_tokens=14, top_p=0.7, min_p=0.01, seed=3, logprobs=3),
    ]
    return [greedy, drawn[0], greedy, drawn[1], greedy, greedy, drawn[2], greedy]


def results(core) -> list[tuple]:
    return [(o.token_ids, o.logprobs) for o in generate(core, prompts(), params())]


@cache
def alone(model: Model, kv_cache_dtype: str = "auto") -> list[tuple]:
    found = []
    for prompt, own in zip(prompts(), params(), strict=True):
        core = model.core(
            kv_cache_dtype=kv_cache_dtype,
            num_tokens=FEW_TOKENS,
            num_speculative_tokens=0,
            enable_prefix_caching=False,
            max_num_batched_tokens=512,
        )
        (output,) = generate(core, [prompt], own)
        found.append((output.token_ids, output.logprobs))
    return found


@pytest.mark.parametrize("model", ALL, ids=str)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_batched_with_drafts_equals_alone_without(model, depth):
    core = model.core(num_tokens=FEW_TOKENS, num_speculative_tokens=depth)
    assert results(core) == alone(model)
    stats = core.stats()
    assert depth == 0 or 0 < sum(stats.accepted_by_position) < sum(stats.drafted_by_position), "drafts were right and wrong"


@pytest.mark.parametrize(
    ("model", "chunk", "seqs"), [(SOME[0], 7, 3), (SOME[0], 64, 8), (SOME[1], 100, 5), (SOME[-1], 7, 3), (SOME[-1], 64, 8)]
)
def test_chunked_prefill_equals_whole(model, chunk, seqs):
    core = model.core(num_tokens=FEW_TOKENS, num_speculative_tokens=1, max_num_batched_tokens=chunk, max_num_seqs=seqs)
    assert results(core) == alone(model)


@pytest.mark.parametrize("model", SOME, ids=str)
def test_prefix_cache_equals_cold(model):
    core = model.core(num_tokens=FEW_TOKENS, num_speculative_tokens=2)
    assert results(core) == alone(model)
    outputs = generate(core, prompts(), params())
    assert [(o.token_ids, o.logprobs) for o in outputs] == alone(model)
    assert [o.num_cached_tokens for o in outputs] == [0, 0, 0, 64, 128, 128, 128, 128]


@pytest.mark.parametrize(("model", "depth", "caching"), [(SOME[0], 0, True), (SOME[1], 3, False), (SOME[-1], 3, True)])
def test_preempted_requests_resume_with_the_same_tokens(model, depth, caching):
    core = model.core(
        num_tokens=FEW_TOKENS,
        num_speculative_tokens=depth,
        enable_prefix_caching=caching,
        max_model_len=192,
        kv_cache_tokens=448,
    )
    preempt_often(core, every=7)
    assert results(core) == alone(model)
    assert core.stats().num_preemptions > 0


@pytest.mark.parametrize("model", SOME, ids=str)
def test_random_company_changes_nothing(model):
    rng = random.Random(5)
    core = model.core(num_tokens=FEW_TOKENS, num_speculative_tokens=1)
    everything = list(zip(prompts(), params(), alone(model), strict=True))
    for _ in range(4):
        chosen = rng.sample(everything, rng.randrange(2, len(everything)))
        outputs = generate(core, [prompt for prompt, _, _ in chosen], [own for _, own, _ in chosen])
        assert [(o.token_ids, o.logprobs) for o in outputs] == [expected for _, _, expected in chosen]


@pytest.mark.parametrize(("model", "depth"), [(SOME[0], 2), (SOME[1], 1), (SOME[-1], 3)])
def test_with_fp8_kv_a_request_is_the_same_in_every_company_too(model, depth):
    """Batched, in chunks, with drafts, preempted, and from the prefix cache; fp8 itself changes the numbers."""
    expected = alone(model, "fp8")
    assert [logprobs for _, logprobs in expected] != [logprobs for _, logprobs in alone(model)]
    core = model.core(
        kv_cache_dtype="fp8",
        num_tokens=FEW_TOKENS,
        num_speculative_tokens=depth,
        max_num_batched_tokens=100,
        max_num_seqs=5,
        max_model_len=192,
        kv_cache_tokens=448,
    )
    preempt_often(core, every=7)
    assert results(core) == expected
    stats = core.stats()
    assert stats.num_preemptions > 0 and stats.prompt_tokens_cached > 0


class Oracle:
    """A proposer that knows the answers and sometimes lies, so that every acceptance length occurs."""

    def __init__(self, answers: dict[str, list[int]]) -> None:
        self.answers = answers
        self.rng = random.Random(0)

    def propose(self, settled, hidden):
        drafts = []
        for item in settled:
            ahead = self.answers[item.sequence.id][item.sequence.num_output :][: item.depth]
            wrong = self.rng.randrange(5)
            drafts.append([(token + 1) % FEW_TOKENS if i == wrong else token for i, token in enumerate(ahead)])
        return drafts


@pytest.mark.parametrize("model", SOME, ids=str)
def test_any_proposer_leaves_the_output_unchanged(model):
    core = model.core(num_tokens=FEW_TOKENS, num_speculative_tokens=4)
    core.proposer = Oracle({f"r{i}": tokens for i, (tokens, _) in enumerate(alone(model))})
    assert results(core) == alone(model)
    accepted = core.stats().accepted_by_position
    assert all(accepted) and accepted == sorted(accepted, reverse=True)


@pytest.mark.parametrize("name", ["tiny-air", "tiny-355b"])
def test_greedy_tokens_are_those_of_a_plain_forward_without_cache(name):
    model, prompt = tiny_model(name), prompts()[4]
    (output,) = generate(make_core(name), [prompt], SamplingParams(max_tokens=12, temperature=0, logprobs=0))
    tokens = prompt + output.token_ids
    with torch.inference_mode():
        hidden = model(torch.tensor(tokens), ForwardContext.dense([len(tokens)]))
        logits = model.logits(hidden)[len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(output.token_ids).unsqueeze(1)).squeeze(1)
    assert float((logits.max(-1).values - chosen).max()) < 1e-5
    expected = logits.log_softmax(-1).gather(1, torch.tensor(output.token_ids).unsqueeze(1)).squeeze(1)
    assert torch.allclose(torch.tensor([entry.logprob for entry in output.logprobs]), expected, atol=1e-5)
    assert variant(name).vocab_size == logits.shape[1]


class RandomDepth:
    """A depth policy without reason: every mixture of depths occurs, and long stretches of none."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)

    def rests(self):
        return self.rng.random() < 0.1

    def choose(self, candidates, context):
        if self.rng.random() < 0.3:
            return [0] * len(candidates)
        return [self.rng.randint(min(1, candidate.room), candidate.room) for candidate in candidates]

    def ignore(self, *_):
        pass

    measures = observe_verified = observe_step = forget = ignore


def adjusted_params() -> list[SamplingParams]:
    """Everything that changes logits or what is reported, one request each."""
    base = {"max_tokens": 20, "logprobs": 2}
    return [
        SamplingParams(temperature=0, repetition_penalty=1.3, **base),
        SamplingParams(seed=1, frequency_penalty=0.7, presence_penalty=0.3, **base),
        SamplingParams(temperature=0, bad_words=((3,), (5, 6)), **base),
        SamplingParams(seed=2, top_k=6, min_tokens=8, stop_token_ids=(4, 9), **base),
        SamplingParams(seed=3, thinking_budget=5, **base),
        SamplingParams(temperature=0, logit_bias={2: 1.5, 7: -3.0}, **base),
        SamplingParams(seed=4, temperature=0.7, top_p=0.8, min_p=0.02, **base),
        SamplingParams(temperature=0, **base),
    ]


THINKING = ThinkingTokens(think=1, end_think=2, newline=3)


def adjusted_results(core) -> list[tuple]:
    prompts_ = prompts()
    prompts_[4] = [*prompts_[4], 1]  # opens the reasoning that its budget closes
    return [(o.token_ids, o.logprobs, o.finish_reason) for o in generate(core, prompts_, adjusted_params())]


@cache
def adjusted_alone() -> list[tuple]:
    prompts_ = prompts()
    prompts_[4] = [*prompts_[4], 1]
    found = []
    for prompt, own in zip(prompts_, adjusted_params(), strict=True):
        core = make_core(SOME[0].name, num_tokens=FEW_TOKENS, num_speculative_tokens=0, enable_prefix_caching=False, thinking=THINKING)
        (output,) = generate(core, [prompt], own)
        found.append((output.token_ids, output.logprobs, output.finish_reason))
    return found


@pytest.mark.parametrize("drafting", ["0", "1", "3", "adaptive", "random", "ngram"])
@pytest.mark.parametrize("preempting", [False, True], ids=["calm", "preempting"])
def test_speculation_composes_with_every_adjustment_the_prefix_cache_and_preemption(drafting, preempting):
    depth = {"adaptive": None, "random": 3, "ngram": 3}.get(drafting, drafting)
    core = make_core(
        SOME[0].name,
        num_tokens=FEW_TOKENS,
        thinking=THINKING,
        num_speculative_tokens=None if depth is None else int(depth),
        speculative_method="ngram" if drafting == "ngram" else "mtp",
        **({"prompt_lookup_min": 1, "prompt_lookup_max": 3} if drafting == "ngram" else {}),
        **({"max_model_len": 192, "kv_cache_tokens": 1024} if preempting else {}),
    )
    if preempting:
        preempt_often(core, every=7)
    if drafting == "random":
        core.depth_policy = RandomDepth()
    if drafting == "ngram":
        assert isinstance(core.proposer, NgramProposer)
    for _ in range(2):  # the second time with prefixes from the cache
        assert adjusted_results(core) == adjusted_alone()
    stats = core.stats()
    assert drafting in ("0", "adaptive") or sum(stats.accepted_by_position) > 0
    assert not preempting or stats.num_preemptions > 0


@pytest.mark.parametrize("model", SOME, ids=str)
def test_entries_that_waited_are_those_written_at_once(model):
    """After any mixture of depths, complete pages hold bit for bit what they hold when every step drafts."""

    def pages_of(core) -> dict[str, torch.Tensor]:
        """Complete pages of all layers [layers, pages, ...], copied at the end of each request, before others get them."""
        held, finish = {}, core.scheduler.finish

        def copying(sequence):
            held[sequence.id] = torch.stack([layer[sequence.pages[: sequence.computed // 64]] for layer in core.runner.kv])
            finish(sequence)

        core.scheduler.finish = copying
        generate(core, prompts()[:6], SamplingParams(max_tokens=80, seed=5))
        assert sum(pages.shape[1] for pages in held.values()) >= 12
        return held

    def same_pages(core) -> bool:
        return all(torch.equal(pages, expected[name]) for name, pages in pages_of(core).items())

    settings = {"num_tokens": FEW_TOKENS, "num_speculative_tokens": 3, "enable_prefix_caching": False}
    expected = pages_of(model.core(**settings))
    for seed in range(2):
        core = model.core(**settings)
        core.depth_policy = RandomDepth(seed)
        assert same_pages(core)
    lazy = model.core(**settings)
    lazy.depth_policy.choose = lambda candidates, context: [0] * len(candidates)
    assert same_pages(lazy)
    assert sum(lazy.stats().drafted_by_position) == 0


def test_several_answers_to_one_prompt_do_not_depend_on_depths():
    from openglm.engine.llm import LLM

    params = SamplingParams(max_tokens=20, seed=8, logprobs=1)

    def answers(core):
        return [(r.token_ids, r.logprobs) for r in LLM.from_core(core).generate([prompts()[5]], params, n=3)]

    expected = answers(make_core(num_tokens=FEW_TOKENS, num_speculative_tokens=0))
    core = make_core(num_tokens=FEW_TOKENS, num_speculative_tokens=3)
    core.depth_policy = RandomDepth()
    assert answers(core) == expected == answers(make_core(num_tokens=FEW_TOKENS, num_speculative_tokens=None))
