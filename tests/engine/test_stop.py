"""Stop ids and stop strings, across every way of cutting the text."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from openglm.engine.request import SamplingParams
from openglm.engine.stop import StopChecker, StopStrings

TEXT = st.text("abc", max_size=24)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


def expected_cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The match that ends first wins; among those that end together, the one that begins first."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=200, deadline=None)
@given(TEXT, STOPS, st.lists(st.integers(0, 24), max_size=6))
def test_every_cut_of_the_text_gives_the_same_result(text, stops, cuts):
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    scanner = StopStrings(stops)
    shown = "".join(scanner.push(text[a:b]) for a, b in pairwise(borders))
    if scanner.matched is None:
        shown += scanner.finish()
    assert (shown, scanner.matched) == expected_cut(text, stops)


def test_text_that_may_become_a_stop_string_is_held_back():
    scanner = StopStrings(["END", "<stop>"])
    assert scanner.push("hello <st") == "hello "
    assert scanner.push("ar> EN") == "<star> "
    assert scanner.push("D of it") == ""
    assert scanner.matched == "END"
    assert scanner.push("more") == "" and scanner.finish() == ""


class Letters:
    """A detokenizer for tests: token n is the n-th letter."""

    def push(self, ids):
        return "".join(chr(ord("a") + i) for i in ids)


def test_stop_id_is_hidden_and_reported():
    checker = StopChecker(SamplingParams(stop_token_ids=(5,)), frozenset({9}), None)
    assert checker.check(4) is None
    assert checker.check(5) == (5, False)
    assert checker.check(9) == (9, False)


def test_ignore_eos_keeps_the_requests_own_stop_ids():
    checker = StopChecker(SamplingParams(stop_token_ids=(5,), ignore_eos=True), frozenset({9}), None)
    assert checker.check(9) is None
    assert checker.check(5) == (5, False)


def test_stop_string_over_a_token_border_ends_the_request():
    checker = StopChecker(SamplingParams(stop=("cd",)), frozenset(), Letters())
    assert checker.check(2) is None
    assert checker.check(3) == ("cd", True)
