"""The sampler around a device kernel answers what the host's sampler answers, row for row, and waits once."""

import math
import random
import re

import constrained_runs
import pytest
import torch
from engine_runs import generate, make_core
from torch import Tensor
from torch.overrides import TorchFunctionMode

from openglm.engine.constraint import Constraint
from openglm.engine.core import EngineCore
from openglm.engine.device_sampler import DeviceSampler
from openglm.engine.request import SamplingParams
from openglm.engine.sampler import Sampler, SamplingRow, filtered_probabilities


class HostKernel:
    """Stands for the kernel: the host's filters and draw, from settings in tensors."""

    def __init__(self) -> None:
        self.calls = 0
        self.running = False

    def __call__(self, logits: Tensor, *, temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniforms: Tensor):
        assert [x.dtype for x in (temperatures, top_k, top_p, min_p, uniforms)] == [
            torch.float32, torch.int32, torch.float64, torch.float32, torch.float64,
        ]  # fmt: skip
        self.calls += 1
        self.running = True
        best, tokens = logits.max(-1)[0], logits.argmax(-1)
        for n, temperature in enumerate(temperatures.tolist()):
            if temperature == 0:
                continue
            params = SamplingParams(temperature=temperature, top_k=int(top_k[n]), top_p=float(top_p[n]), min_p=float(min_p[n]))
            cumulative = filtered_probabilities(logits[n : n + 1], [params]).double().cumsum(-1)
            tokens[n] = torch.searchsorted(cumulative, uniforms[n] * cumulative[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
        logprobs = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        self.running = False
        return tokens, best.isfinite(), logprobs


class CountsWaits(TorchFunctionMode):
    """Counts what would make the host wait for a device."""

    def __init__(self, kernel: HostKernel) -> None:
        super().__init__()
        self.kernel, self.waits = kernel, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if not self.kernel.running and name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "nonzero"):
            self.waits += 1
        return func(*args, **(kwargs or {}))


CHOICES = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=0, logprobs=3),
    SamplingParams(temperature=0.7, logprobs=0),
    SamplingParams(top_k=20, logprobs=20),
    SamplingParams(top_k=10**9, top_p=0.9),
    SamplingParams(temperature=1.6, top_k=9, top_p=0.6, min_p=0.05, logprobs=1),
]


@pytest.mark.parametrize("with_adjusted", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_rows_of_every_kind_are_answered_alike_with_one_call_and_one_wait(seed, with_adjusted):
    rng = random.Random(seed)
    logits = torch.randn(12, 40, generator=torch.Generator().manual_seed(seed)) * 3
    for bad in (math.nan, math.inf):
        logits[rng.randrange(12), rng.randrange(33)] = bad
    adjusted = None
    if with_adjusted:
        adjusted = logits[:, :33].clone()
        adjusted[:, ::3] = -math.inf
        adjusted[rng.randrange(12)] = -math.inf  # everything is banned
    rows = [SamplingRow(rng.choice(CHOICES), rng.randrange(99), rng.randrange(99)) for _ in range(12)]
    kernel = HostKernel()
    with CountsWaits(kernel) as counter:
        got = DeviceSampler(33, kernel).sample(logits, rows, adjusted)
    assert (kernel.calls, counter.waits) == (1, 1)
    for mine, expected in zip(got, Sampler(33).sample(logits, rows, adjusted), strict=True):
        assert (mine.finite, mine.allowed or not mine.finite) == (expected.finite, expected.allowed or not expected.finite)
        assert mine == expected or not (mine.finite and mine.allowed)


def test_what_the_kernel_does_not_take_is_sampled_without_it():
    kernel, logits = HostKernel(), torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).T
    rows = [SamplingRow(CHOICES[i], i, 0) for i in range(5)]
    assert DeviceSampler(7, kernel).sample(logits, rows) == Sampler(7).sample(logits, rows)
    assert kernel.calls == 0


def test_an_engine_with_a_kernel_gives_the_tokens_of_one_without():
    """Penalties, bans, log probabilities and drafts, all in one batch."""
    asked = [
        SamplingParams(max_tokens=12, temperature=0, ignore_eos=True),
        SamplingParams(max_tokens=12, top_p=0.8, logprobs=4, ignore_eos=True),
        SamplingParams(max_tokens=12, top_k=6, repetition_penalty=1.4, logit_bias={3: 5.0}, logprobs=2, ignore_eos=True),
        SamplingParams(max_tokens=12, bad_words=((5,), (6, 7)), presence_penalty=0.7, ignore_eos=True),
    ]
    prompts = [[5, 6, 7, 8 + i] for i in range(len(asked))]
    plain = make_core(num_tokens=40, num_speculative_tokens=1)
    kernel = HostKernel()
    core = EngineCore(plain.runner.model, plain.config, num_tokens=40, sample_kernel=kernel)
    assert type(plain.sampler) is Sampler and type(core.sampler) is DeviceSampler
    assert generate(core, prompts, asked) == generate(plain, prompts, asked)
    assert kernel.calls > 0


def test_constraints_choose_check_and_choose_again_through_the_kernel():
    asked = [
        SamplingParams(max_tokens=20, seed=i, temperature=float(i % 2), logprobs=2, constraint=Constraint("regex", "[abc]{6}"))
        for i in range(4)
    ]
    prompts = [constrained_runs.prompt()] * len(asked)
    plain = constrained_runs.make_core()
    core, kernel = constrained_runs.make_core(), HostKernel()
    core.sampler = core.constrainer._sampler = DeviceSampler(core.num_tokens, kernel)
    outputs = generate(core, prompts, asked)
    assert outputs == generate(plain, prompts, asked)
    assert all(re.fullmatch("[abc]{6}", constrained_runs.text_of(output.token_ids)) for output in outputs)
    assert core.stats().num_redrawn_tokens > 0 < kernel.calls
