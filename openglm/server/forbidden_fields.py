"""Fields of a body that are errors in every dialect, although unknown fields are ignored.

Other servers take templates, tensors, code or addresses of other machines in these. A client that sends one relies on an effect which
it will not get here, so silence would be worse than a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from openglm.config.server import RequestLimits
from openglm.errors import RequestError
from openglm.server.strict_json import decode_json

_TEMPLATE: Final = "the template is the model's own; messages decide what it renders"
_TENSORS: Final = "tensors are not taken from clients; send text or token ids"
_ROUTING: Final = "this server takes no part in prefill/decode disaggregation"

FORBIDDEN_FIELDS: Final[Mapping[str, str]] = {
    "chat_template": _TEMPLATE,
    "prompt_embeds": _TENSORS,
    "input_embeds": _TENSORS,
    "custom_logit_processor": "code is not taken from clients; logit_bias, bad_words and structured outputs shape an answer",
    "logits_processors": "code is not taken from clients; logit_bias, bad_words and structured outputs shape an answer",
    "bootstrap_host": _ROUTING,
    "bootstrap_port": _ROUTING,
    "bootstrap_room": _ROUTING,
    "kv_transfer_params": _ROUTING,
    "use_beam_search": "beam search is not served; use n for several answers",
}


def decode_body(body: bytes, limits: RequestLimits) -> Any:
    """The value of a body in any dialect. Raises `RequestError` for what is no strict JSON and for forbidden fields."""
    value = decode_json(body, max_depth=limits.json_depth)
    refuse_forbidden_fields(value)
    return value


def refuse_forbidden_fields(body: Any) -> None:
    """Raise `RequestError` if a decoded body holds one of them with a value; null means absent, as everywhere, and so does false."""
    if not isinstance(body, dict):
        return
    for name in FORBIDDEN_FIELDS.keys() & body.keys():
        if body[name] is not None and body[name] is not False:
            raise RequestError(f"{name} is not supported: {FORBIDDEN_FIELDS[name]}", param=name, code="unsupported_field")
    if body.get("best_of") not in (None, 1):
        raise RequestError("best_of is not supported; use n for several answers", param="best_of", code="unsupported_field")
