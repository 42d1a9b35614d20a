"""The whole matrix: a request's tokens and log probabilities are the same bits under every combination of what may vary.

    chunk 16 / 64 / 512  x  prefix cache on / off  x  MTP depth 0 / 1 / 3 / adaptive  x  preemption none / forced  x  float32 / bfloat16
    x  reference ops / native kernels

Each of the 192 combinations is one test of 50 batches, 25 on each of two tiny architectures. A batch holds 4 to 12 of 32 requests,
dealt from a shuffled deck, so that every request is in at least 10 batches of every combination; they arrive over several steps, in
random order. With the cache on, pages of earlier batches are found (and now and then all are forgotten); forced preemption sends
everyone back at random steps, on a pool too small for the batch. Compared are ids, log probabilities with alternatives, prompt log
probabilities and endings, with those of the same request alone, in one chunk, without drafts, cache or company.

Run by `make test-exactness`; one combination by `-k 'chunk64-cache-depth3-preempted-bfloat16-native'`, the failed ones again by
`--last-failed`.
"""

import itertools
import random
import time
from collections import Counter
from functools import cache
from typing import NamedTuple

import pytest
from engine_runs import generate, make_core, merged

from openglm.engine.request import EngineOutput, GenerationRequest, SamplingParams
from openglm.ops import cpu

pytestmark = pytest.mark.exactness

MODELS = ("tiny-air", "tiny-355b")
BATCHES = 50
FEW_TOKENS = 24  # so few that random drafts are sometimes right
KERNELS = (False,) if cpu.available() is None else (True, False)  # native?
ROOM_FOR_DRAFTS = {0: 0, 1: 1, 3: 3, None: 7}  # per sequence in a chunk; None is adaptive


class Combination(NamedTuple):
    chunk: int
    caching: bool
    depth: int | None
    preempted: bool
    dtype: str
    native: bool

    def __str__(self) -> str:
        depth = "adaptive" if self.depth is None else f"depth{self.depth}"
        cached, preempted = ("cache" if self.caching else "nocache"), ("preempted" if self.preempted else "undisturbed")
        return f"chunk{self.chunk}-{cached}-{depth}-{preempted}-{self.dtype}-{'native' if self.native else 'reference'}"


COMBINATIONS = [
    Combination(*values)
    for values in itertools.product((16, 64, 512), (True, False), (0, 1, 3, None), (False, True), ("float32", "bfloat16"), KERNELS)
]


@cache
def requests() -> list[tuple[list[int], SamplingParams]]:
    """32 prompts of 1 to 150 tokens, half of them with a common beginning, each with its own way of choosing tokens."""
    rng = random.Random(11)
    stems = [[rng.randrange(FEW_TOKENS) for _ in range(n)] for n in (64, 100, 129)]
    lengths = [1, 2, 15, 16, 17, 40, 63, 64, 65, 66, 90, 120, 127, 128, 129, 150]
    prompts = [[rng.randrange(FEW_TOKENS) for _ in range(n)] for n in lengths]
    prompts += [[*stems[i % 3], *(rng.randrange(FEW_TOKENS) for _ in range(rng.randrange(1, 21)))] for i in range(16)]
    chosen = []
    for i, prompt in enumerate(prompts):
        settings: dict = {"max_tokens": 4 + i % 6, "logprobs": i % 4, "seed": i, "temperature": 0.0 if i % 3 == 0 else 0.8}
        settings |= [{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.05}][i % 4]
        settings |= [{}, {"frequency_penalty": 0.5, "presence_penalty": 0.2}, {"repetition_penalty": 1.3}, {"logit_bias": {3: 1.5}}, {}][
            i % 5
        ]
        settings |= [{}, {"prompt_logprobs": 1}, {}, {"min_tokens": 3, "stop_token_ids": (1, 2, 3, 4)}, {"bad_words": ((5,), (6, 7))}, {}][
            i % 6
        ]
        chosen.append((prompt, SamplingParams(**settings)))
    return chosen


def outcome(output: EngineOutput) -> tuple:
    return output.token_ids, output.logprobs, output.prompt_logprobs, output.finish_reason, output.stop_reason


@cache
def alone(name: str, dtype: str, native: bool) -> list[tuple]:
    """What every request gets by itself."""
    found = []
    for prompt, params in requests():
        core = make_core(
            name,
            dtype=dtype,
            native=native,
            num_tokens=FEW_TOKENS,
            num_speculative_tokens=0,
            enable_prefix_caching=False,
            max_model_len=192,
            max_num_seqs=1,
        )
        found.append(outcome(generate(core, [prompt], params)[0]))
    return found


def engine(name: str, combination: Combination):
    return make_core(
        name,
        dtype=combination.dtype,
        native=combination.native,
        num_tokens=FEW_TOKENS,
        num_speculative_tokens=combination.depth,
        enable_prefix_caching=combination.caching,
        max_num_batched_tokens=combination.chunk,
        max_num_seqs=min(8, combination.chunk // (1 + ROOM_FOR_DRAFTS[combination.depth])),
        max_model_len=192,
        kv_cache_tokens=576 if combination.preempted else 192 * 12,
    )


def run_batch(core, chosen: list[int], rng: random.Random, *, preempted: bool) -> dict[int, tuple]:
    """The outcomes of these requests, arriving over time."""
    arriving = chosen[::-1]
    outputs: dict[str, list[EngineOutput]] = {str(i): [] for i in chosen}
    while arriving or core.has_work:
        while arriving and (not core.has_work or rng.random() < 0.5):
            number = arriving.pop()
            prompt, params = requests()[number]
            core.add(GenerationRequest(str(number), prompt, params))
        if preempted and rng.random() < 0.1:
            core.scheduler.preempt_all()
        for output in core.step():
            outputs[output.request_id].append(output)
    return {i: outcome(merged(outputs[str(i)])) for i in chosen}


@pytest.fixture(scope="module")
def tally(request):
    """Adds up what was compared, and says it at the end."""
    counts, began = Counter(), time.process_time()
    yield counts
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    seconds = time.process_time() - began
    reporter.write_line(
        f"\nexactness: {counts['combinations']} of {len(COMBINATIONS)} combinations, {counts['batches']} batches, "
        f"{counts['answers']} answers with {counts['tokens']} tokens equal bit for bit; {counts['preemptions']} preemptions, "
        f"{counts['cached']} cached prompt tokens, {counts['accepted']} drafts right and {counts['wrong']} wrong; {seconds:.0f} s of CPU"
    )


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_the_same_bits_as_alone(combination, tally):
    rng = random.Random(str(combination))
    deck: list[int] = []
    appearances: Counter[int] = Counter()
    for name in MODELS:
        core, expected = engine(name, combination), alone(name, combination.dtype, combination.native)
        for _ in range(BATCHES // len(MODELS)):
            size = rng.randrange(4, 13)
            chosen: list[int] = []
            again: list[int] = []  # two shuffles may meet inside a batch
            while len(chosen) < size:
                if not deck:
                    deck = rng.sample(range(len(requests())), len(requests()))
                card = deck.pop()
                (again if card in chosen else chosen).append(card)
            deck += again
            appearances.update(chosen)
            if combination.caching and rng.random() < 0.1:
                core.reset_prefix_cache()
            found = run_batch(core, chosen, rng, preempted=combination.preempted)
            wrong = [i for i in chosen if found[i] != expected[i]]
            assert not wrong, f"{name}: requests {wrong} of batch {chosen} differ from the same requests alone"
            tally.update(batches=1, answers=len(chosen), tokens=sum(len(found[i][0]) for i in chosen))
        stats = core.stats()
        assert stats.kv_accounting_errors == 0 and stats.pages_held == 0
        assert not combination.preempted or stats.num_preemptions > 20
        assert not combination.caching or stats.prompt_tokens_cached > 0
        accepted, drafted = sum(stats.accepted_by_position), sum(stats.drafted_by_position)
        # Whether the adaptive policy ever drafts is decided by the clock; among preemptions it may not get to it.
        assert not combination.depth or 0 < accepted < drafted
        tally.update(preemptions=stats.num_preemptions, cached=stats.prompt_tokens_cached, accepted=accepted, wrong=drafted - accepted)
    assert len(appearances) == len(requests()) and min(appearances.values()) >= 10
    tally.update(combinations=1)
