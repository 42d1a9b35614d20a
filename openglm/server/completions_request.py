"""A body of the completions route becomes `TurnRequest`s over raw prompts.

A prompt is text, token ids, or a list of either. In text nothing is a control token, since nobody knows who wrote which part of it;
who wants the model's tags writes them as ids, or says `parse_special: true` (llama.cpp's name). `echo` with `logprobs` scores the
prompt, and `max_tokens: 0` does nothing else: what evaluation harnesses need. `suffix` and `best_of` are refused, as leaving them
out silently would answer another question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from openglm.config.server import RequestLimits, SamplingDefaults
from openglm.errors import RequestError
from openglm.server.forbidden_fields import decode_body
from openglm.server.openai_constraint import FormFields, read_plain_constraint
from openglm.server.openai_request import StreamOptions
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

_DEFAULT_MAX_TOKENS: Final = 16


class CompletionBody(FormFields):
    """The fields of a completions body that are read."""

    prompt: Any = None
    model: str | None = None
    suffix: str | None = None
    max_tokens: Int | None = None
    max_completion_tokens: Int | None = None
    echo: bool | None = None
    logprobs: Int | None = None
    best_of: Int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    parse_special: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None


@dataclass(frozen=True)
class CompletionRequest:
    """A checked request: a turn per prompt, and how the client wants the answer delivered."""

    model: str | None
    turns: tuple[TurnRequest, ...]
    stream: bool
    num_choices: int
    echo: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    unknown: tuple[str, ...] = ()


def read_completion_request(
    body: bytes, *, limits: RequestLimits, defaults: SamplingDefaults, parse_special: bool = False
) -> CompletionRequest:
    """Decode and check a body. `parse_special` is the server's default. Raises `RequestError` naming the field."""
    value = decode_body(body, limits)
    wanted = convert(value, CompletionBody)
    if wanted.suffix:
        raise RequestError("suffix is not supported: this model cannot fill in the middle", param="suffix", code="unsupported_parameter")
    num_choices = read_num_choices(wanted, limits)
    if wanted.best_of is not None and wanted.best_of != num_choices:
        raise RequestError("best_of is not supported; ask for n answers", param="best_of", code="unsupported_parameter")
    prompts = read_prompts(wanted.prompt, "prompt", parse_special=either(wanted.parse_special, parse_special))
    check_prompt_count(prompts, num_choices, limits)
    echo = bool(wanted.echo)
    max_tokens = either(either(wanted.max_completion_tokens, wanted.max_tokens), _DEFAULT_MAX_TOKENS)
    scored = wanted.logprobs if echo else None
    params = read_sampling(
        wanted,
        defaults=defaults,
        limits=limits,
        max_tokens=max_tokens,
        logprobs=wanted.logprobs,
        prompt_logprobs=0 if echo and scored is None and max_tokens == 0 else scored,
        constraint=read_plain_constraint(wanted, limits),
    )
    stop, bad_words, scheduling = read_stop(wanted.stop, limits), read_bad_words(wanted, limits), read_scheduling(wanted)
    turns = tuple(
        TurnRequest(
            prompt,
            params,
            stop=stop,
            keep_stop=bool(wanted.include_stop_str_in_output),
            skip_special=wanted.skip_special_tokens is not False,
            client_id=read_client_id(wanted),
            bad_words=bad_words,
            scheduling=scheduling,
        )
        for prompt in prompts
    )
    options = wanted.stream_options or StreamOptions()
    return CompletionRequest(
        model=wanted.model,
        turns=turns,
        stream=bool(wanted.stream),
        num_choices=num_choices,
        echo=echo,
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        return_token_ids=bool(wanted.return_token_ids),
        unknown=unknown_fields(value, CompletionBody),
    )


def read_prompts(value: Any, where: str, *, parse_special: bool) -> list[RawPrompt]:
    """The prompts of a value that is text, token ids, or a list of either."""
    if value is None:
        raise RequestError(f"{where} is missing", param=where, code="missing_field")
    if isinstance(value, str):
        return [RawPrompt(value, parse_special=parse_special)]
    if isinstance(value, list) and value:
        if all(_is_token(item) for item in value):
            return [RawPrompt(ids=tuple(value))]
        if all(isinstance(item, str) for item in value):
            return [RawPrompt(item, parse_special=parse_special) for item in value]
        if all(isinstance(item, list) and all(_is_token(token) for token in item) for item in value):
            return [RawPrompt(ids=tuple(item)) for item in value]
    raise RequestError(f"{where} must be a text, a list of token ids, or a list of either", param=where, code="invalid_type")


def check_prompt_count(prompts: list[RawPrompt], num_choices: int, limits: RequestLimits) -> None:
    """Raise `RequestError` when one body wants more answers than one may."""
    if len(prompts) * num_choices > limits.prompts:
        count = len(prompts) * num_choices
        raise RequestError(f"prompts times n are {count}; at most {limits.prompts} are taken in one request", param="prompt")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
