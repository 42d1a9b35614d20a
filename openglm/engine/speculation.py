"""Draft tokens: who proposes them, and why checking them leaves every distribution exactly as it was.

**Acceptance.** A step processes the newest token and k drafts, so it yields k + 1 rows of logits. From every row the sampler
chooses the token it would choose anyway: the arg max for greedy requests, else the inverse of the row's distribution at a number
u that depends only on seed and position. Drafts are kept as long as they equal the chosen token; the first row that
disagrees supplies its own token instead, and rows behind it are thrown away.

The output is therefore token for token what decoding without drafts gives, for greedy *and* for sampled requests. It is also
rejection sampling (Leviathan et al. 2023) for a draft d that puts all its mass on one token: d survives exactly when u falls into
d's part of the unit interval, which has length p(d); given that it does not, the chosen token x has probability
p(x) / (1 - p(d)), the target with d removed. No other rule accepts a fixed draft more often.

Since drafts cannot change tokens, everything about them may depend on measured time: how many there are is decided by
`draft_depth`, what they are by a `Proposer` (`mtp`: the model's own layer; `ngram`: what followed the same words before). Whoever knows
more about a sequence may cut `Sequence.drafts` before the next step.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol

from torch import Tensor

from openglm.engine.sequence import Sequence


class Settled(NamedTuple):
    """A sequence after a step: `num_rows` of its rows, from `first_row` on, hold true tokens up to position `computed`."""

    sequence: Sequence
    first_row: int
    num_rows: int
    start: int
    depth: int
    """Drafts wanted for the next step; 0 when there is none to come, inside a prompt, or when drafting does not pay."""


Drafts = list[list[int] | None]
"""For each sequence its drafts, in order; None reports that the proposer's own state for it is damaged (not finite)."""


class Proposer(Protocol):
    """A source of drafts. Wrong drafts cost time, never correctness."""

    def propose(self, settled: Seq[Settled], hidden: Tensor) -> Drafts | Callable[[], Drafts]:
        """At most `depth` drafts per sequence; hidden [T, H] are the step's trunk states.

        Where a device works on them it is given all it has to do, and what is returned waits for it.
        """
        ...


def longest_match(drafts: Seq[int], chosen: Seq[int]) -> int:
    """How many leading drafts equal the tokens chosen at their positions."""
    count = 0
    for draft, token in zip(drafts, chosen, strict=False):
        if draft != token:
            break
        count += 1
    return count
