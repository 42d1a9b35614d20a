"""How Z.ai's path refuses, as types (`reply_shape`). Its answers are `openai_shapes.ChatCompletion`, with a `request_id`."""

# ruff: noqa: D101  # the names are the wire's own

from __future__ import annotations

from openglm.server.reply_shape import Shape


class ZaiErrorDetail(Shape):
    code: str
    message: str


class ZaiError(Shape):
    error: ZaiErrorDetail
