"""The scenarios against a running server, as a table."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path

from . import input_scenarios, load_scenarios, process_scenarios, surface_scenarios
from .outcome import Outcome, check_afterwards
from .wire import Target

Scenario = Callable[[Target], Awaitable[Outcome]]


def scenarios(options: argparse.Namespace) -> dict[str, Scenario]:
    """What can be run with these options, at their scale."""

    def scaled(number: int) -> int:
        return max(1, round(number * options.scale))

    limits = {"limit_ms": options.health_limit_ms}
    known: dict[str, Scenario] = {
        "malformed": lambda target: input_scenarios.malformed(target, count=scaled(10_000), seed=options.seed),
        "control-tokens": lambda target: input_scenarios.control_tokens(target, strings=scaled(30)),
        "large-bodies": lambda target: input_scenarios.large_bodies(target, **limits),
        "slow-clients": lambda target: input_scenarios.slow_clients(
            target, heads=scaled(500), bodies=scaled(200), head_s=options.head_s, body_s=options.body_s, **limits
        ),
        "aborts": lambda target: load_scenarios.aborts(target, count=scaled(10_000), seed=options.seed),
        "streams": lambda target: load_scenarios.streams(target, count=scaled(1000)),
        "overload": lambda target: load_scenarios.overload(target, seconds=max(2.0, 30 * options.scale), floor=options.goodput_floor),
        "slow-readers": lambda target: load_scenarios.slow_readers(target, count=scaled(100)),
    }
    if options.api_key_env:
        known["closed-doors"] = surface_scenarios.closed_doors
    if options.server_pid:
        pid = options.server_pid
        known["sockets"] = lambda target: process_scenarios.sockets(target, server_pid=pid)
        known["engine-death"] = lambda target: process_scenarios.engine_death(target, server_pid=pid, repeats=scaled(20))
    return known


async def run(target: Target, scenario: Scenario) -> Outcome:
    """One scenario, and what must hold after it."""
    began = time.monotonic()
    outcome = await scenario(target)
    await check_afterwards(target, outcome)
    outcome.figures["took s"] = round(time.monotonic() - began, 1)
    return outcome


async def with_model(target: Target) -> Target:
    """The target with the first model that it lists, unless one was named."""
    if target.model:
        return target
    answer = await target.get("/v1/models")
    if answer.status != 200:
        raise SystemExit(f"{target.url}/v1/models is answered {answer.status}; name a model with --model, a key with --api-key-env")
    return replace(target, model=json.loads(answer.body)["data"][0]["id"])


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--url", required=True, help="address of the server, with or without /v1")
    parser.add_argument("--model", default="", help="default: the first that the server lists")
    parser.add_argument("--api-key-env", default="", metavar="NAME", help="variable that holds the key")
    parser.add_argument("--admin-key-env", default="", metavar="NAME", help="variable that holds an operator's key")
    parser.add_argument("--scale", type=float, default=1.0, help="of the full counts (10,000 malformed requests, 1,000 streams ...)")
    parser.add_argument("--only", default="", help="names of scenarios, with commas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--head-s", type=float, default=10.0, help="the server's time limit for headers")
    parser.add_argument("--body-s", type=float, default=30.0, help="the server's time limit for bodies")
    parser.add_argument("--health-limit-ms", type=float, default=50.0, help="what p99 of /health may be under pressure")
    parser.add_argument("--goodput-floor", type=float, default=0.95, help="of the goodput at saturation, under overload")
    parser.add_argument("--server-pid", type=int, default=0, help="of a local server: enables what kills its engine")
    parser.add_argument("--json", default="", metavar="FILE", help="write the outcomes there")
    return parser.parse_args(arguments)


async def main(options: argparse.Namespace) -> int:
    """Run what was asked for; 0 if everything passed."""
    keys = [os.environ.get(name, "") if name else "" for name in (options.api_key_env, options.admin_key_env)]
    target = await with_model(Target(options.url, options.model, *keys))
    known = scenarios(options)
    wanted = [name for name in options.only.split(",") if name] or list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"no scenario is called {unknown[0]}; known here: {', '.join(known)}")
    outcomes = []
    for name in wanted:
        outcome = await run(target, known[name])
        outcomes.append(outcome)
        figures = ", ".join(f"{key} {value}" for key, value in outcome.figures.items())
        print(f"{'ok  ' if outcome.passed else 'FAIL'} {outcome.name:16} {figures}", flush=True)
        for text in outcome.failures:
            print(f"     {text}")
        if outcome.num_failures > len(outcome.failures):
            print(f"     and {outcome.num_failures - len(outcome.failures)} more")
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n", "utf-8")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(options_of())))
