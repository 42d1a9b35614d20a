"""Logit adjustments: their definitions, token by token, and that no way of running a request changes what they do."""

import random
from functools import cache

import msgspec
import pytest
import torch
from engine_runs import drain, generate, make_core, merged, preempt_often

from openglm.engine.adjust import LogitAdjuster
from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.engine.sequence import Sequence
from openglm.engine.thinking import ThinkingBudget, ThinkingTokens

FEW_TOKENS = 24  # so few that random drafts are sometimes right
THINKING = ThinkingTokens(think=20, end_think=21, newline=22, tool_call=23)
STOP_IDS = (3, 9)
ALL = {
    "frequency_penalty": 0.7,
    "presence_penalty": -0.4,
    "repetition_penalty": 1.3,
    "logit_bias": {1: 2.5, 5: -100.0, 6: 0.25},
    "bad_words": ((2,), (4, 7), (0, 4, 8), (7, 7)),
    "min_tokens": 6,
}


def by_hand(logits: list[float], prompt: list[int], generated: list[int], params: SamplingParams) -> list[float]:
    """vLLM's definitions for one row, one token at a time, in fp32."""

    def f(value):
        return torch.tensor(value, dtype=torch.float32)

    row = [f(value) for value in logits]
    for token, bias in params.logit_bias.items():
        row[token] = row[token] + f(bias)
    for phrase in params.bad_words:
        before = list(phrase[:-1])
        if not before or generated[-len(before) :] == before:
            row[phrase[-1]] = f(float("-inf"))
    if len(generated) < params.min_tokens:
        for token in STOP_IDS:
            row[token] = f(float("-inf"))
    for token, value in enumerate(row):
        if token in prompt or token in generated:
            penalty = f(params.repetition_penalty)
            row[token] = value / penalty if value > 0 else value * penalty
        row[token] = row[token] - f(params.frequency_penalty) * f(generated.count(token))
        if token in generated:
            row[token] = row[token] - f(params.presence_penalty)
    return [float(value) for value in row]


def sequence_of(params, prompt, generated=(), drafts=(), *, name="r"):
    sequence = Sequence(GenerationRequest(name, list(prompt), params), arrival=1, max_model_len=512, seed=0)
    sequence.tokens += generated
    sequence.drafts = list(drafts)
    return sequence


@pytest.mark.parametrize("names", [[name] for name in ALL] + [list(ALL), ["frequency_penalty", "logit_bias"]])
def test_every_row_of_a_growing_batch_is_as_defined(names):
    rng = random.Random(len(names))
    generator = torch.Generator().manual_seed(0)
    adjuster = LogitAdjuster(FEW_TOKENS, None, torch.device("cpu"))
    settings = [SamplingParams(**{name: ALL[name] for name in names}), SamplingParams(), SamplingParams(**{names[0]: ALL[names[0]]})]
    sequences = [sequence_of(p, [rng.randrange(8) for _ in range(5)], name=str(i)) for i, p in enumerate(settings * 2)]
    for sequence in sequences:
        adjuster.add(sequence, STOP_IDS)
    for step in range(8):
        for sequence in sequences:
            sequence.tokens += [rng.choice((4, 7, 8, 0, 11)) for _ in range(rng.randrange(3))]
            sequence.drafts = [rng.choice((4, 7, 8, 0)) for _ in range(rng.randrange(4))]
        histories = [(s, i) for s in sequences for i in range(1 + len(s.drafts))]
        logits = torch.randn(len(histories), FEW_TOKENS + 5, generator=generator) * 3
        before = logits.clone()
        with torch.inference_mode():
            adjusted = adjuster.adjust(logits, sequences)
        assert torch.equal(logits, before) and adjusted is not None
        for row, (sequence, i) in enumerate(histories):
            generated = sequence.tokens[5:] + sequence.drafts[:i]
            expected = by_hand(before[row, :FEW_TOKENS].tolist(), sequence.tokens[:5], generated, sequence.params)
            assert adjusted[row].tolist() == expected, (step, row)


def test_nobody_pays_for_a_batch_without_adjustments():
    adjuster = LogitAdjuster(FEW_TOKENS, THINKING, torch.device("cpu"))
    plain, other = sequence_of(SamplingParams(), [1]), sequence_of(SamplingParams(**ALL), [1], name="other")
    adjuster.add(plain, STOP_IDS)
    assert adjuster.adjust(torch.zeros(1, FEW_TOKENS), [plain]) is None
    adjuster.add(other, STOP_IDS)
    assert adjuster.adjust(torch.zeros(1, FEW_TOKENS), [plain]) is None  # the other one waits
    assert adjuster.adjust(torch.zeros(2, FEW_TOKENS), [plain, other]) is not None
    adjuster.remove("other")
    assert adjuster.adjust(torch.zeros(1, FEW_TOKENS), [plain]) is None


def test_a_slot_is_clean_for_its_next_owner():
    adjuster = LogitAdjuster(FEW_TOKENS, None, torch.device("cpu"))
    params = SamplingParams(frequency_penalty=1.0, repetition_penalty=2.0)
    logits = torch.ones(1, FEW_TOKENS)
    for round_ in range(12):  # more than the table begins with
        sequences = [sequence_of(params, [round_], [1, 1, round_ + 2], name=f"{round_} {i}") for i in range(1 + round_)]
        for sequence in sequences:
            adjuster.add(sequence, ())
            (row,) = adjuster.adjust(logits, [sequence]).tolist()
            assert row == by_hand([1.0] * FEW_TOKENS, [round_], [1, 1, round_ + 2], params)
        for sequence in sequences:
            adjuster.remove(sequence.id)
    assert adjuster._counts.generated.shape[0] <= 16


def prompts() -> list[list[int]]:
    rng = random.Random(3)
    made = [[rng.randrange(FEW_TOKENS) for _ in range(n)] for n in (1, 63, 64, 65, 129, 150)]
    return [*made, [*made[-1][:140], 1, 2, 3], made[-1], [*made[0], 20], [*made[1], 20, 5]]


def params() -> list[SamplingParams]:
    greedy = {"max_tokens": 16, "temperature": 0}
    return [
        SamplingParams(**greedy, frequency_penalty=0.1, logprobs=2),
        SamplingParams(**greedy),
        SamplingParams(max_tokens=16, seed=1, **ALL),
        SamplingParams(**greedy, presence_penalty=0.05, repetition_penalty=1.05),
        SamplingParams(max_tokens=16, temperature=0.8, seed=2, logprobs=1),
        SamplingParams(**greedy, logit_bias={4: 0.02, 7: -5}, bad_words=((4, 4), (11,)), logprobs=0),
        SamplingParams(max_tokens=16, seed=3, top_p=0.7, min_tokens=9, repetition_penalty=0.9),
        SamplingParams(**greedy, thinking_budget=2, logit_bias={20: 0.1}),
        SamplingParams(max_tokens=16, seed=4, thinking_budget=5, frequency_penalty=0.2),
        SamplingParams(**greedy, thinking_budget=7, logprobs=1),
    ]


def run(core) -> list[tuple]:
    return [(o.token_ids, o.logprobs, o.finish_reason, o.stop_reason) for o in generate(core, prompts(), params())]


def core_with(depth: int, **settings):
    return make_core("tiny-air", num_tokens=FEW_TOKENS, num_speculative_tokens=depth, stop_ids=STOP_IDS, thinking=THINKING, **settings)


@cache
def alone() -> list[tuple]:
    found = []
    for prompt, own in zip(prompts(), params(), strict=True):
        (output,) = generate(core_with(0, enable_prefix_caching=False), [prompt], own)
        found.append((output.token_ids, output.logprobs, output.finish_reason, output.stop_reason))
    return found


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 40, "max_num_seqs": 4}], ids=["whole", "chunks"])
def test_batched_with_drafts_equals_alone_without(depth, settings):
    core = core_with(depth, **settings)
    assert run(core) == alone()
    stats = core.stats()
    assert depth == 0 or 0 < sum(stats.accepted_by_position) < sum(stats.drafted_by_position)
    assert not core.adjuster._states


@pytest.mark.parametrize("depth", [0, 3])
def test_preempted_requests_resume_with_the_same_tokens(depth):
    core = core_with(depth, max_model_len=192, kv_cache_tokens=448)
    preempt_often(core, every=5)
    assert run(core) == alone()
    assert core.stats().num_preemptions > 0


def test_rows_without_adjustments_are_the_same_bits_in_adjusted_company():
    rng = random.Random(1)
    plain = SamplingParams(max_tokens=8, temperature=0, logprobs=20, ignore_eos=True)
    mixed = [plain if i % 2 else shortened(params()[i % 10], 8) for i in range(16)]
    batch = [[rng.randrange(FEW_TOKENS) for _ in range(rng.randrange(1, 90))] for _ in range(16)]
    outputs = generate(core_with(1), batch, mixed)
    lonely = generate(core_with(1), [batch[i] for i in range(1, 16, 2)], plain)
    assert [(o.token_ids, o.logprobs) for o in outputs[1::2]] == [(o.token_ids, o.logprobs) for o in lonely]


def shortened(own: SamplingParams, max_tokens: int) -> SamplingParams:
    return msgspec.structs.replace(own, max_tokens=max_tokens, min_tokens=min(own.min_tokens, max_tokens))


def test_log_probabilities_are_those_of_the_model_itself():
    entries = SamplingParams(max_tokens=1, temperature=0, logprobs=3, ignore_eos=True)
    (plain,) = generate(core_with(0), [[1, 2]], entries)
    (second, _) = plain.logprobs[0].top[1]
    own = SamplingParams(max_tokens=1, temperature=0, logprobs=3, ignore_eos=True, logit_bias={second: 100.0})
    (pushed,) = generate(core_with(0), [[1, 2]], own)
    assert pushed.token_ids == [second]
    assert pushed.logprobs[0].top == plain.logprobs[0].top
    assert pushed.logprobs[0].logprob == plain.logprobs[0].top[1][1]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_min_tokens_holds_off_stop_ids_and_stop_strings(depth):
    class Numbers:
        def push(self, ids):
            return "".join(f"<{i}>" for i in ids)

    own = SamplingParams(max_tokens=20, temperature=0, min_tokens=10, stop=("<",), logit_bias={3: 50})
    core = make_core(num_tokens=FEW_TOKENS, num_speculative_tokens=depth, detokenizer=Numbers)
    (output,) = generate(core, [[1, 2]], own)
    assert (len(output.token_ids), output.stop_reason) == (11, "<")
    own = SamplingParams(max_tokens=20, temperature=0, min_tokens=10, logit_bias={3: 50})
    (output,) = generate(core_with(depth), [[1, 2]], own)
    assert (len(output.token_ids), output.stop_reason) == (10, 3)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_bans_that_leave_nothing_end_the_request_alone(depth):
    core = core_with(depth)
    nothing = SamplingParams(max_tokens=5, bad_words=tuple((i,) for i in range(FEW_TOKENS)))
    bad, good = generate(core, [[1], [2]], [nothing, SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)])
    assert (bad.finish_reason, bad.error.code, bad.error.param) == ("error", "invalid_request", "bad_words")
    assert len(good.token_ids) == 5
    assert core.stats().pages_held == 0


class Oracle:
    """Proposes what the request will say, so that a whole budget may arrive in one step."""

    def __init__(self, answer):
        self.answer = answer

    def propose(self, settled, hidden):
        return [self.answer[item.sequence.num_output :][: item.depth] for item in settled]


KEEP_THINKING = {21: -100.0, 23: -100.0, 20: -100.0}


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("budget", [0, 1, 2, 3, 7])
def test_thinking_ends_exactly_at_the_budget(depth, budget):
    own = SamplingParams(max_tokens=14, temperature=0, thinking_budget=budget, logit_bias={**KEEP_THINKING, 22: -100.0}, ignore_eos=True)
    free = SamplingParams(max_tokens=14, temperature=0, logit_bias=own.logit_bias, ignore_eos=True)
    prompt = [1, 2, 20]
    (unbounded,) = generate(core_with(0), [prompt], free)
    core = core_with(depth)
    (output,) = generate(core, [prompt], own)
    assert output.token_ids[: budget + 2] == [*unbounded.token_ids[:budget], 22, 21]
    assert 21 not in output.token_ids[budget + 2 :] and len(output.token_ids) == 14
    if depth:
        core = core_with(depth)
        core.proposer = Oracle(output.token_ids)
        (again,) = generate(core, [prompt], own)
        assert again.token_ids == output.token_ids and core.stats().accepted_by_position[0] > 0
        assert sum(core.stats().accepted_by_position) == sum(core.stats().drafted_by_position)


def follow(ids, budget, *, drafts=()):
    """What is forced after each token, in one go and token by token."""
    one_by_one = ThinkingBudget(THINKING, budget)
    stepwise = [one_by_one.forced(ids[: i + 1], ())[0] for i in range(len(ids))]
    for cut in range(1, len(ids) + 1):
        assert ThinkingBudget(THINKING, budget).forced(ids[:cut], ids[cut:]) == stepwise[cut - 1 :]
    return stepwise


def test_the_budget_follows_every_block_and_counts_their_tokens_together():
    assert follow([1, 20, 5, 6, 7], 2) == [None, None, None, 22, 22]
    assert follow([20, 5, 22, 21, 6], 2) == [None, None, 21, None, None]  # a newline of the model's own is enough
    assert follow([20, 5, 21, 1, 20, 6, 7], 2) == [None, None, None, None, None, 22, 22]
    assert follow([20, 5, 6, 23, 7], 3) == [None] * 5  # a call ends the reasoning
    assert follow([1, 2, 3], 0) == [None] * 3
    assert follow([1, 20], 0) == [None, 22]
    assert ThinkingBudget(THINKING._replace(newline=None), 0).forced([20], ()) == [21]


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("own_budget", [None, 100])
def test_thinking_can_be_stopped_while_it_runs(depth, own_budget):
    own = SamplingParams(max_tokens=30, temperature=0, thinking_budget=own_budget, logit_bias={**KEEP_THINKING, 22: -100}, ignore_eos=True)
    core = core_with(depth)
    core.add(GenerationRequest("a", [1, 20], own))
    early = [output for _ in range(4) for output in core.step()]
    assert core.stop_thinking("a") and not core.stop_thinking("b")
    known = sum(len(o.token_ids) for o in early)
    output = merged([*early, *drain(core)["a"]])
    assert output.token_ids[known : known + 2] == [22, 21]
    assert 21 not in output.token_ids[known + 2 :]


@pytest.mark.parametrize("depth", [0, 3])
def test_thinking_can_be_stopped_before_it_begins(depth):
    core = core_with(depth)
    core.add(GenerationRequest("a", [1], SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, logit_bias={20: 100, 21: -100})))
    core.stop_thinking("a")
    assert merged(drain(core)["a"]).token_ids == [20, 22, 21, 20, 22, 21]
