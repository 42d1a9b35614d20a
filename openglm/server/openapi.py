"""GET /openapi.json: every route with what it takes and what it answers, as OpenAPI 3.1.

Request shapes are made from the structs that decode the bodies, answer shapes from the dialects' `_shapes`, paths and methods from the
routes themselves. Written here is only what none of these know: one line about each operation, and the values that a struct leaves to
the text level (`Any`). A route without such a line, or a line without a route, is an error at start.

Control routes are in the document for who may use them. A stream's schema is that of one server-sent event, whose data is JSON but for a
last [DONE].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from openglm import __version__
from openglm.server import (
    anthropic_shapes,
    completions_shapes,
    openai_shapes,
    operations_shapes,
    responses_shapes,
    sglang_shapes,
    zai_routes,
    zai_shapes,
)
from openglm.server.anthropic_request import MessagesBody
from openglm.server.completions_request import CompletionBody
from openglm.server.json_reply import JSONReply, encode
from openglm.server.openai_request import ChatBody
from openglm.server.operations import AbortBody
from openglm.server.request_context import current_request
from openglm.server.responses_request import ResponsesBody
from openglm.server.service import Service
from openglm.server.sglang_request import GenerateBody, GenerateSampling
from openglm.server.token_routes import DetokenizeBody, TokenizeBody
from openglm.text.openai_messages import ROLES, TEXT_PARTS

JSON, TEXT, HTML, SSE = "application/json", "text/plain", "text/html", "text/event-stream"
_REFERENCE: Final = "#/components/schemas/{name}"


@dataclass(frozen=True)
class Operation:
    """What one method of a path does. `reply` None: the status is the answer."""

    summary: str
    reply: Any = None
    body: type[msgspec.Struct] | None = None
    required: tuple[str, ...] = ()
    """Fields of the body that must be there, although its struct has defaults for them."""
    event: Any = None
    """The shape of a stream's events, where the body may ask for a stream."""
    media_type: str = JSON
    status: int = 200
    error: type[msgspec.Struct] = openai_shapes.OpenAIError
    query: tuple[tuple[str, dict[str, Any]], ...] = ()


def _chat(summary: str, error: type[msgspec.Struct] = openai_shapes.OpenAIError) -> Operation:
    return Operation(summary, openai_shapes.ChatCompletion, ChatBody, ("messages",), openai_shapes.ChatChunk, error=error)


_ENDS_WITH_DONE: Final = (openai_shapes.ChatChunk, completions_shapes.Completion, sglang_shapes.Generated)
_ANTHROPIC: Final = anthropic_shapes.AnthropicError
_TOKENIZE: Final = Operation("The ids of a text, or of the prompt that a conversation becomes.", operations_shapes.Tokenized, TokenizeBody)
_DETOKENIZE: Final = Operation("The text of ids.", operations_shapes.Detokenized, DetokenizeBody, ("tokens",))
_MODEL_INFO: Final = Operation("What is served.", operations_shapes.ModelInfo)
_SERVER_INFO: Final = Operation("Version, state, limits and counters.", operations_shapes.ServerInfo)
_LOADS: Final = Operation("How much there is to do.", operations_shapes.Loads)
_FLUSH: Final = Operation("Forget all cached prefixes.", str, media_type=TEXT)
_ABORT: Final = Operation("End requests by the names that clients know them by, or all.", operations_shapes.Aborted, AbortBody)
_ZAI: Final = _chat("Z.ai's chat completions: calls come whole unless tool_stream asks for pieces.", zai_shapes.ZaiError)

OPERATIONS: Final[dict[tuple[str, str], Operation]] = {
    ("GET", "/health"): Operation("Whether the process serves; 503 once the engine is dead for good."),
    ("GET", "/ready"): Operation("Whether a request sent now would be worked on at once; 503 while not."),
    ("GET", "/metrics"): Operation("Counters in Prometheus' text format.", str, media_type=TEXT),
    ("GET", "/openapi.json"): Operation("This document.", dict[str, Any]),
    ("GET", "/v1/models"): Operation("The names that requests may use.", openai_shapes.ModelList),
    ("GET", "/v1/models/{name}"): Operation("One of them.", openai_shapes.ModelCard),
    ("POST", "/v1/chat/completions"): _chat("An answer to a conversation."),
    ("POST", "/v1/chat/completions/{id}/stop_thinking"): Operation(
        "Let an answer that is being streamed close its reasoning and go on to its content.", openai_shapes.StoppedThinking, status=202
    ),
    ("POST", "/v1/completions"): Operation(
        "The continuation of raw prompts.", completions_shapes.Completion, CompletionBody, ("prompt",), completions_shapes.Completion
    ),
    **{("POST", path): _ZAI for path in zai_routes.PATHS},
    ("POST", "/generate"): Operation(
        "SGLang's generation: text or ids in, text, ids and meta_info out; a list of them for several answers.",
        sglang_shapes.Generated | list[sglang_shapes.Generated],
        GenerateBody,
        event=sglang_shapes.Generated,
    ),
    **{("POST", f"{prefix}/tokenize"): _TOKENIZE for prefix in ("", "/v1")},
    **{("POST", f"{prefix}/detokenize"): _DETOKENIZE for prefix in ("", "/v1")},
    ("GET", "/tokenizer_info"): Operation("What the tokenizer is.", operations_shapes.TokenizerInfo),
    ("POST", "/v1/responses"): Operation(
        "A response, which can be read again and continued.",
        responses_shapes.ResponseObject,
        ResponsesBody,
        ("input",),
        responses_shapes.ResponseEvent,
    ),
    ("GET", "/v1/responses/{id}"): Operation(
        "A stored response, or one that is being made; with stream=true the events of one made in the background.",
        responses_shapes.ResponseObject,
        event=responses_shapes.ResponseEvent,
        query=(
            ("stream", {"type": "string", "enum": ["true", "false"]}),
            ("starting_after", {"type": "string", "pattern": "^[0-9]{1,9}$"}),
        ),
    ),
    ("DELETE", "/v1/responses/{id}"): Operation("Forget a stored response.", responses_shapes.DeletedResponse),
    ("POST", "/v1/responses/{id}/cancel"): Operation("End a response that is being made.", responses_shapes.ResponseObject),
    ("POST", "/v1/messages"): Operation(
        "Anthropic's messages.",
        anthropic_shapes.MessageObject,
        MessagesBody,
        ("messages", "max_tokens"),
        anthropic_shapes.MessageEvent,
        error=_ANTHROPIC,
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "The tokens of a conversation.", anthropic_shapes.CountedTokens, MessagesBody, ("messages",), error=_ANTHROPIC
    ),
    ("GET", "/version"): Operation("Of this package.", operations_shapes.Version),
    **{("GET", path): _MODEL_INFO for path in ("/model_info", "/get_model_info")},
    **{("GET", path): _SERVER_INFO for path in ("/server_info", "/get_server_info")},
    **{("GET", path): _LOADS for path in ("/v1/loads", "/loads")},
    ("GET", "/health_generate"): Operation("200 once a token has been generated for this very request."),
    ("GET", "/"): Operation("The web page.", str, media_type=HTML),
    ("GET", "/page/about"): Operation("For the page: what does not change.", dict[str, Any]),
    ("GET", "/page/figures"): Operation("For the page: the engine's counters.", dict[str, Any]),
    ("POST", "/page/prompt"): Operation("For the page: the prompt of a chat-completions body.", dict[str, Any], ChatBody, ("messages",)),
    ("GET", "/page/{file}"): Operation("A file of the page.", str, media_type="*/*"),
    ("POST", "/drain"): Operation("Take no more work.", operations_shapes.DrainState),
    ("POST", "/resume"): Operation("Take work again.", operations_shapes.DrainState),
    **{(method, path): _FLUSH for method in ("GET", "POST") for path in ("/flush_cache", "/reset_prefix_cache")},
    **{("POST", path): _ABORT for path in ("/abort_request", "/abort_requests")},
}

_OBJECTS: Final = {"anyOf": [{"type": "array", "items": {"type": "object"}}, {"type": "null"}]}
_IDS: Final = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_TEXTS: Final = {"type": "array", "items": {"type": "string"}}
_PROMPT: Final = {
    "anyOf": [
        {"type": "string"},
        {**_IDS, "minItems": 1},
        {**_TEXTS, "minItems": 1},
        {"type": "array", "minItems": 1, "items": _IDS},
    ]
}


def _message(roles: Iterable[str], parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A turn. What else it may hold (calls, reasoning) is for the text level to say."""
    part = {"anyOf": [{"type": "string"}, *parts]}
    content = {"anyOf": [{"type": "string"}, {"type": "array", "items": part}, {"type": "null"}]}
    return {"type": "object", "required": ["role"], "properties": {"role": {"enum": list(roles)}, "content": content}}


def _part(kind: str, field: str) -> dict[str, Any]:
    return {"type": "object", "required": ["type", field], "properties": {"type": {"const": kind}, field: {"type": "string"}}}


_OPENAI_PARTS: Final = [_part(kind, field) for kind, field in TEXT_PARTS.items()]
_ANTHROPIC_BLOCK: Final = {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}}
_SHARED: Final = {
    "ChatTurn": _message(ROLES, _OPENAI_PARTS),
    "MessagesTurn": _message(("user", "assistant", "system"), [_ANTHROPIC_BLOCK]),
}


def _turns(name: str) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": {"$ref": _REFERENCE.format(name=name)}}


# Values that the structs leave to the text level.
_VALUES: Final[dict[type[msgspec.Struct], dict[str, Any]]] = {
    ChatBody: {"messages": _turns("ChatTurn"), "tools": _OBJECTS},
    CompletionBody: {"prompt": _PROMPT},
    TokenizeBody: {"messages": {"anyOf": [_turns("ChatTurn"), {"type": "null"}]}},
    MessagesBody: {
        "messages": _turns("MessagesTurn"),
        "tools": _OBJECTS,
        "system": _message((), [_ANTHROPIC_BLOCK])["properties"]["content"],
    },
    ResponsesBody: {"input": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}, "tools": _OBJECTS},
    GenerateBody: {
        "text": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        "input_ids": {"anyOf": [_IDS, {"type": "array", "items": _IDS}, {"type": "null"}]},
        "image_data": {"type": "null"},
        "sampling_params": {
            "anyOf": [
                {"$ref": _REFERENCE.format(name="GenerateSampling")},
                {"type": "array", "items": {"$ref": _REFERENCE.format(name="GenerateSampling")}},
                {"type": "null"},
            ]
        },
    },
}


class OpenAPIRoute:
    """The endpoint. Documents are made when they are first asked for, and kept."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._routes: tuple[Sequence[Route], Sequence[Route]] = ((), ())
        self._made: dict[bool, bytes] = {}

    def describe(self, routes: Sequence[Route], control_routes: Sequence[Route]) -> None:
        """Say which routes there are; raises `LookupError` when one of them is not described here, or one described is not there."""
        there = {key for route in (*routes, *control_routes) for key, _ in _operations([route])}
        if there != OPERATIONS.keys():
            raise LookupError(f"routes and their descriptions differ: {sorted(there ^ OPERATIONS.keys())}")
        self._routes = (routes, control_routes)

    async def show(self, request: Request) -> Response:
        """The document."""
        del request
        is_admin = current_request().is_admin
        if is_admin not in self._made:
            routes, control_routes = self._routes
            wanted = (*routes, *control_routes) if is_admin else routes
            self._made[is_admin] = encode(document(wanted, needs_key=bool(self._service.config.api_keys)))
        return JSONReply(self._made[is_admin])


def document(routes: Sequence[Route], *, needs_key: bool) -> dict[str, Any]:
    """The whole of it."""
    found = dict(_operations(routes))
    types = dict.fromkeys(kind for each in found.values() for kind in (each.body, each.reply, each.event, each.error) if kind is not None)
    schemas, components = msgspec.json.schema_components([*types, GenerateSampling], ref_template=_REFERENCE)
    schema_of = dict(zip(types, schemas, strict=False))
    for body, values in _VALUES.items():
        if body.__name__ in components:
            components[body.__name__]["properties"] |= values
    components |= _SHARED
    paths: dict[str, Any] = {}
    for (method, path), operation in found.items():
        described = _described(method, path, operation, schema_of)
        if needs_key and path not in ("/health", "/ready"):
            described["security"] = [{"bearer": []}, {"header": []}]
        paths.setdefault(path, {})[method.lower()] = described
    security = {"bearer": {"type": "http", "scheme": "bearer"}, "header": {"type": "apiKey", "in": "header", "name": "x-api-key"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "openglm",
            "version": __version__,
            "description": "GLM models over the wires of OpenAI, Anthropic, Z.ai and SGLang.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": security},
    }


def _operations(routes: Sequence[Route]) -> Iterator[tuple[tuple[str, str], Operation]]:
    for route in routes:
        path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            operation = OPERATIONS.get((method, path))
            if operation is None:
                raise LookupError(f"{method} {path} is not described")
            yield (method, path), operation


def _described(method: str, path: str, operation: Operation, schema_of: dict[Any, Any]) -> dict[str, Any]:
    words = re.findall(r"\w+", path)
    described: dict[str, Any] = {
        "operationId": "_".join([method.lower(), *words]),
        "summary": operation.summary,
        "responses": {
            str(operation.status): {"description": "Done.", **_content(operation, schema_of)},
            "default": {"description": "Why not.", "content": {JSON: {"schema": schema_of[operation.error]}}},
        },
    }
    if not operation.reply:  # probes say no without words
        described["responses"]["503"] = {"description": "No."}
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"{(\w+)}", path)]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        schema: dict[str, Any] = schema_of[operation.body]
        if operation.required:
            schema = {"allOf": [schema, {"type": "object", "required": list(operation.required)}]}
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return described


def _content(operation: Operation, schema_of: dict[Any, Any]) -> dict[str, Any]:
    content = {}
    if operation.reply is not None:
        content[operation.media_type] = {"schema": schema_of[operation.reply]}
    if operation.event is not None:
        data: dict[str, Any] = {"type": "string", "contentMediaType": JSON, "contentSchema": schema_of[operation.event]}
        if operation.event in _ENDS_WITH_DONE:
            data = {"anyOf": [data, {"const": "[DONE]"}]}
        content[SSE] = {"schema": {"type": "object", "required": ["data"], "properties": {"event": {"type": "string"}, "data": data}}}
    return {"content": content} if content else {}
