"""The sampling fields that several dialects spell alike become the engine's parameters.

A dialect's body inherits `SamplingFields` and adds its own names for the rest (token limits, log probabilities, the form of the
answer). Ranges are checked by the engine's own gate under the same names; what is checked here is what it cannot see: counts
before anything is tokenized, and the spelling of keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final

import msgspec

from openglm.config.server import RequestLimits, SamplingDefaults
from openglm.engine.constraint import Constraint
from openglm.engine.request import SamplingParams
from openglm.engine.scheduling import SchedulingParams
from openglm.errors import RequestError

Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""JSON integers have no bound; beyond 64 bits nobody means a count or a seed."""

_MAX_ID_DIGITS: Final = 10
_MAX_CLIENT_ID_CHARS: Final = 128
_EFFORT_TOKENS: Final = {"minimal": 512, "low": 2048, "medium": 8192}
"""Reasoning tokens for a lower effort; more effort than these is no bound."""


class SamplingFields(msgspec.Struct):
    """How to choose tokens, when to stop, and in which order to be served."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    min_p: float | None = None
    seed: Int | None = None
    do_sample: bool | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int | None = None
    logit_bias: dict[str, float] | None = None
    bad_words: list[str] | None = None
    priority: Int | None = None
    cache_salt: str | None = None
    n: Int | None = None
    request_id: str | None = None
    rid: str | None = None


def read_sampling(
    fields: SamplingFields,
    *,
    defaults: SamplingDefaults,
    limits: RequestLimits,
    max_tokens: int | None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    thinking_budget: int | None = None,
    constraint: Constraint | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> SamplingParams:
    """Parameters for the engine, which checks their ranges. Raises `RequestError` naming the field. `names` are those fields that the
    dialect calls otherwise than the engine does."""
    with _spelled(names):
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0 if fields.do_sample is False else either(fields.temperature, defaults.temperature),
            top_p=either(fields.top_p, defaults.top_p),
            top_k=either(fields.top_k, defaults.top_k),
            min_p=either(fields.min_p, defaults.min_p),
            seed=fields.seed,
            stop_token_ids=tuple(dict.fromkeys(fields.stop_token_ids or ())),
            ignore_eos=bool(fields.ignore_eos),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            frequency_penalty=either(fields.frequency_penalty, 0.0),
            presence_penalty=either(fields.presence_penalty, 0.0),
            repetition_penalty=either(fields.repetition_penalty, 1.0),
            logit_bias=_logit_bias(fields, limits),
            min_tokens=either(fields.min_tokens, 0),
            thinking_budget=thinking_budget,
            constraint=constraint,
        )


def read_scheduling(fields: SamplingFields) -> SchedulingParams:
    """Priority and cache salt."""
    if fields.cache_salt == "":
        raise RequestError("cache_salt must not be empty; leave it out to share prefixes with everyone", param="cache_salt")
    return SchedulingParams(priority=either(fields.priority, 0), cache_salt=either(fields.cache_salt, ""))


def read_num_choices(fields: SamplingFields, limits: RequestLimits) -> int:
    """How many answers to one prompt."""
    count = 1 if fields.n is None else fields.n
    if not 1 <= count <= limits.choices:
        raise RequestError(f"n must be between 1 and {limits.choices}", param="n")
    return count


def read_bad_words(fields: SamplingFields, limits: RequestLimits) -> tuple[str, ...]:
    """Words that must not be written."""
    words = fields.bad_words or []
    check_count("bad_words", words, limits.bad_words)
    if any(not word.strip() or len(word) > limits.bad_word_chars for word in words):
        raise RequestError(f"every one of bad_words must have 1 to {limits.bad_word_chars} characters, not all blank", param="bad_words")
    return tuple(dict.fromkeys(words))


def read_stop(stop: str | list[str] | None, limits: RequestLimits, *, param: str = "stop") -> tuple[str, ...]:
    """Stop strings; `param` is what the dialect calls them."""
    strings = [stop] if isinstance(stop, str) else stop or []
    if len(strings) > limits.stop_strings:
        raise RequestError(f"{param} holds {len(strings)} strings; at most {limits.stop_strings} are taken", param=param)
    if any(not 1 <= len(text) <= limits.stop_string_chars for text in strings):
        raise RequestError(f"every stop string must have 1 to {limits.stop_string_chars} characters", param=param)
    return tuple(dict.fromkeys(strings))


def read_client_id(fields: SamplingFields) -> str | None:
    """The client's own name for the request."""
    name = "request_id" if fields.request_id is not None else "rid"
    value = either(fields.request_id, fields.rid)
    if value is not None and not 1 <= len(value) <= _MAX_CLIENT_ID_CHARS:
        raise RequestError(f"{name} must have 1 to {_MAX_CLIENT_ID_CHARS} characters", param=name)
    return value or None


def effort_budget(effort: str | None) -> int | None:
    """Reasoning tokens that an effort allows; None is no bound. What is no effort's name has no effect."""
    return _EFFORT_TOKENS.get(effort or "")


def check_count(name: str, value: Any, limit: int) -> None:
    """Raise `RequestError` when a list is longer than `limit`; what is no list is another check's business."""
    if isinstance(value, list | tuple) and len(value) > limit:
        raise RequestError(f"{name} holds {len(value)} entries; at most {limit} are taken", param=name)


def either(value: Any, default: Any) -> Any:
    """The value, unless it is absent."""
    return default if value is None else value


@contextlib.contextmanager
def _spelled(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about a parameter are about the field that the dialect has for it."""
    try:
        yield
    except RequestError as error:
        param = error.param or ""
        if param not in names:
            raise
        raise RequestError(str(error).replace(param, names[param], 1), param=names[param], code=error.code) from None


def _logit_bias(fields: SamplingFields, limits: RequestLimits) -> dict[int, float]:
    entries = fields.logit_bias or {}
    if len(entries) > limits.logit_biases:
        raise RequestError(f"logit_bias holds {len(entries)} entries; at most {limits.logit_biases} are taken", param="logit_bias")
    biases: dict[int, float] = {}
    for key, bias in entries.items():
        if not (key.isascii() and key.isdigit() and len(key) <= _MAX_ID_DIGITS) or (token := int(key)) in biases:
            raise RequestError("the keys of logit_bias must be different token ids in decimal digits", param="logit_bias")
        biases[token] = bias
    return biases
