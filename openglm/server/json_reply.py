"""JSON on its way out: one encoder, and a response whose body is JSON already."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.responses import Response

encode: Final = msgspec.json.Encoder().encode


class JSONReply(Response):
    """A body that is JSON already."""

    media_type = "application/json"
