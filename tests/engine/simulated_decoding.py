"""A decoding loop without a model: times and acceptances come from tables, so what every fixed depth yields is known."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from openglm.engine.draft_depth import Candidate, DepthPolicy


@dataclass
class World:
    """What drafting costs and gains."""

    step_seconds: Callable[[int, int], float]
    """Of a step with so many sequences and so many drafts in all."""
    pass_seconds: Callable[[int, int], float]
    """Of the drafting pass at this depth (from 0 on) for so many sequences."""
    acceptance: Callable[[int, int, int], float]
    """Of sequence `i`, in step `t`, at position `j`, given that the drafts before it were right."""
    noise: float = 0.1
    spikes: float = 0.02
    pace: Callable[[int], float] = lambda step: 1.0
    """How slow the machine is at a step."""
    aftermath: float = 1.0
    """How much slower the three steps behind one that drafted are, if they do not draft themselves."""


@dataclass
class Run:
    tokens: int = 0
    seconds: float = 0.0
    depths: list[float] = field(default_factory=list)
    """Mean depth chosen in each step."""

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def simulate(
    world: World,
    policy: DepthPolicy,
    *,
    sequences: int | Callable[[int], int],
    steps: int,
    skip: int = 0,
    seed: int = 0,
    lifetime: int = 400,
    context: int = 100,
) -> Run:
    """Tokens and seconds after the first `skip` steps. Sequences are replaced by new ones after `lifetime` steps."""
    rng = random.Random(seed)
    run = Run()
    drafts: dict[str, int] = {}
    since_drafts = 10
    for t in range(steps):
        count = sequences if isinstance(sequences, int) else sequences(t)
        ids = [f"{i}-{(t + 37 * i) // lifetime}" for i in range(count)]
        for gone in drafts.keys() - set(ids):
            policy.forget(gone)
        pending = [drafts.get(name, 0) for name in ids]
        tokens = 0
        for i, (name, depth) in enumerate(zip(ids, pending, strict=True)):
            accepted = 0
            while accepted < depth and rng.random() < world.acceptance(i, t, accepted):
                accepted += 1
            tokens += 1 + accepted
            if depth:
                policy.observe_verified(name, accepted, min(depth, accepted + 1))
        wobble = world.pace(t) * rng.lognormvariate(0.0, world.noise) * (3.0 if rng.random() < world.spikes else 1.0)
        seconds = world.step_seconds(count, sum(pending)) * wobble * (world.aftermath if 0 < since_drafts <= 3 else 1.0)
        chosen = policy.choose([Candidate(name, 100) for name in ids], context)
        drafts = dict(zip(ids, chosen, strict=True))
        since_drafts = 0 if any(chosen) else since_drafts + 1
        for depth in range(max(chosen)):
            drafting = sum(own > depth for own in chosen)
            passed = world.pass_seconds(depth, drafting) * world.pace(t) * rng.lognormvariate(0.0, world.noise)
            seconds += passed
        if policy.measures():
            policy.observe_step(count, sum(pending), context, seconds)
        if t >= skip:
            run.tokens += tokens
            run.seconds += seconds
            run.depths.append(sum(chosen) / count)
    return run


def fixed_rates(world: World, depths: Sequence[int], *, sequences: int | Callable[[int], int], steps: int) -> dict[int, float]:
    """Tokens per second that every fixed depth has in the long run, computed. Acceptance and pace must not depend on the step."""
    wobble = math.exp(world.noise**2 / 2)
    rates = {}
    for depth in depths:
        tokens = seconds = 0.0
        for t in range(steps):
            count = sequences if isinstance(sequences, int) else sequences(t)
            for i in range(count):
                tokens += sum(math.prod(world.acceptance(i, 0, j) for j in range(end)) for end in range(depth + 1))
            seconds += world.step_seconds(count, count * depth) * wobble * (1 + 2 * world.spikes)
            seconds += sum(world.pass_seconds(j, count) for j in range(depth)) * wobble
        rates[depth] = tokens / seconds
    return rates
