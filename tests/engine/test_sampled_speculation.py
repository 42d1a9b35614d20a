"""Sampled speculation has the distribution of plain sampling, whatever is drafted and however logits are adjusted.

A toy model of 4 tokens whose logits depend on the last one, through the engine's own adjuster, sampler and acceptance, against a
distribution that is computed from the definitions in plain Python. Three tokens per request, 64 outcomes.
"""

import itertools
import math
from collections import Counter

import pytest
import torch
from test_sampler import chi_square_p_value, kept_by_definition

from openglm.engine.adjust import LogitAdjuster
from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.engine.sampler import Sampler, SamplingRow
from openglm.engine.sequence import Sequence
from openglm.engine.speculation import longest_match

TABLE = [[1.0, 0.0, 2.0, -1.0], [0.5, 0.4, 0.0, 1.0], [-1.0, 2.0, 0.3, 0.0], [0.0, 0.1, 0.2, 0.3]]
VOCABULARY = range(4)
PROMPT = [2, 0]
LENGTH = 3

SETTINGS = {
    "plain": SamplingParams(),
    "cold": SamplingParams(temperature=0.5),
    "top_k": SamplingParams(top_k=2),
    "top_p": SamplingParams(top_p=0.6),
    "min_p": SamplingParams(min_p=0.3),
    "all filters": SamplingParams(temperature=1.5, top_k=3, top_p=0.9, min_p=0.1),
    "repetition": SamplingParams(repetition_penalty=1.6),
    "frequency and presence": SamplingParams(frequency_penalty=0.8, presence_penalty=0.5),
    "bias": SamplingParams(logit_bias={1: 1.2, 2: -0.7}),
    "bad words": SamplingParams(bad_words=((3,), (2, 1))),
    "min_tokens": SamplingParams(min_tokens=2, stop_token_ids=(1,)),
    "everything": SamplingParams(
        temperature=1.3, top_k=3, top_p=0.95, min_p=0.02, repetition_penalty=0.8, frequency_penalty=-0.4, presence_penalty=0.6,
        logit_bias={0: 0.5}, bad_words=((0, 0),), min_tokens=1, stop_token_ids=(3,),
    ),
}  # fmt: skip


def next_distribution(params: SamplingParams, generated: tuple[int, ...]) -> list[float]:
    """By the definitions, without tensors."""
    history = [*PROMPT, *generated]
    logits = list(TABLE[history[-1]])
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    banned = set(params.stop_token_ids) if len(generated) < params.min_tokens else set()
    for words in params.bad_words:
        if len(words) == 1 or generated[len(generated) - len(words) + 1 :] == words[:-1]:
            banned.add(words[-1])
    for token in VOCABULARY:
        if token in history:
            logits[token] *= params.repetition_penalty if logits[token] <= 0 else 1 / params.repetition_penalty
        count = generated.count(token)
        logits[token] -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
    allowed = [token for token in VOCABULARY if token not in banned]
    kept = {allowed[i] for i in kept_by_definition([logits[token] for token in allowed], params)}
    hottest = max(logits[token] for token in kept)
    weights = [math.exp((logits[token] - hottest) / params.temperature) if token in kept else 0.0 for token in VOCABULARY]
    return [weight / sum(weights) for weight in weights]


def target(params: SamplingParams) -> dict[tuple[int, ...], float]:
    found = {}
    for tokens in itertools.product(VOCABULARY, repeat=LENGTH):
        found[tokens] = math.prod(next_distribution(params, tokens[:i])[token] for i, token in enumerate(tokens))
    return found


def drafts_for(sequence: Sequence) -> list[int]:
    """None, the likeliest chain (as a good MTP layer drafts), the least likely one, or a fixed one, of changing length."""
    kind = sequence.seed % 4
    drafts: list[int] = []
    for i in range(min(sequence.seed // 4 % 3 + 1, LENGTH - sequence.num_output - 1)):
        row = TABLE[drafts[-1] if drafts else sequence.tokens[-1]]
        drafts.append([0, row.index(max(row)), row.index(min(row)), (sequence.seed + i) % 4][kind])
    return drafts if kind else []


def generated(params: SamplingParams, seeds: range) -> tuple[Counter, int]:
    """Outcomes of decoding with drafts, and how many drafts were kept."""
    adjuster, sampler = LogitAdjuster(4, None, torch.device("cpu")), Sampler(4)
    table = torch.tensor(TABLE)
    sequences = []
    for seed in seeds:
        sequence = Sequence(GenerationRequest(str(seed), PROMPT, params), arrival=seed, max_model_len=100, seed=seed)
        adjuster.add(sequence, params.stop_token_ids)
        sequences.append(sequence)
    num_kept, running = 0, sequences
    while running:
        for sequence in running:
            sequence.drafts = drafts_for(sequence)
        logits = table[torch.tensor([token for s in running for token in (s.tokens[-1], *s.drafts)])]
        rows = [SamplingRow(params, s.seed, len(s.tokens) + i) for s in running for i in range(1 + len(s.drafts))]
        chosen = iter(sampler.sample(logits, rows, adjuster.adjust(logits, running)))
        for sequence in running:
            tokens = [next(chosen).token for _ in range(1 + len(sequence.drafts))]
            count = longest_match(sequence.drafts, tokens)
            sequence.tokens += tokens[: count + 1]
            num_kept += count
        running = [sequence for sequence in running if sequence.num_output < LENGTH]
    for sequence in sequences:
        adjuster.remove(sequence.id)
    return Counter(tuple(sequence.tokens[len(PROMPT) :]) for sequence in sequences), num_kept


def p_value(params: SamplingParams, num_requests: int) -> float:
    expected, counts, num_kept = target(params), Counter(), 0
    for start in range(0, num_requests, 1000):
        part, kept = generated(params, range(start, min(start + 1000, num_requests)))
        counts.update(part)
        num_kept += kept
    assert num_kept > 0
    assert all(expected[tokens] > 0 for tokens in counts), "nothing that plain sampling excludes"
    common = [tokens for tokens, probability in expected.items() if probability * num_requests >= 5]
    rest = 1 - sum(expected[tokens] for tokens in common)
    observed = [counts[tokens] for tokens in common]
    if rest * num_requests >= 5:
        return chi_square_p_value([*observed, num_requests - sum(observed)], [*(expected[tokens] for tokens in common), rest])
    return chi_square_p_value(observed, [expected[tokens] for tokens in common])


@pytest.mark.parametrize("params", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_distribution_is_that_of_plain_sampling(params):
    assert p_value(params, 1000) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("params", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_distribution_is_that_of_plain_sampling_over_many_draws(params):
    """12 settings of 12,000 requests with 3 draws each: 432,000 draws."""
    assert p_value(params, 12_000) > 0.01
