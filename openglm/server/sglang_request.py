"""A body of SGLang's `/generate` becomes `TurnRequest`s over raw prompts.

Prompts are `text` or `input_ids`, one or several; sampling parameters are nested, under SGLang's names, for all prompts or as a list.
As in completions, text holds no control tokens: who wants them sends ids.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from openglm.config.server import RequestLimits, SamplingDefaults
from openglm.errors import RequestError
from openglm.server.completions_request import check_prompt_count, read_prompts
from openglm.server.forbidden_fields import decode_body
from openglm.server.openai_constraint import FormFields, read_plain_constraint
from openglm.server.sampling_fields import (
    Int,
    either,
    read_bad_words,
    read_client_id,
    read_num_choices,
    read_sampling,
    read_scheduling,
    read_stop,
)
from openglm.server.strict_json import convert, unknown_fields
from openglm.server.turn import RawPrompt, TurnRequest

_DEFAULT_MAX_TOKENS: Final = 128
_NAMES: Final = {
    "max_tokens": "sampling_params.max_new_tokens",
    "min_tokens": "sampling_params.min_new_tokens",
    "seed": "sampling_params.sampling_seed",
}


class GenerateSampling(FormFields):
    """`sampling_params`."""

    max_new_tokens: Int | None = None
    min_new_tokens: Int | None = None
    sampling_seed: Int | None = None
    no_stop_trim: bool | None = None
    skip_special_tokens: bool | None = None
    parse_special: bool | None = None


class GenerateBody(msgspec.Struct):
    """The fields of a `/generate` body that are read."""

    text: Any = None
    input_ids: Any = None
    image_data: Any = None
    model: str | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: Int | list[Int] | None = None
    top_logprobs_num: Int | list[Int] | None = None
    return_text_in_logprobs: bool | None = None
    stream: bool | None = None
    priority: Int | None = None


@dataclass(frozen=True)
class GenerateRequest:
    """A checked request. `is_batch`: the answer is a list. `logprob_starts` has, per prompt, the first prompt token to report."""

    model: str | None
    turns: tuple[TurnRequest, ...]
    stream: bool
    num_choices: int
    is_batch: bool
    logprob_starts: tuple[int | None, ...]
    text_in_logprobs: bool
    unknown: tuple[str, ...] = ()


def read_generate_request(
    body: bytes, *, limits: RequestLimits, defaults: SamplingDefaults, parse_special: bool = False
) -> GenerateRequest:
    """Decode and check a body. `parse_special` is the server's default. Raises `RequestError` naming the field."""
    value = decode_body(body, limits)
    wanted = convert(value, GenerateBody)
    if wanted.image_data is not None:
        raise RequestError("image_data is not supported: this model reads text", param="image_data", code="unsupported_parameter")
    if (wanted.text is None) == (wanted.input_ids is None):
        raise RequestError("give either text or input_ids", param="text")
    raw, where = (wanted.text, "text") if wanted.text is not None else (wanted.input_ids, "input_ids")
    if (where == "text") != _is_texts(raw):
        raise RequestError(f"{where} must be {'texts' if where == 'text' else 'token ids'}", param=where, code="invalid_type")
    prompts = read_prompts(raw, where, parse_special=parse_special)
    count = len(prompts)
    is_list = isinstance(raw, list) and (where == "text" or isinstance(raw[0], list))
    samplings = [
        _convert_nested(each, f"sampling_params[{i}]" if isinstance(wanted.sampling_params, list) else "sampling_params")
        for i, each in enumerate(_per_prompt("sampling_params", wanted.sampling_params or {}, count))
    ]
    num_choices = read_num_choices(samplings[0], limits)
    if any(each.n != samplings[0].n for each in samplings):
        raise RequestError("n must be the same for all prompts", param="sampling_params.n")
    check_prompt_count(prompts, num_choices, limits)
    rids = _per_prompt("rid", wanted.rid, count)
    flags = _per_prompt("return_logprob", wanted.return_logprob, count)
    tops = _per_prompt("top_logprobs_num", wanted.top_logprobs_num, count)
    starts = [
        start if flag and start is not None and start >= 0 else None
        for flag, start in zip(flags, _per_prompt("logprob_start_len", wanted.logprob_start_len, count), strict=True)
    ]
    turns = tuple(
        _turn(
            prompts[i],
            samplings[i],
            client_id=rids[i],
            priority=wanted.priority,
            logprobs=either(tops[i], 0) if flags[i] else None,
            scores_prompt=starts[i] is not None,
            limits=limits,
            defaults=defaults,
        )
        for i in range(count)
    )
    given = wanted.sampling_params if isinstance(wanted.sampling_params, list) else [wanted.sampling_params]
    unknown = [name for each in given for name in unknown_fields(each, GenerateSampling)]
    return GenerateRequest(
        model=wanted.model,
        turns=turns,
        stream=bool(wanted.stream),
        num_choices=num_choices,
        is_batch=is_list or num_choices > 1,
        logprob_starts=tuple(starts),
        text_in_logprobs=bool(wanted.return_text_in_logprobs),
        unknown=(*unknown_fields(value, GenerateBody), *unknown),
    )


def _convert_nested(value: Any, where: str) -> GenerateSampling:
    """`sampling_params` checked; errors name the field with its place."""
    try:
        return convert(value, GenerateSampling)
    except RequestError as error:
        inner = f"{where}.{error.param}" if error.param else where
        raise RequestError(f"{where}: {error}", param=inner, code=error.code) from None


def _turn(
    prompt: RawPrompt,
    sampling: GenerateSampling,
    *,
    client_id: str | None,
    priority: int | None,
    logprobs: int | None,
    scores_prompt: bool,
    limits: RequestLimits,
    defaults: SamplingDefaults,
) -> TurnRequest:
    sampling.min_tokens = either(sampling.min_new_tokens, sampling.min_tokens)
    sampling.seed = either(sampling.sampling_seed, sampling.seed)
    sampling.priority = either(priority, sampling.priority)
    sampling.rid = either(client_id, sampling.rid)
    params = read_sampling(
        sampling,
        defaults=defaults,
        limits=limits,
        max_tokens=either(sampling.max_new_tokens, _DEFAULT_MAX_TOKENS),
        logprobs=logprobs,
        prompt_logprobs=logprobs if scores_prompt else None,
        constraint=read_plain_constraint(sampling, limits),
        names={"logprobs": "top_logprobs_num", "prompt_logprobs": "top_logprobs_num", **_NAMES},
    )
    return TurnRequest(
        replace(prompt, parse_special=either(sampling.parse_special, prompt.parse_special)),
        params,
        stop=read_stop(sampling.stop, limits),
        keep_stop=bool(sampling.no_stop_trim),
        skip_special=sampling.skip_special_tokens is not False,
        client_id=read_client_id(sampling),
        bad_words=read_bad_words(sampling, limits),
        scheduling=read_scheduling(sampling),
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[0], str))


def _per_prompt(name: str, value: Any, count: int) -> list[Any]:
    """One value for each prompt: a list is taken as it is, anything else is for all."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise RequestError(f"{name} holds {len(value)} entries for {count} prompts", param=name)
    return value
