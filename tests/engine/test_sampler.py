"""Filters against their definitions, draws against the distributions they claim, rows against their company."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openglm.engine.request import SamplingParams
from openglm.engine.sampler import Sampler, SamplingRow, draw, filtered_probabilities, uniform


def kept_by_definition(logits: list[float], p: SamplingParams) -> set[int]:
    """The filters in plain Python, one after the other; ties with the last kept token stay."""
    hottest = max(logits)
    weights = [math.exp((x - hottest) / p.temperature) for x in logits]
    kept = set(range(len(logits)))
    if 0 < p.top_k < len(logits):
        kept = {i for i in kept if weights[i] >= sorted(weights, reverse=True)[p.top_k - 1]}
    total = sum(weights[i] for i in kept)
    if p.top_p < 1:
        mass, threshold = 0.0, 0.0
        for weight in sorted((weights[i] for i in kept), reverse=True):
            mass, threshold = mass + weight / total, weight
            if mass >= p.top_p:
                break
        kept = {i for i in kept if weights[i] >= threshold}
    return {i for i in kept if weights[i] >= p.min_p * max(weights)}


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, 8),
    top_p=st.sampled_from([0.05, 0.31, 0.77, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.06, 0.45]),
)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(st.lists(st.integers(-6, 6), min_size=7, max_size=7), PARAMS), min_size=1, max_size=4))
def test_filters_keep_what_their_definition_says(rows):
    logits = torch.tensor([values for values, _ in rows], dtype=torch.float32)
    probabilities = filtered_probabilities(logits, [p for _, p in rows])
    for (values, p), row in zip(rows, probabilities.tolist(), strict=True):
        assert {i for i, x in enumerate(row) if x > 0} == kept_by_definition(values, p)


def test_nucleus_wider_than_the_first_look_is_found():
    logits = torch.zeros(1, 1000)
    logits[0, :900] += torch.linspace(1, 0.5, 900)
    kept = int((filtered_probabilities(logits, [SamplingParams(top_p=0.8)]) > 0).sum())
    probabilities = logits.softmax(-1).sort(descending=True).values.cumsum(-1)
    assert kept == int((probabilities < 0.8).sum()) + 1 > 256


def test_every_token_owns_an_interval_as_long_as_its_probability():
    """The map from u to a token is a step function: its steps, found by bisection, are the exact probabilities."""
    probabilities = torch.tensor([[0.5, 0.0, 0.125, 0.25, 0.125]])
    cumulative = probabilities.double().cumsum(-1)

    def token_at(u: float) -> int:
        return int(torch.searchsorted(cumulative, torch.tensor([[u]], dtype=torch.float64), right=True))

    edges = [0.0, 0.5, 0.625, 0.875]
    assert [token_at(u) for u in edges] == [0, 2, 3, 4]
    assert [token_at(u - 2**-48) for u in edges[1:]] == [0, 2, 3]
    assert token_at(1 - 2**-48) == 4


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.2),
        SamplingParams(temperature=1.3, top_k=6, top_p=0.9, min_p=0.05),
    ],
)
def test_draws_follow_the_filtered_distribution(params):
    count, logits = 20_000, torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -3.0, 0.5, 1.5])
    expected = filtered_probabilities(logits.unsqueeze(0), [params])[0].double()
    expected = (expected / expected.sum()).tolist()
    rows = [SamplingRow(params, seed, position) for seed in range(200) for position in range(count // 200)]
    drawn = Counter(draw(logits.expand(count, -1), rows).tolist())
    assert all(expected[token] > 0 for token in drawn)
    assert chi_square_p_value([drawn[i] for i in range(8)], expected) > 0.01


def test_padding_ids_are_never_chosen():
    logits = torch.full((2, 10), -5.0)
    logits[:, 6:] = 50.0
    rows = [SamplingRow(SamplingParams(temperature=0), 0, 0), SamplingRow(SamplingParams(temperature=2.0, logprobs=20), 0, 0)]
    sampled = Sampler(6).sample(logits, rows)
    assert all(row.token < 6 for row in sampled)
    assert len(sampled[1].logprobs.top) == 6


def test_rows_do_not_see_their_company():
    rng = random.Random(0)
    logits = torch.randn(40, 700, generator=torch.Generator().manual_seed(1)) * 3
    choices = [
        SamplingParams(temperature=0, logprobs=3),
        SamplingParams(temperature=0.7),
        SamplingParams(top_k=20, logprobs=0),
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.999, min_p=0.001),
    ]
    rows = [SamplingRow(rng.choice(choices), i, 9) for i in range(40)]
    sampler = Sampler(690)
    together = sampler.sample(logits, rows)
    assert together == [sampler.sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    assert together[3:17] == sampler.sample(logits[3:17], rows[3:17])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(top_k=2, top_p=0.5, min_p=0.1, logprobs=2)])
def test_rows_that_are_not_finite_are_reported_and_the_others_untouched(bad, params):
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(2))
    rows = [SamplingRow(params, i, 0) for i in range(3)]
    clean = Sampler(12).sample(logits, rows)
    logits[1] = bad if bad == -math.inf else logits[1]
    logits[1, 4] = bad
    sampled = Sampler(12).sample(logits, rows)
    assert [row.finite for row in sampled] == [True, False, True]
    assert (sampled[0], sampled[2]) == (clean[0], clean[2])


def test_logprobs_are_of_the_model_before_temperature_and_filters():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    (row,) = Sampler(4).sample(logits, [SamplingRow(SamplingParams(temperature=0.1, top_k=1, logprobs=2), 0, 0)])
    expected = logits.log_softmax(-1)[0].tolist()
    assert row.logprobs.token == row.token == 3
    assert row.logprobs.logprob == expected[3]
    assert row.logprobs.top == ((3, expected[3]), (2, expected[2]))


def test_tiny_temperatures_do_not_overflow():
    logits = torch.tensor([[100.0, 99.0, -100.0]])
    assert draw(logits, [SamplingRow(SamplingParams(temperature=2e-5), 1, 1)]).tolist() == [0]


def test_uniforms_are_uniform_and_differ_by_seed_and_position():
    values = [uniform(seed, position) for seed in range(-50, 50) for position in range(100)]
    assert len(set(values)) == len(values) and min(values) >= 0 and max(values) < 1
    counts = Counter(int(value * 20) for value in values)
    assert chi_square_p_value([counts[i] for i in range(20)], [1 / 20] * 20) > 0.001


def chi_square_p_value(counts: list[int], probabilities: list[float]) -> float:
    """Upper tail of the chi-square statistic, by the regularised incomplete gamma function."""
    total = sum(counts)
    cells = [(count, p * total) for count, p in zip(counts, probabilities, strict=True) if p > 0]
    if len(cells) < 2:
        return 1.0
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    half = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64)))
