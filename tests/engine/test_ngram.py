"""Prompt lookup finds what the definition finds, with work that does not grow with the context."""

import random

from hypothesis import given
from hypothesis import strategies as st

from openglm.engine import ngram
from openglm.engine.ngram import NgramIndex


def by_definition(tokens: list[int], depth: int, longest: int, shortest: int) -> list[int]:
    """Longest suffix first; of its earlier occurrences the newest."""
    for length in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                continued = list(tokens)
                for position in range(end, end + depth):
                    continued.append(continued[position])
                return continued[len(tokens) :]
    return []


@given(st.lists(st.integers(0, 2), min_size=1, max_size=17), st.integers(1, 3), st.integers(0, 3), st.integers(1, 5))
def test_lookup_is_the_definition(tokens, shortest, extra, depth):
    longest = shortest + extra
    index = NgramIndex(longest=longest, shortest=shortest)
    for end in range(1, len(tokens) + 1):
        index.extend(tokens[:end])
        assert index.continuation(tokens[:end], depth) == by_definition(tokens[:end], depth, longest, shortest)


def test_a_repetition_is_continued_into_itself():
    index = NgramIndex(longest=4, shortest=2)
    tokens = [9, 8, 1, 2, 1, 2]
    index.extend(tokens)
    assert index.continuation(tokens, 5) == [1, 2, 1, 2, 1]


def test_a_long_prompt_is_indexed_in_bounded_shares(monkeypatch):
    monkeypatch.setattr(ngram, "MAX_INDEXED_PER_STEP", 10)
    rng = random.Random(0)
    tokens = [rng.randrange(50) for _ in range(95)] + [7, 7, 1, 2, 3, 7, 7]
    index = NgramIndex(longest=3, shortest=2)
    found = []
    for _ in range(11):
        index.extend(tokens)
        found.append(index.continuation(tokens, 2))
    assert found[0] != [1, 2] and found[-1] == [1, 2]


def test_no_match_no_drafts():
    index = NgramIndex(longest=4, shortest=2)
    for tokens in ([5], [1, 2, 3, 4]):
        index.extend(tokens)
        assert index.continuation(tokens, 3) == []
