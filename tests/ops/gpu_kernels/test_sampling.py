"""The device sampler chooses what the engine's sampler chooses."""

import itertools

import pytest
import torch

from openglm.engine.device_sampler import DeviceSampler
from openglm.engine.request import SamplingParams
from openglm.engine.sampler import Sampler, SamplingRow, filtered_probabilities
from openglm.ops.triton.sampling import sample


def test_same_filters_and_same_number_give_the_same_token():
    g = torch.Generator().manual_seed(0)
    settings = list(itertools.product((0.7, 2.0), (0, 5), (1.0, 0.8), (0.0, 0.1)))
    logits = (torch.randn(len(settings), 301, generator=g) * 3).round(decimals=1)  # ties
    logits[:, 7] = float("-inf")
    uniforms = torch.rand(len(settings), generator=g, dtype=torch.float64)
    t, k, p, m = zip(*settings, strict=True)
    got = sample(
        logits,
        temperatures=torch.tensor(t),
        top_k=torch.tensor(k, dtype=torch.int32),
        top_p=torch.tensor(p, dtype=torch.float64),
        min_p=torch.tensor(m),
        uniforms=uniforms,
    )
    params = [SamplingParams(temperature=a, top_k=b, top_p=c, min_p=d) for a, b, c, d in settings]
    cumulative = filtered_probabilities(logits, params).double().cumsum(-1)
    expected = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    assert torch.equal(got.tokens, expected[:, 0]) and got.finite.all()
    torch.testing.assert_close(got.logprobs, logits.log_softmax(-1).gather(1, expected)[:, 0], atol=1e-5, rtol=1e-5)


def test_greedy_takes_the_first_of_equals_and_damaged_rows_are_told():
    logits = torch.zeros(4, 9)
    logits[0, 3:5] = 2.0
    logits[1, 8], logits[2, 1], logits[3] = float("nan"), float("inf"), float("-inf")
    zeros = torch.zeros(4)
    got = sample(logits, temperatures=zeros, top_k=zeros.int(), top_p=zeros.double() + 1, min_p=zeros, uniforms=zeros.double())
    assert got.tokens[0] == 3 and got.finite.tolist() == [True, False, False, False]


def test_settings_of_another_shape_are_refused():
    one = torch.ones(1)
    with pytest.raises(ValueError, match="setting"):
        sample(torch.zeros(2, 4), temperatures=one, top_k=one.int(), top_p=one.double(), min_p=one, uniforms=one.double())


@pytest.mark.parametrize("with_adjusted", [False, True])
def test_the_engines_sampler_answers_the_same_through_the_kernel(with_adjusted):
    logits = torch.randn(8, 150, generator=torch.Generator().manual_seed(4)) * 3
    logits[5, 11] = float("nan")
    adjusted = None
    if with_adjusted:
        adjusted = logits[:, :141].clone()
        adjusted[:, ::3] = float("-inf")
        adjusted[2] = float("-inf")  # everything is banned
    choices = [SamplingParams(temperature=0, logprobs=2), SamplingParams(top_k=9, top_p=0.8, logprobs=5), SamplingParams(min_p=0.02)]
    rows = [SamplingRow(choices[i % 3], i, 7) for i in range(8)]
    got, expected = DeviceSampler(141, sample).sample(logits, rows, adjusted), Sampler(141).sample(logits, rows, adjusted)
    assert [row.finite for row in got] == [row.finite for row in expected] == [i != 5 for i in range(8)]
    sound = [i for i in range(8) if i != 5]
    assert [got[i].allowed for i in sound] == [expected[i].allowed for i in sound] == [not (with_adjusted and i == 2) for i in sound]
    assert all(got[i] == expected[i] for i in sound if got[i].allowed)
