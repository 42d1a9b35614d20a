"""What a step costs by the number of drafts: measured at the start, corrected while requests run. No tensors and no clock.

A cost is the time of a whole step that verifies d drafts of every sequence and makes d new ones, d = 0, 1, ... It depends on the number
of sequences and on the length of their context (`_Situation`). What makes all steps of a situation faster or slower for a while (`pace`) is
kept apart: depths are compared with each other, and only a measurement of one depth *relative to its neighbours in time* changes
the order among them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence as Seq
from typing import NamedTuple

MAX_SITUATIONS = 128

_FIRST_STEPS = 8  # measured steps of which the median counts
_RATE = 1 / 8  # at which an estimate follows its measurements from then on
_COMPARED = 8  # measured steps after a change of depth that tell its cost
_OLD = 128  # steps without a measurement after which it begins anew
_PACE_RATE = 0.1  # per step
_STEPS_LIMIT = 4  # for which one measurement may speak
_OUTLIER = 0.2  # |log| beyond which a measurement counts no more
_SHORT_CONTEXT = 256
_NEIGHBOURS = 4  # situations from which a ratio is taken


class StepCosts:
    """Seconds of a step per depth, for every situation met so far, the least recent of many forgotten."""

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth
        self._known: dict[_Situation, _Costs] = {}
        self._depths = range(max_depth + 1)

    def add(self, num_sequences: int, context: int, depth: int, seconds: float, *, steps: int = 1) -> None:
        """Learn from the last of `steps` steps, in which every sequence had `depth` drafts."""
        situation = _Situation.of(num_sequences, context)
        known = self._known.pop(situation, None) or _Costs(self.max_depth)
        self._known[situation] = known  # now the youngest
        if len(self._known) > MAX_SITUATIONS:
            del self._known[next(iter(self._known))]
        known.add(depth, seconds, steps=steps)

    def at_usual_pace(self, num_sequences: int, context: int, seconds: float) -> float:
        """What a step that just took so long would have taken when the costs of its situation were first measured."""
        known = self._known.get(_Situation.of(num_sequences, context))
        return seconds if known is None else seconds / known.pace

    def of(self, num_sequences: int, context: int) -> list[float] | None:
        """Seconds at depth 0, 1, ...; what was not measured is inferred from similar situations. None if nothing ever was."""
        situation = _Situation.of(num_sequences, context)
        known = self._known.get(situation)
        if known is not None and None not in known.seconds:
            return [seconds or 0.0 for seconds in known.seconds]
        others = sorted(self._known.items(), key=lambda item: situation.distance(item[0]))
        own = known.seconds if known is not None else others[0][1].seconds if others else None
        if own is None:
            return None
        near = [(situation.distance(other), costs) for other, costs in others]
        return [self._inferred(depth, own, near) for depth in self._depths]

    def num_measured(self, depth: int, num_sequences: int, context: int) -> int:
        """Steps in which the depth was measured here or with at most four times or a quarter of the sequences: the most of these."""
        situation = _Situation.of(num_sequences, context)
        return max((known.trials[depth] for other, known in self._known.items() if situation.distance(other) <= 2.0), default=0)

    def age(self, depth: int, num_sequences: int, context: int) -> float:
        """Steps of this situation since the depth was measured in it."""
        known = self._known.get(_Situation.of(num_sequences, context))
        return math.inf if known is None else known.age(depth)

    def __len__(self) -> int:
        return len(self._known)

    def _inferred(self, depth: int, own: Seq[float | None], others: Seq[tuple[float, _Costs]]) -> float:
        """The nearest depth that was measured, times the ratio of the two as the nearest situations that know both have it."""
        near = min((d for d, seconds in enumerate(own) if seconds is not None), key=lambda d: abs(d - depth))
        base = own[near] or 0.0
        if near == depth:
            return base
        total = weights = 0.0
        found = 0
        for distance, other in others:
            here, there = other.seconds[near], other.seconds[depth]
            if here is None or there is None:
                continue
            weight = min(other.trials[near], other.trials[depth], 16) * 0.25**distance
            total += weight * math.log(there / here)
            weights += weight
            found += 1
            if found == _NEIGHBOURS:
                break
        if weights:
            return base * math.exp(total / weights)
        return base * (1.0 + 0.3 * (depth - near) if depth > near else 1.0 / (1.0 + 0.3 * (near - depth)))


class _Situation(NamedTuple):
    """Sequences (exact up to 16, then within 6 %) and context (within a factor of 4)."""

    num_sequences: int
    context: int

    @classmethod
    def of(cls, num_sequences: int, context: int) -> _Situation:
        grain = 1 << max(0, num_sequences.bit_length() - 4)
        return cls(num_sequences // grain * grain, max(0, (context // _SHORT_CONTEXT).bit_length() - 1) // 2)

    def distance(self, other: _Situation) -> float:
        return abs(math.log2(self.num_sequences / other.num_sequences)) + abs(self.context - other.context)


class _Costs:
    """Seconds at 0, 1, ... drafts per sequence in one situation: of the first measurements the median, then a decaying mean.

    A depth is compared with the one before it: what the first `_COMPARED` steps after a change take longer than expected is the new depth's
    doing, what changes later is the pace of all.
    """

    def __init__(self, max_depth: int) -> None:
        self.seconds: list[float | None] = [None] * (max_depth + 1)
        self.trials = [0] * (max_depth + 1)
        self.pace = 1.0  # how slow the machine is at present
        self._first: list[list[float]] = [[] for _ in self.trials]
        self._num_steps = 0
        self._measured_at = [-math.inf] * (max_depth + 1)
        self._depth = -1  # measured last
        self._in_a_row = 0  # measurements of it

    def add(self, depth: int, seconds: float, *, steps: int) -> None:
        """See `StepCosts.add`."""
        seconds /= self.pace
        known, first = self.seconds[depth], self._first[depth]
        self._in_a_row = self._in_a_row + 1 if depth == self._depth else 1
        self._depth = depth
        self._num_steps += steps
        self.trials[depth] += 1
        if self.age(depth) > _OLD:
            first.clear()
        self._measured_at[depth] = self._num_steps
        if known is None or len(first) < _FIRST_STEPS:
            first.append(seconds)
            self.seconds[depth] = statistics.median(first)
            return
        error = min(max(math.log(seconds / known), -_OUTLIER), _OUTLIER)
        if self._in_a_row <= _COMPARED:
            self.seconds[depth] = known * math.exp(_RATE * error)
        else:
            self.pace *= math.exp((1.0 - (1.0 - _PACE_RATE) ** min(steps, _STEPS_LIMIT)) * error)

    def age(self, depth: int) -> float:
        return self._num_steps - self._measured_at[depth]
