"""How many tokens to draft: measured, not assumed. No tensors and no clock; seconds come in as arguments.

A draft is worth its probability of being kept and costs time, so a step should draft while the gain in tokens per second is
positive, and not at all where none is. Everything in that sentence is measured while requests run:

**Acceptance.** Per position, given that the ones before it were right: a decaying tally over all requests and one for each, which leans
on the former while it is short. Tallies of positions that are not tried lose weight (not value), so a later change is noticed at once.

**Time.** A step's time for every mean number of drafts, per number of sequences and length of context, and the time of every drafting
pass per number of sequences. What makes the whole machine faster or slower (`_pace`) is kept apart: depths are compared with each
other, and only a measurement of one depth *relative to its neighbours in time* changes the order among them.

**Choice.** The best depth for all is found first; it says what a second costs in tokens, hence what a draft must be worth. Each sequence
then drafts as far as its own acceptance is worth that, so one that is hard to guess does not draft though others do.

**Exploration.** Each depth that is not used earns credit, `PROBE_BUDGET` of all time altogether, and is tried for a few steps when that
pays for the expected loss. So what looks hopeless is tried rarely, and a close call often. In a new situation each depth is tried twice
without having to pay (if no similar one has), because a first impression, often that of a cold machine, would stay for a thousand
steps. Depth 0 is one of them, and preferred unless drafting is better by `MARGIN`; drafting can therefore lose only what probing costs.

**Cost.** All of this is arithmetic in Python, a tenth of a millisecond, which a small model does not hide: a decision holds for
`DECIDE_EVERY` steps as long as the same sequences decode.

Depths never change tokens (`speculation`), so it does no harm that they depend on time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol

PROBE_BUDGET = 0.01  # of the time
PROBE_STEPS = 4
PROBE_EVERY = 64  # steps at least between two probes of a depth
FIRST_PROBES = 2
DECIDE_EVERY = 8  # steps
MARGIN = 1.01  # drafting must beat not drafting by so much, and another depth the present one
MAX_SITUATIONS = 128

_WINDOW = 128.0  # effective number of trials that a tally over all requests remembers
_OWN_WINDOW = 32.0
_LEAN = 6.0  # trials of a request that weigh as much as what is known about all
_FADE = 0.98  # per step, of the weight of a tally that gets no trials
_FADED = 8.0  # trials that a tally keeps nevertheless
_FIRST_GUESS = 0.8
_SLOWEST_RATE = 1 / 16  # at which a time estimate follows its measurements
_PACE_RATE = 0.15  # per step
_OUTLIER = 0.4  # |log| beyond which a measurement counts no more
_SHORT_CONTEXT = 256


class Candidate(NamedTuple):
    """A sequence that may draft: at most `room` tokens, so that none lies behind its end."""

    id: str
    room: int


class DepthPolicy(Protocol):
    """Decides how many tokens each sequence drafts. It is told what happens, in tokens and seconds."""

    def rests(self) -> bool:
        """Asked once per step: whether nobody drafts in the next one, so that there is nothing to choose."""
        ...

    def choose(self, candidates: Seq[Candidate], context: int) -> list[int]:
        """A depth for each sequence that decodes in the next step; `context` is their mean length."""
        ...

    def reset(self) -> None:
        """Forget everything: what was measured so far says nothing about what comes."""
        ...

    def observe_verified(self, request_id: str, num_accepted: int, num_judged: int) -> None:
        """Of a request's drafts `num_judged` were compared with the true token, up to and including the first wrong one."""
        ...

    def observe_pass(self, depth: int, num_sequences: int, seconds: float) -> None:
        """See `mtp.PassObserver`."""
        ...

    def observe_catch_up(self) -> None:
        """See `mtp.PassObserver`."""
        ...

    def observe_step(self, num_sequences: int, num_drafts: int, context: int, seconds: float) -> None:
        """A whole step, drafting included, in which so many sequences decoded with so many drafts, and nothing else ran."""
        ...

    def skip_step(self) -> None:
        """A step did something else as well, so its time says nothing."""
        ...

    def forget(self, request_id: str) -> None:
        """The request is over."""
        ...


class FixedDepth:
    """The same depth always: what a user asked for."""

    def __init__(self, depth: int) -> None:
        self._depth = depth

    def rests(self) -> bool:
        """Never."""
        return False

    def reset(self) -> None:
        """Nothing to forget."""

    def choose(self, candidates: Seq[Candidate], context: int) -> list[int]:
        """As deep as there is room."""
        return [min(self._depth, candidate.room) for candidate in candidates]

    def observe_verified(self, request_id: str, num_accepted: int, num_judged: int) -> None:
        """Nothing to learn."""

    def observe_pass(self, depth: int, num_sequences: int, seconds: float) -> None:
        """Nothing to learn."""

    def observe_catch_up(self) -> None:
        """Nothing to learn."""

    def observe_step(self, num_sequences: int, num_drafts: int, context: int, seconds: float) -> None:
        """Nothing to learn."""

    def skip_step(self) -> None:
        """Nothing to skip."""

    def forget(self, request_id: str) -> None:
        """Nothing to forget."""


class AdaptiveDepth:
    """The depth with the most tokens per second by what was measured so far."""

    def __init__(self, max_depth: int) -> None:
        if max_depth < 1:
            raise ValueError(f"max_depth must be at least 1, got {max_depth}")
        self.max_depth = max_depth
        self.reset()

    def reset(self) -> None:
        """Start as if nothing had ever been measured."""
        max_depth = self.max_depth
        self._all = _Tally(max_depth, _WINDOW)
        self._own: dict[str, _Tally] = {}
        self._step_times: dict[_Situation, _StepTimes] = {}
        self._pass_times = (_PassTimes(), _PassTimes())  # of the first pass, of those chained behind it
        self._pace = 1.0
        self._seconds_of_passes = 0.0
        self._caught_up = False
        self._present = min(1, max_depth)  # the depth chosen last, probes aside
        self._probe_depth = 0
        self._probe_left = 0
        self._credit: list[float] | None = None  # seconds, per depth
        self._decided: dict[str, int] = {}  # depths in force
        self._left = 0  # steps for which they still are
        self._steps = 1  # since the decision before
        self._unobserved = 0

    def rests(self) -> bool:
        """While a decision holds by which nobody drafts; who is new waits for the next one."""
        if not self._left or any(self._decided.values()):
            return False
        self._left -= 1
        self._steps += 1
        return True

    def choose(self, candidates: Seq[Candidate], context: int) -> list[int]:
        """As deep as it pays, for each sequence."""
        if not candidates:
            return []
        if self._left and len(candidates) == len(self._decided):
            held = [self._decided.get(candidate.id, -1) for candidate in candidates]
            if min(held) >= 0:
                self._left -= 1
                self._steps += 1
                return [min(depth, candidate.room) for depth, candidate in zip(held, candidates, strict=True)]
        depths = self._decide(candidates, context)
        self._decided = {candidate.id: depth for candidate, depth in zip(candidates, depths, strict=True)}
        self._steps = 1
        return depths

    def _decide(self, candidates: Seq[Candidate], context: int) -> list[int]:
        self._left = 0
        situation = _Situation.of(len(candidates), context)
        times = self._estimated(situation)
        if times is None:  # nothing was ever measured
            return self._noted(candidates, [min(1, candidate.room) for candidate in candidates])
        rates = self._all.rates(None)
        survival = [self._survival(candidate.id, rates) for candidate in candidates]
        if self._probe_left == 0:
            depths = self._best(times, candidates, survival)
            self._start_probe(situation, times, survival)
            if self._probe_left == 0:
                self._left = DECIDE_EVERY - 1
                return self._noted(candidates, depths)
        self._probe_left -= 1
        return self._noted(candidates, [min(self._probe_depth, candidate.room) for candidate in candidates])

    def observe_verified(self, request_id: str, num_accepted: int, num_judged: int) -> None:
        """Count successes, and the failure behind them if there was one."""
        own = self._own.get(request_id)
        if own is None:
            own = self._own[request_id] = _Tally(self.max_depth, _OWN_WINDOW)
        for tally in (self._all, own):
            tally.add(num_accepted, num_judged)

    def observe_pass(self, depth: int, num_sequences: int, seconds: float) -> None:
        """Learn what the pass costs; the step's time is taken without it."""
        self._seconds_of_passes += seconds
        self._pass_times[depth > 0].add(num_sequences, seconds / self._pace)

    def observe_catch_up(self) -> None:
        """Leave this step out."""
        self._caught_up = True

    def observe_step(self, num_sequences: int, num_drafts: int, context: int, seconds: float) -> None:
        """Learn what a step with so many drafts costs beside the drafting passes."""
        if self._left % 4:  # a depth that holds is known well; its steps need no looking at each
            self._unobserved += 1
            self.skip_step()
            return
        seconds -= self._seconds_of_passes
        caught_up = self._caught_up
        self._seconds_of_passes, self._caught_up = 0.0, False
        if caught_up or seconds <= 0 or not num_sequences:
            return
        situation = _Situation.of(num_sequences, context)
        estimated = self._estimated(situation)
        known = self._step_times.pop(situation, None) or _StepTimes(self.max_depth)
        self._step_times[situation] = known  # now the youngest
        if len(self._step_times) > MAX_SITUATIONS:
            del self._step_times[next(iter(self._step_times))]
        drafts = min(num_drafts / num_sequences, float(self.max_depth))
        steps, self._unobserved = 1 + self._unobserved, 0
        error = known.add(drafts, seconds / self._pace, estimated, steps=steps)
        self._pace *= math.exp((1.0 - (1.0 - _PACE_RATE) ** steps) * error)

    def skip_step(self) -> None:
        """Drop what the passes of this step took."""
        self._seconds_of_passes, self._caught_up = 0.0, False

    def forget(self, request_id: str) -> None:
        """Drop the request's tally."""
        self._own.pop(request_id, None)

    def _best(self, times: list[float], candidates: Seq[Candidate], survival: list[list[float]]) -> list[int]:
        """The depths with the most tokens per second; notes the present depth."""
        count, depths = len(candidates), range(1, self.max_depth + 1)
        uniform = [1.0] + [sum(own[j - 1] for own in survival) / count for j in depths]
        cost = self._costs(times, [count] * self.max_depth)
        rate = max(count * sum(uniform[: d + 1]) / cost[d] for d in range(self.max_depth + 1))
        # What a draft at each depth must be worth: the tokens that could have been made in the time it adds.
        worth = [
            rate * (max(0.0, times[j] - times[j - 1]) / count + self._pass_times[j > 1].slope(count, self._fallback_pass(times)))
            for j in depths
        ]
        limits = [_limit(own, worth, candidate.room) for own, candidate in zip(survival, candidates, strict=True)]
        drafting = [sum(limit >= j for limit in limits) for j in depths]
        gained = [0.0] + [sum(own[j - 1] for own, limit in zip(survival, limits, strict=True) if limit >= j) for j in depths]
        filled = [0.0]
        for j in depths:
            filled.append(filled[-1] + drafting[j - 1] / count)
        cost = self._costs([_between(times, drafts) for drafts in filled], drafting)
        rates = [(count + sum(gained[: d + 1])) / cost[d] for d in range(self.max_depth + 1)]
        best = max(range(self.max_depth + 1), key=rates.__getitem__)
        if best != self._present and rates[best] < MARGIN * rates[self._present]:
            best = self._present
        if rates[best] < MARGIN * rates[0]:
            best = 0
        depths_chosen = [min(limit, best) for limit in limits]
        self._present = max(depths_chosen)
        return depths_chosen

    def _costs(self, times: list[float], drafting: list[int]) -> list[float]:
        """Seconds (at the present pace: 1) of a step at every depth, of which `times` says what the passes do not; depth j + 1
        is drafted for `drafting[j]` sequences."""
        fallback = self._fallback_pass(times)
        costs, passes = [times[0]], 0.0
        for j, count in enumerate(drafting):
            if count:
                passes += self._pass_times[j > 0].estimate(count, fallback)
            costs.append(times[j + 1] + passes)
        return costs

    def _fallback_pass(self, times: list[float]) -> float:
        """What a pass is taken to cost while none of its kind was measured."""
        return self._pass_times[0].any_estimate(0.2 * times[0])

    def _start_probe(self, situation: _Situation, times: list[float], survival: list[list[float]]) -> None:
        """Begin to try the depth whose turn it is, if one has the credit."""
        count = len(survival)
        cost = self._costs(times, [count] * self.max_depth)
        tokens = [float(count)]
        for j in range(self.max_depth):
            tokens.append(tokens[-1] + sum(own[j] for own in survival))
        seconds, rate = cost[self._present], tokens[self._present] / cost[self._present]
        if self._credit is None:
            self._credit = [PROBE_STEPS * times[0]] * (self.max_depth + 1)
        known = self._step_times.get(situation)
        for depth in range(self.max_depth + 1):
            if depth == self._present:
                continue
            loss = PROBE_STEPS * max(0.0, cost[depth] - tokens[depth] / rate)
            earned = PROBE_BUDGET / self.max_depth * seconds * self._steps
            self._credit[depth] = min(self._credit[depth] + earned, 2 * loss + PROBE_STEPS * times[0])
            is_new = not self._was_tried(depth, situation)
            due = known is None or known.steps_since(depth) >= (PROBE_EVERY // 4 if is_new else PROBE_EVERY)
            free = is_new and loss <= PROBE_STEPS * seconds
            if self._probe_left == 0 and due and (free or self._credit[depth] >= loss):
                self._credit[depth] -= 0.0 if free else loss
                self._probe_depth, self._probe_left = depth, PROBE_STEPS

    def _was_tried(self, depth: int, situation: _Situation) -> bool:
        """Whether this situation, or one with at most twice or half its sequences, has seen enough of the depth."""
        near = (times for other, times in self._step_times.items() if situation.distance(other) <= 1.0)
        return any(times.trials(depth) >= FIRST_PROBES * PROBE_STEPS for times in near)

    def _estimated(self, situation: _Situation) -> list[float] | None:
        """Step times at depth 0, 1, ... without the drafting passes; what was not measured is inferred from similar situations."""
        known = self._step_times.get(situation)
        if known is not None and known.complete:
            return [seconds or 0.0 for seconds in known.seconds]
        others = sorted(self._step_times.items(), key=lambda item: situation.distance(item[0]))
        own = known.seconds if known is not None else others[0][1].seconds if others else None
        if own is None:
            return None
        times = list(own)
        for depth in range(self.max_depth + 1):
            if times[depth] is not None:
                continue
            near = min((d for d, seconds in enumerate(own) if seconds is not None), key=lambda d: abs(d - depth))
            base = own[near]
            assert base is not None
            ratio = 1.0 + 0.1 * (depth - near) if depth > near else 1.0 / (1.0 + 0.1 * (near - depth))
            for _, other in others:
                here, there = other.seconds[near], other.seconds[depth]
                if here is not None and there is not None:
                    ratio = there / here
                    break
            times[depth] = base * ratio
        return [seconds or 0.0 for seconds in times]

    def _survival(self, request_id: str, rates: list[float]) -> list[float]:
        """Probability that the request's draft at depth 1, 2, ... is kept."""
        own = self._own.get(request_id)
        survival, product = [], 1.0
        for rate in rates if own is None else own.rates(rates):
            product *= rate
            survival.append(product)
        return survival

    def _noted(self, candidates: Seq[Candidate], depths: list[int]) -> list[int]:
        """Age the tallies of what is not tried."""
        keep = _FADE**self._steps
        self._all.fade(max(depths), keep)
        for candidate, depth in zip(candidates, depths, strict=True):
            own = self._own.get(candidate.id)
            if own is not None and depth < self.max_depth:
                own.fade(depth, keep)
        return depths


class _Situation(NamedTuple):
    """What a step's time depends on besides drafts: sequences (exact up to 16, then within 6 %) and context (within a factor of 4)."""

    num_sequences: int
    context: int

    @classmethod
    def of(cls, num_sequences: int, context: int) -> _Situation:
        grain = 1 << max(0, num_sequences.bit_length() - 4)
        return cls(num_sequences // grain * grain, max(0, (context // _SHORT_CONTEXT).bit_length() - 1) // 2)

    def distance(self, other: _Situation) -> float:
        return abs(math.log2(self.num_sequences / other.num_sequences)) + abs(self.context - other.context)


class _Tally:
    """Successes and trials per position, decaying."""

    def __init__(self, max_depth: int, window: float) -> None:
        self._keep = 1.0 - 1.0 / window
        self._hits = [0.0] * max_depth
        self._trials = [0.0] * max_depth

    def add(self, num_accepted: int, num_judged: int) -> None:
        for position in range(min(num_judged, len(self._hits))):
            self._hits[position] = self._hits[position] * self._keep + (position < num_accepted)
            self._trials[position] = self._trials[position] * self._keep + 1.0

    def fade(self, start: int, keep: float) -> None:
        """Positions from `start` on are not tried at present."""
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


class _StepTimes:
    """Seconds of a step at 0, 1, ... drafts per sequence, linear between them."""

    def __init__(self, max_depth: int) -> None:
        self.seconds: list[float | None] = [None] * (max_depth + 1)
        self.complete = False
        self._weights = [0.0] * (max_depth + 1)
        self._trials = [0.0] * (max_depth + 1)
        self._num_steps = 0
        self._measured_at = [-PROBE_EVERY] * (max_depth + 1)

    def add(self, drafts: float, seconds: float, estimated: list[float] | None, *, steps: int) -> float:
        """Learn from one step (of `steps` that passed) with `drafts` per sequence; returns the log of measured over expected once that is
        well known."""
        self._num_steps += steps
        low = min(int(drafts), len(self.seconds) - 1)
        share = drafts - low
        parts = [(low, 1.0 - share)] if share == 0 else [(low, 1.0 - share), (low + 1, share)]
        times = [seconds] * len(self.seconds) if estimated is None else estimated
        error = math.log(seconds / _between(times, drafts))
        settled = all(self._weights[depth] >= PROBE_STEPS for depth, _ in parts)
        for depth, part in parts:
            if self.steps_since(depth) > PROBE_EVERY // 2:  # what is known of it has become old
                self._weights[depth] = min(self._weights[depth], float(PROBE_STEPS))
            self._weights[depth] += part
            self._trials[depth] += part
            rate = part * min(1.0, max(1.0 / self._weights[depth], _SLOWEST_RATE))
            before = self.seconds[depth]
            self.seconds[depth] = (times[depth] if before is None else before) * math.exp(rate * _trimmed(error, settled, before is None))
            if part > 0.5:
                self._measured_at[depth] = self._num_steps
        self.complete = None not in self.seconds
        return _trimmed(error, settled, False) if settled else 0.0

    def trials(self, depth: int) -> float:
        """Steps in which the depth was measured."""
        return self._trials[depth]

    def steps_since(self, depth: int) -> int:
        """Steps of this situation since the depth was measured."""
        return self._num_steps - self._measured_at[depth]


class _PassTimes:
    """Seconds of a drafting pass by number of sequences."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    def add(self, num_sequences: int, seconds: float) -> None:
        key = _Situation.of(num_sequences, 0).num_sequences
        count = self._counts[key] = self._counts.get(key, 0) + 1
        before = self._seconds.get(key)
        if before is None or seconds <= 0:
            self._seconds[key] = max(seconds, 0.0)
            return
        error = _trimmed(math.log(seconds / before), count > PROBE_STEPS, False)
        self._seconds[key] = before * math.exp(max(1.0 / count, _SLOWEST_RATE) * error)

    def estimate(self, num_sequences: int, fallback: float) -> float:
        """Of the measured numbers of sequences the nearest counts."""
        key = _Situation.of(num_sequences, 0).num_sequences
        found = self._seconds.get(key)
        if found is None:
            nearest = min(self._seconds, key=lambda other: abs(math.log2(other / key)), default=None)
            return fallback if nearest is None else self._seconds[nearest]
        return found

    def any_estimate(self, fallback: float) -> float:
        """The time of the last pass measured."""
        return next(reversed(self._seconds.values()), fallback)

    def slope(self, num_sequences: int, fallback: float) -> float:
        """What one more sequence adds, by the measurements here and at half as many or fewer; a guess while there are none."""
        here = self.estimate(num_sequences, fallback)
        smaller = max((count for count in self._seconds if 2 * count <= num_sequences), default=None)
        if smaller is None:
            return 0.5 * here / num_sequences
        return max(0.0, here - self._seconds[smaller]) / (num_sequences - smaller)


def _trimmed(error: float, settled: bool, first: bool) -> float:
    """The log of measured over expected, as far as it counts. Interruptions make a step slow, nothing makes it fast: so of a quantity
    that is hardly known yet, what is far lower than expected is believed."""
    if first:
        return error
    return min(max(error, -_OUTLIER) if settled else error, _OUTLIER)


def _limit(survival: list[float], worth: list[float], room: int) -> int:
    """How many of a sequence's drafts are worth their cost."""
    depth = 0
    while depth < min(room, len(worth)) and survival[depth] >= worth[depth]:
        depth += 1
    return depth


def _between(values: Seq[float], place: float) -> float:
    """Linear interpolation at a place that need not be whole."""
    low = min(int(place), len(values) - 1)
    share = place - low
    return values[low] if share == 0 else values[low] * (1.0 - share) + values[low + 1] * share
