"""Routes about tokens: text to ids, ids to text, and what the tokenizer is. Evaluation harnesses use them as a remote tokenizer.

The text of `/tokenize` is treated as a prompt of `/v1/completions` is: nothing in it is a control token, unless `parse_special` is set.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from openglm.errors import RequestError
from openglm.server.forbidden_fields import decode_body
from openglm.server.json_reply import JSONReply, encode
from openglm.server.openai_request import ChatBody, chat_request
from openglm.server.sampling_fields import Int, either
from openglm.server.service import Service
from openglm.server.strict_json import convert, unknown_fields
from openglm.server.text_route import TextAnswer, TextRoute
from openglm.text.messages import Conversation

_MAX_TOKENS: Final = 1 << 18
"""Whose text is told in one answer: a single token may stand for a hundred bytes."""


class TokenizeBody(msgspec.Struct):
    """The fields that are read besides those of a chat."""

    prompt: str | None = None
    content: str | None = None
    messages: Any = None
    model: str | None = None
    parse_special: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct):
    """`skip_special_tokens` leaves control tokens out of the text."""

    tokens: list[Int] | None = None
    model: str | None = None
    skip_special_tokens: bool | None = None


def routes(service: Service) -> list[Route]:
    """All of them."""
    tokens = _Tokens(service)
    posts = (("tokenize", tokens.tokenize), ("detokenize", tokens.detokenize))
    return [
        *(Route(f"{prefix}/{name}", TextRoute(service, answer), methods=["POST"]) for prefix in ("", "/v1") for name, answer in posts),
        Route("/tokenizer_info", tokens.info, methods=["GET"]),
    ]


class _Tokens:
    def __init__(self, service: Service) -> None:
        self._service = service

    def tokenize(self, body: bytes) -> TextAnswer:
        """The ids of a text, or of the prompt that a conversation becomes."""
        service = self._service
        value = decode_body(body, service.config.limits)
        wanted = convert(value, TokenizeBody)
        service.check_model(wanted.model)
        tokenizer = service.model.tokenizer
        if wanted.messages is not None:
            ids = self._conversation_ids(value, add_generation_prompt=wanted.add_generation_prompt is not False)
        else:
            text = wanted.content if wanted.prompt is None else wanted.prompt
            if text is None:
                raise RequestError("give a prompt or messages", param="prompt", code="missing_field")
            ids = tokenizer.encode_raw(text) if either(wanted.parse_special, service.config.parse_special) else tokenizer.encode_text(text)
        if wanted.return_token_strs:
            _check_length(len(ids), "return_token_strs")
        strings = [tokenizer.decode([token]) for token in ids] if wanted.return_token_strs else None
        reply = {"count": len(ids), "max_model_len": service.model.max_model_len, "tokens": ids, "token_strs": strings}
        unknown = unknown_fields(value, TokenizeBody)
        if wanted.messages is not None:
            unknown = tuple(name for name in unknown if name not in ChatBody.__struct_encode_fields__)
        return TextAnswer(reply, unknown)

    def detokenize(self, body: bytes) -> TextAnswer:
        """The text of ids."""
        service = self._service
        value = decode_body(body, service.config.limits)
        wanted = convert(value, DetokenizeBody)
        service.check_model(wanted.model)
        tokenizer = service.model.tokenizer
        if wanted.tokens is None:
            raise RequestError("tokens is missing", param="tokens", code="missing_field")
        if wanted.tokens and not 0 <= min(wanted.tokens) <= max(wanted.tokens) < tokenizer.num_tokens:
            raise RequestError(f"token ids run from 0 to {tokenizer.num_tokens - 1}", param="tokens")
        _check_length(len(wanted.tokens), "tokens")
        text = tokenizer.decode(wanted.tokens, skip_special=bool(wanted.skip_special_tokens))
        return TextAnswer({"prompt": text, "content": text}, unknown_fields(value, DetokenizeBody))

    async def info(self, request: Request) -> Response:
        """GET /tokenizer_info, with the names that Hugging Face's tokenizers use."""
        del request
        model, tokenizer = self._service.model, self._service.model.tokenizer
        end = tokenizer.decode([tokenizer.endoftext])
        return JSONReply(
            encode(
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "eos_token": end,
                    "pad_token": end,
                    "bos_token": None,
                    "unk_token": None,
                    "vocab_size": tokenizer.num_tokens,
                    "model_max_length": model.max_model_len,
                    "chat_template": model.template_source,
                    "additional_special_tokens": list(tokenizer.added_tokens),
                    "stop_token_ids": list(tokenizer.stop_ids),
                }
            )
        )

    def _conversation_ids(self, value: Any, *, add_generation_prompt: bool) -> list[int]:
        service = self._service
        config, model = service.config, service.model
        # Here the prompt may well end without the beginning of an answer, which a chat refuses.
        value = {key: item for key, item in value.items() if key != "add_generation_prompt"}
        chat = chat_request(value, limits=config.limits, defaults=model.defaults, thinking=config.default_thinking)
        assert isinstance(chat.turn.prompt, Conversation)
        rendered = model.template.render(chat.turn.prompt, add_generation_prompt=add_generation_prompt)
        return model.tokenizer.encode_segments(rendered.segments)


def _check_length(count: int, param: str) -> None:
    if count > _MAX_TOKENS:
        raise RequestError(f"{count} tokens are too many for one answer; at most {_MAX_TOKENS} are taken", param=param)
