"""How often drafts are right: a decaying tally per position, over all requests and for each."""

from __future__ import annotations

_FADE = 0.98  # per step, of the weight of a position that is not tried
_FADED = 4.0  # trials that a position keeps nevertheless
_LEAN = 6.0  # trials of a request that weigh as much as what is known about all
_FIRST_GUESS = 0.8


class Acceptance:
    """Successes and trials per position, given that the positions before were right. Not more than `window` trials are remembered.

    Positions that are not tried lose weight (not value), so that a later change is noticed at once.
    """

    def __init__(self, max_depth: int, window: float) -> None:
        self._keep = 1.0 - 1.0 / window
        self._hits = [0.0] * max_depth
        self._trials = [0.0] * max_depth

    def add(self, num_accepted: int, num_judged: int) -> None:
        """So many drafts were compared with the true token, of which so many, the first ones, were right."""
        for position in range(min(num_judged, len(self._hits))):
            self._hits[position] = self._hits[position] * self._keep + (position < num_accepted)
            self._trials[position] = self._trials[position] * self._keep + 1.0

    def fade(self, start: int, *, steps: int) -> None:
        """Positions from `start` on were not tried in so many steps."""
        keep = _FADE**steps
        for position in range(start, len(self._hits)):
            if self._trials[position] > _FADED:
                self._hits[position] *= keep
                self._trials[position] *= keep

    def rates(self, prior: list[float] | None) -> list[float]:
        """Per position the rate of success, leaning on `prior` while trials are few."""
        lean = _LEAN
        if prior is None:
            prior, lean = [_FIRST_GUESS] * len(self._hits), 1.0
        return [(hits + lean * before) / (trials + lean) for hits, trials, before in zip(self._hits, self._trials, prior, strict=True)]


def survival(rates: list[float]) -> list[float]:
    """Probability that the draft at depth 1, 2, ... is kept, from the rate at each position."""
    kept, product = [], 1.0
    for rate in rates:
        product *= rate
        kept.append(product)
    return kept
