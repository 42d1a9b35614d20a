"""How many tokens to draft: measured, not assumed. No tensors and no clock; seconds come in as arguments.

A draft is worth its probability of being kept and costs time, so a step should draft while the gain in tokens per second is
positive, and not at all where none is. Both sides are measured: `acceptance` of every position, over all requests and for each, and
`draft_costs`, whose first figures the engine takes when it starts (`calibration`).

**Choice.** The best depth for all is found first; it says what a second costs in tokens, hence what a draft must be worth. Each sequence
then drafts as far as its own acceptance is worth that, so one that is hard to guess does not draft though others do. Depth 0 is
preferred unless drafting is better by `DRAFT_MARGIN`.

**Only a steady state is measured.** Drafting leaves a mark on the steps behind it: another layer's weights and a wider batch displace what
the processor's cache held. So the time of a step counts only when the depth was the same for `SETTLE` steps before it.

**Looks** learn acceptance: positions deeper than those in use are drafted for three steps now and then, for `LOOK_BUDGET` of the time at
most, and never where even drafts that are always right would not pay.

**Trials** learn costs: a depth not in use is kept long enough to be measured, for `TRIAL_BUDGET` of the time at most, so what looks
hopeless is tried rarely and a close call often. What was never measured is tried once without having to pay. Drafting can therefore
lose only what looks and trials cost.

**Cost.** All of this is arithmetic in Python, a tenth of a millisecond, which a small model does not hide: a decision holds for
`DECIDE_EVERY` steps as long as the same sequences decode, and longer where nobody drafts.

Depths never change tokens (`speculation`), so it does no harm that they depend on time.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol

from openglm.engine.acceptance import Acceptance, survival
from openglm.engine.draft_costs import StepCosts

DECIDE_EVERY = 8  # steps
REST = 32  # steps for which a decision against any draft holds that was made twice
MARGIN = 1.02  # by which another depth must beat the present one
DRAFT_MARGIN = 1.06  # by which drafting must beat not drafting: estimates err by some percent, and only drafting can be a loss
SETTLE = 4  # steps
LOOK_BUDGET = 0.01  # of the time
LOOK_STEPS = 3
LOOK_EVERY = 64  # steps at least between two looks
TRIAL_BUDGET = 0.004
TRIAL_STEPS = SETTLE + 8
TRIAL_EVERY = 256
FEW_STEPS = 6  # measured ones; a depth with fewer is new

_FIRST_SHARED = 0.3  # guess: part of a draft's cost that does not depend on how many sequences have one
_SHARED_RATE = 0.1
_UNEVEN = 0.1  # drafts per sequence by which a measured step may differ from one depth for all
_WINDOW = 128.0  # effective number of trials that a tally over all requests remembers
_OWN_WINDOW = 64.0


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

    def observe_verified(self, request_id: str, num_accepted: int, num_judged: int) -> None:
        """Of a request's drafts `num_judged` were compared with the true token, up to and including the first wrong one."""
        ...

    def measures(self) -> bool:
        """Asked once per step: whether the time of the one that ends now is of interest."""
        ...

    def observe_step(self, num_sequences: int, num_drafts: int, context: int, seconds: float) -> None:
        """A whole step, drafting included, in which so many sequences decoded with so many drafts, and nothing else ran."""
        ...

    def forget(self, request_id: str) -> None:
        """The request is over."""
        ...


class FixedDepth:
    """The same depth always: what a user asked for."""

    def __init__(self, depth: int) -> None:
        self._depth = depth

    def rests(self) -> bool:
        """Always at depth 0, else never."""
        return not self._depth

    def choose(self, candidates: Seq[Candidate], context: int) -> list[int]:
        """As deep as there is room."""
        return [min(self._depth, candidate.room) for candidate in candidates]

    def observe_verified(self, request_id: str, num_accepted: int, num_judged: int) -> None:
        """Nothing to learn."""

    def measures(self) -> bool:
        """Never."""
        return False

    def observe_step(self, num_sequences: int, num_drafts: int, context: int, seconds: float) -> None:
        """Nothing to learn."""

    def forget(self, request_id: str) -> None:
        """Nothing to forget."""


class AdaptiveDepth:
    """The depth with the most tokens per second by what was measured so far."""

    def __init__(self, max_depth: int, costs: StepCosts | None = None) -> None:
        """`costs` are first figures; without them every depth is tried at first."""
        if max_depth < 1:
            raise ValueError(f"max_depth must be at least 1, got {max_depth}")
        self.max_depth = max_depth
        self.costs = StepCosts(max_depth) if costs is None else costs
        self._all = Acceptance(max_depth, _WINDOW)
        self._own: dict[str, Acceptance] = {}
        self._present = min(1, max_depth)  # the depth chosen last, looks and trials aside
        self._look = _Account(LOOK_BUDGET)
        self._trial = _Account(TRIAL_BUDGET)
        self._shared = _FIRST_SHARED
        self._decided: dict[str, int] = {}  # depths in force
        self._depth = 0.0  # their mean
        self._left = 0  # steps for which they still are
        self._trying = False
        self._steps = 1  # since the decision before
        self._same = 0  # steps with (about) the present mean depth
        self._unobserved = 0

    def rests(self) -> bool:
        """While a decision holds by which nobody drafts; who is new waits for the next one."""
        if not self._left or self._depth:
            return False
        self._hold()
        return True

    def choose(self, candidates: Seq[Candidate], context: int) -> list[int]:
        """As deep as it pays, for each sequence."""
        if not candidates:
            return []
        if self._left and len(candidates) == len(self._decided):
            held = [self._decided.get(candidate.id, -1) for candidate in candidates]
            if min(held) >= 0:
                self._hold()
                return [min(depth, candidate.room) for depth, candidate in zip(held, candidates, strict=True)]
        depths = self._decide(candidates, context)
        self._decided = {candidate.id: depth for candidate, depth in zip(candidates, depths, strict=True)}
        mean = sum(depths) / len(depths)
        self._same = self._same + 1 if abs(mean - self._depth) < 0.25 and (mean > 0) == (self._depth > 0) else 0
        self._depth, self._steps = mean, 1
        return depths

    def observe_verified(self, request_id: str, num_accepted: int, num_judged: int) -> None:
        """Count successes, and the failure behind them if there was one."""
        own = self._own.get(request_id)
        if own is None:
            own = self._own[request_id] = Acceptance(self.max_depth, _OWN_WINDOW)
        for tally in (self._all, own):
            tally.add(num_accepted, num_judged)

    def measures(self) -> bool:
        """In a steady state; a depth that holds is known well, and every fourth of its steps is enough."""
        self._unobserved += 1
        return self._same >= SETTLE and (self._trying or self._left % 4 == 0)

    def observe_step(self, num_sequences: int, num_drafts: int, context: int, seconds: float) -> None:
        """Learn what a step with so many drafts costs."""
        depth = min(round(num_drafts / num_sequences), self.max_depth)
        if abs(num_drafts - depth * num_sequences) <= _UNEVEN * num_sequences:
            self.costs.add(num_sequences, context, depth, seconds, steps=self._unobserved)
            self._unobserved = 0
        else:
            self._learn_shared(self.costs.at_usual_pace(num_sequences, context, seconds), self.costs.of(num_sequences, context))

    def _learn_shared(self, seconds: float, costs: list[float] | None) -> None:
        """Correct `_shared` by a step in which some drafted less than others."""
        depths = list(self._decided.values())
        if costs is None or not any(depths):
            return
        low, high = (_partial(costs, depths, shared) for shared in (0.0, 1.0))
        if high > low:
            seen = (seconds - low) / (high - low)
            self._shared += _SHARED_RATE * (min(max(seen, 0.0), 1.0) - self._shared)

    def forget(self, request_id: str) -> None:
        """Drop the request's tally."""
        self._own.pop(request_id, None)

    def _hold(self) -> None:
        self._left -= 1
        self._steps += 1
        self._same += 1

    def _decide(self, candidates: Seq[Candidate], context: int) -> list[int]:
        """Depths, and in `_left` how many more steps they hold."""
        count, self._trying = len(candidates), False
        costs = self.costs.of(count, context)
        if costs is None:  # nothing was ever measured
            self._left = SETTLE
            return self._noted(candidates, [min(1, candidate.room) for candidate in candidates])
        rates = self._all.rates(None)
        kept = [self._survival(candidate.id, rates) for candidate in candidates]
        depths = self._best(costs, candidates, kept)
        hold = REST if self._depth == 0.0 and not any(depths) else DECIDE_EVERY
        tried = self._to_look_at(costs, kept)
        if tried is not None:
            hold = LOOK_STEPS
        else:
            tried = self._to_try(costs, kept, context)
            self._trying = tried is not None
            hold = TRIAL_STEPS if self._trying else hold
        self._left = hold - 1
        if tried is not None:
            depths = [min(tried, candidate.room) for candidate in candidates]
        return self._noted(candidates, depths)

    def _best(self, costs: list[float], candidates: Seq[Candidate], kept: list[list[float]]) -> list[int]:
        """The depths with the most tokens per second; notes the present depth."""
        count, depths = len(candidates), range(self.max_depth + 1)
        tokens = _tokens(kept)
        rate = max(tokens[d] / costs[d] for d in depths)
        # What the drafts up to each depth must be worth: the tokens that could have been made in a sequence's share of the time they add.
        worth = [rate * (costs[d] - costs[0]) / count for d in depths]
        limits = [_most_gained(own, worth, candidate.room) for own, candidate in zip(kept, candidates, strict=True)]
        rates = []
        for d in depths:
            cut = [min(limit, d) for limit in limits]
            gained = sum(sum(own[:depth]) for own, depth in zip(kept, cut, strict=True))
            rates.append((count + gained) / _partial(costs, cut, self._shared))
        best = max(depths, key=rates.__getitem__)
        if best != self._present and rates[best] < MARGIN * rates[self._present]:
            best = self._present
        if rates[best] < DRAFT_MARGIN * rates[0]:
            best = 0
        chosen = [min(limit, best) for limit in limits]
        self._present = max(chosen)
        return chosen

    def _to_look_at(self, costs: list[float], kept: list[list[float]]) -> int | None:
        """The first depth that would be better than the present one if all drafts behind those in use were right, when it is time to
        see whether they are."""
        present, tokens = self._present, _tokens(kept)
        rate = tokens[present] / costs[present]
        last = tokens[present] - tokens[present - 1] if present else tokens[0]  # what the deepest draft in use, or the step itself, yields
        self._look.earn(costs[present], self._steps)
        if self._look.steps < LOOK_EVERY:
            return None
        for depth in range(present + 1, self.max_depth + 1):
            if tokens[present] + last * (depth - present) > MARGIN * rate * costs[depth]:
                loss = LOOK_STEPS * max(0.0, costs[depth] - tokens[depth] / rate) + costs[present]  # and the steps behind it are slower
                return depth if self._look.spend(loss) else None
        return None

    def _to_try(self, costs: list[float], kept: list[list[float]], context: int) -> int | None:
        """The depth whose cost is to be measured now, if one is due: a new one, or the one that is cheapest to try."""
        count, tokens = len(kept), _tokens(kept)
        seconds, rate = costs[self._present], tokens[self._present] / costs[self._present]
        self._trial.earn(seconds, self._steps)
        due: list[tuple[float, int]] = []
        for depth in range(self.max_depth + 1):
            if depth == self._present:
                continue
            loss = TRIAL_STEPS * max(0.0, costs[depth] - tokens[depth] / rate)
            if loss <= 4 * TRIAL_STEPS * seconds and self.costs.num_measured(depth, count, context) < FEW_STEPS:
                return depth
            if self.costs.age(depth, count, context) >= TRIAL_EVERY:
                due.append((loss, depth))
        if not due or self._trial.steps < TRIAL_EVERY // self.max_depth:
            return None
        loss, depth = min(due)
        return depth if self._trial.spend(loss) else None

    def _survival(self, request_id: str, rates: list[float]) -> list[float]:
        own = self._own.get(request_id)
        return survival(rates if own is None else own.rates(rates))

    def _noted(self, candidates: Seq[Candidate], depths: list[int]) -> list[int]:
        """Age the tallies of what is not tried."""
        self._all.fade(max(depths), steps=self._steps)
        for candidate, depth in zip(candidates, depths, strict=True):
            own = self._own.get(candidate.id)
            if own is not None and depth < self.max_depth:
                own.fade(depth, steps=self._steps)
        return depths


class _Account:
    """Seconds that may be spent on finding out: a share of all that pass."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._seconds = 0.0
        self.steps = 0
        """Since the last time something was bought."""

    def earn(self, seconds: float, steps: int) -> None:
        """So many steps of so many seconds have passed."""
        self._seconds += self._share * seconds * steps
        self.steps += steps

    def spend(self, loss: float) -> bool:
        """Whether there was enough; nothing is left over from a time of plenty."""
        if self._seconds < loss:
            return False
        self._seconds = 0.0
        self.steps = 0
        return True


def _tokens(kept: list[list[float]]) -> list[float]:
    """Expected tokens of a step in which every sequence has 0, 1, ... drafts."""
    tokens = [float(len(kept))]
    for depth in range(len(kept[0])):
        tokens.append(tokens[-1] + sum(own[depth] for own in kept))
    return tokens


def _partial(costs: list[float], depths: list[int], shared: float) -> float:
    """The cost where some sequences draft less than others: of what a depth adds, `shared` is there for one sequence as for all."""
    cost = costs[0]
    for depth in range(1, max(depths) + 1):
        share = sum(own >= depth for own in depths) / len(depths)
        cost += (costs[depth] - costs[depth - 1]) * (shared + (1.0 - shared) * share)
    return cost


def _most_gained(kept: list[float], worth: list[float], room: int) -> int:
    """The depth at which a sequence's drafts exceed by most what they must be worth."""
    best, gained, most = 0, 0.0, 0.0
    for depth in range(1, min(room + 1, len(worth))):
        gained += kept[depth - 1]
        if gained - worth[depth] >= most:
            best, most = depth, gained - worth[depth]
    return best
