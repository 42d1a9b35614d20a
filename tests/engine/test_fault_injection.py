"""A fault in any one request of a batch of 16 leaves the other 15 bitwise equal: tokens, log probabilities, prompt scores, endings.

Every fault goes through the real `EngineCore`: it is planted in the request itself (its parameters, its detokenizer, its state) or in
its memory, and strikes while the whole batch runs. A new kind of per-request work gets its row in `FAULTS`.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import pytest
from engine_runs import generate, make_core, merged

from openglm.engine.core import EngineCore
from openglm.engine.request import GenerationRequest, SamplingParams

COUNT = 16
PROMPTS = [[(7 * i + j * (i + 3)) % 384 for j in range(3 + (37 * i) % 80)] for i in range(COUNT)]
PARAMS = [
    SamplingParams(
        max_tokens=5,
        temperature=(0.0, 0.9)[i % 2],
        top_p=(1.0, 0.8)[i % 3 == 1],
        top_k=40,
        seed=i,
        logprobs=2,
        prompt_logprobs=1,
        frequency_penalty=0.1 + 0.2 * (i % 4),
        stop=("never",),
        ignore_eos=True,
    )
    for i in range(COUNT)
]
ANY = 7  # of the fast tier; the slow one takes every request in turn


class Text:
    """The detokenizer of every request here: token 7 is the text "<7>"."""

    def push(self, ids):
        return "".join(f"<{i}>" for i in ids)


class Bomb:
    """A value that passes as given and fails at first use."""

    def __getattr__(self, name):
        raise FloatingPointError("injected")

    def _fail(self, *_):
        raise FloatingPointError("injected")

    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __bool__ = __float__ = __index__ = __int__ = __len__ = __iter__ = _fail
    __hash__ = None


class Fault(NamedTuple):
    plant: Callable[[EngineCore, str], None]
    code: str = "internal"


def _sequence(core: EngineCore, request_id: str):
    return core._live[request_id][0]


def _break_parameter(name: str, **others: float) -> Callable[[EngineCore, str], None]:
    """`others` make sure that the parameter is used: a greedy request has no filter."""

    def plant(core: EngineCore, request_id: str) -> None:
        sequence = _sequence(core, request_id)
        sequence.params = msgspec.structs.replace(sequence.params, **others)  # its own copy
        msgspec.structs.force_setattr(sequence.params, name, Bomb())

    return plant


def _break_detokenizer(core: EngineCore, request_id: str) -> None:
    core._live[request_id][1]._detokenizer = Bomb()


def _break_adjustment(core: EngineCore, request_id: str) -> None:
    core.adjuster._states[request_id].bias_ids = Bomb()


def _poison_page(core: EngineCore, request_id: str) -> None:
    core.runner.kv[0][_sequence(core, request_id).pages[0]] = float("nan")


FAULTS = {
    "sampler": Fault(_break_parameter("temperature")),
    "sampler filter": Fault(_break_parameter("top_k", temperature=0.9)),
    "log probabilities": Fault(_break_parameter("logprobs")),
    "prompt log probabilities": Fault(_break_parameter("prompt_logprobs")),
    "detokenizer": Fault(_break_detokenizer),
    "logit adjustment": Fault(_break_adjustment),
    "not finite": Fault(_poison_page, "not_finite"),
    # "grammar": a matcher that raises, planted in the request's grammar state
}


def outcomes(outputs) -> list[tuple]:
    return [(o.token_ids, o.logprobs, o.prompt_logprobs, o.finish_reason, o.stop_reason) for o in outputs]


@pytest.fixture(scope="module")
def expected() -> list[tuple]:
    return outcomes(generate(make_core(detokenizer=Text, num_speculative_tokens=1), PROMPTS, PARAMS))


@pytest.mark.parametrize("victim", [ANY, *(pytest.param(i, marks=pytest.mark.slow) for i in range(COUNT) if i != ANY)])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_in_one_request_of_sixteen_leaves_the_other_fifteen_equal(kind, victim, expected, caplog):
    fault, core = FAULTS[kind], make_core(detokenizer=Text, num_speculative_tokens=1)
    for i in range(COUNT):
        core.add(GenerationRequest(f"r{i}", PROMPTS[i], PARAMS[i]))
    outputs: dict[str, list] = {f"r{i}": [] for i in range(COUNT)}
    planted = kind == "prompt log probabilities"  # strikes while the prompt is processed
    if planted:
        fault.plant(core, f"r{victim}")
    with caplog.at_level(logging.CRITICAL):
        while core.has_work:
            for output in core.step():
                outputs[output.request_id].append(output)
            if not planted and (s := _sequence(core, f"r{victim}")).num_output >= 2 and s.row >= 0:
                planted = True
                fault.plant(core, f"r{victim}")
    results = [merged(outputs[f"r{i}"]) for i in range(COUNT)]
    assert (results[victim].finish_reason, results[victim].error.code) == ("error", fault.code)
    others = [i for i in range(COUNT) if i != victim]
    assert [outcomes(results)[i] for i in others] == [expected[i] for i in others]
    stats = core.stats()
    assert stats.num_finished == {"error": 1, "length": COUNT - 1}
    assert stats.pages_held == 0 and stats.kv_accounting_errors == 0
    assert all(bool(layer.isfinite().all()) for layer in core.runner.kv), "nothing of the fault is left behind"
    (again,) = generate(core, [PROMPTS[victim]], PARAMS[victim])
    assert outcomes([again]) == [expected[victim]], "and the same request works afterwards"
