"""The base of the shapes of everything that the server answers: `/openapi.json` is made from them, and the tests read every recorded answer
with them, unknown fields forbidden. Each dialect has its own in a `_shapes` file. Answers are written by the `_response` files; nothing
is written with these.
"""

from __future__ import annotations

import msgspec


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    """A field with a default may be missing; all others are always there."""
