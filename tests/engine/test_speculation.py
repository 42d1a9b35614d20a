"""Acceptance is exact: by enumeration, by statistics, and token for token against decoding without drafts."""

import itertools
from collections import Counter

import pytest
import torch
from engine_runs import generate, make_core
from hypothesis import given
from hypothesis import strategies as st
from test_sampler import chi_square_p_value

from openglm.engine.request import SamplingParams
from openglm.engine.sampler import SamplingRow, draw, filtered_probabilities
from openglm.engine.speculation import longest_match


@given(st.lists(st.integers(0, 2), max_size=5), st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_longest_match_counts_leading_agreement(drafts, chosen):
    count = longest_match(drafts, chosen)
    assert drafts[:count] == chosen[:count]
    assert count == len(drafts) or drafts[count] != chosen[count]


def test_accepting_the_inverse_cdf_is_rejection_sampling_with_a_fixed_draft():
    """Enumerated over all u on a grid that hits every step of the distribution: P(accept d) = p(d), and what replaces a
    rejected draft has the target distribution with d removed."""
    probabilities = [0.25, 0.125, 0.5, 0.0, 0.125]
    cumulative = torch.tensor(probabilities, dtype=torch.float64).cumsum(-1)
    grid = torch.arange(4096, dtype=torch.float64) / 4096
    chosen = torch.searchsorted(cumulative, grid, right=True).tolist()
    for draft in range(5):
        rejected = Counter(token for token in chosen if longest_match([draft], [token]) == 0)
        assert 1 - sum(rejected.values()) / 4096 == probabilities[draft]
        for token, count in rejected.items():
            assert token != draft
            assert count / sum(rejected.values()) == pytest.approx(probabilities[token] / (1 - probabilities[draft]), abs=1e-12)


SETTINGS = [
    SamplingParams(),
    SamplingParams(temperature=0.5),
    SamplingParams(top_k=2),
    SamplingParams(top_p=0.6),
    SamplingParams(min_p=0.3),
    SamplingParams(temperature=1.5, top_k=3, top_p=0.9, min_p=0.1),
]


@pytest.mark.parametrize("params", SETTINGS)
def test_token_sequences_with_drafts_have_exactly_the_target_distribution(params):
    """A toy model over 4 tokens whose logits depend on the last token; two drafted steps; 12,000 seeds per setting."""
    table = torch.tensor([[1.0, 0.0, 2.0, -1.0], [0.5, 0.5, 0.0, 1.0], [-1.0, 2.0, 0.3, 0.0], [0.0, 0.1, 0.2, 0.3]])
    step = filtered_probabilities(table, [params] * 4).double()
    step = step / step.sum(-1, keepdim=True)
    count, drafts, start = 12_000, (2, 1), 0
    first = draw(table[start].expand(count, -1), [SamplingRow(params, seed, 1) for seed in range(count)])
    # The verify step computes its second row behind the *draft*, whatever the first row then chooses.
    behind_draft = draw(table[drafts[0]].expand(count, -1), [SamplingRow(params, seed, 2) for seed in range(count)])
    counts: Counter[tuple[int, ...]] = Counter()
    redrawn = []
    for seed, (a, b) in enumerate(zip(first.tolist(), behind_draft.tolist(), strict=True)):
        kept = [a, b][: longest_match(drafts, [a, b]) + 1]
        if len(kept) == 1:
            redrawn.append((seed, a))  # the next step decides position 2 after the token that replaced the draft
        else:
            counts[tuple(kept[:2])] += 1
    if redrawn:  # a filter may leave the draft as the only choice
        rows = [SamplingRow(params, seed, 2) for seed, _ in redrawn]
        again = draw(table[torch.tensor([a for _, a in redrawn])], rows).tolist()
        counts.update((a, b) for (_, a), b in zip(redrawn, again, strict=True))
    pairs = list(itertools.product(range(4), repeat=2))
    expected = [float(step[start, a] * step[a, b]) for a, b in pairs]
    assert all(p > 0 for pair, p in zip(pairs, expected, strict=True) if counts[pair])
    assert chi_square_p_value([counts[pair] for pair in pairs], expected) > 0.01


def test_depth_is_cut_so_that_no_draft_lies_behind_the_last_token():
    core = make_core(num_speculative_tokens=3, num_tokens=4)
    for max_tokens in (1, 2, 3, 5):
        (output,) = generate(core, [[1, 2, 3]], SamplingParams(max_tokens=max_tokens, temperature=0))
        assert len(output.token_ids) == max_tokens and output.finish_reason == "length"
    (output,) = generate(core, [[1] * 500], SamplingParams(temperature=0))
    assert output.num_prompt_tokens + len(output.token_ids) == core.config.max_model_len


def test_acceptance_is_counted_per_position_and_per_request():
    core = make_core(num_speculative_tokens=2, num_tokens=4)
    outputs = generate(core, [[1, 2, 3], [3, 2, 1, 0]], SamplingParams(max_tokens=60, temperature=0))
    stats = core.stats()
    assert sum(o.num_drafted for o in outputs) == sum(stats.drafted_by_position)
    assert sum(o.num_accepted for o in outputs) == sum(stats.accepted_by_position) > 0
    assert stats.num_generated_tokens == 120


def test_mtp_state_is_refreshed_with_true_hidden_states():
    """Drafts in the middle of a generation equal the first drafts of a fresh engine that gets the same tokens as its prompt."""

    def recorded(prompt: list[int], max_tokens: int) -> tuple[dict[int, list[int]], list[int]]:
        core = make_core(num_speculative_tokens=3, num_tokens=6, enable_prefix_caching=False)
        propose, drafts_at = core.proposer.propose, {}

        def spy(settled, hidden):
            drafts = propose(settled, hidden)
            drafts_at.update({len(item.sequence.tokens): chain for item, chain in zip(settled, drafts, strict=True) if item.depth == 3})
            return drafts

        core.proposer.propose = spy
        (output,) = generate(core, [prompt], SamplingParams(max_tokens=max_tokens, temperature=0.9, seed=3))
        return drafts_at, prompt + output.token_ids

    drafts_at, tokens = recorded([1, 2, 3], 80)
    for length in [n for n in drafts_at if 60 < n < 70]:
        fresh, _ = recorded(tokens[: length - 1], 5)
        assert fresh[length] == drafts_at[length]
