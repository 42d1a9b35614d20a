"""What a client's JSON schema may be before anything is built from it: bounded in size, depth and width, and self-contained.

The checks need one walk without recursion. Whether a grammar can honour every keyword is known only to the grammar compiler.
"""

from __future__ import annotations

from typing import Any, Final

from openglm.errors import RequestError
from openglm.text.messages import JSON

MAX_DEPTH: Final = 64
MAX_NODES: Final = 20_000
MAX_ENUM: Final = 1_000
MAX_PATTERN_CHARS: Final = 512


def check_schema(schema: JSON, where: str) -> None:
    """Raise `RequestError` naming `where` for a schema that is no object, too large, or refers to another document."""
    if not isinstance(schema, dict):
        raise RequestError(f"{where}: expected a JSON schema, which is an object", param=where)
    level: list[Any] = [schema]
    num_nodes = 0
    for _ in range(MAX_DEPTH):
        num_nodes += len(level)
        if num_nodes > MAX_NODES:
            raise RequestError(f"{where}: the schema has more than {MAX_NODES} parts", param=where)
        for node in level:
            if isinstance(node, dict):
                _check_node(node, where)
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise RequestError(f"{where}: the schema nests deeper than {MAX_DEPTH} levels", param=where)


def _children(node: Any) -> list[Any]:
    values = node.values() if isinstance(node, dict) else node
    return [value for value in values if isinstance(value, dict | list)]


def _check_node(node: dict[str, Any], where: str) -> None:
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise RequestError(f"{where}: $ref may only point into the schema itself (#/...)", param=where)
    enum = node.get("enum")
    if isinstance(enum, list) and len(enum) > MAX_ENUM:
        raise RequestError(f"{where}: an enum holds {len(enum)} values; at most {MAX_ENUM} are taken", param=where)
    pattern = node.get("pattern")
    if isinstance(pattern, str) and len(pattern) > MAX_PATTERN_CHARS:
        raise RequestError(f"{where}: a pattern has {len(pattern)} characters; at most {MAX_PATTERN_CHARS} are taken", param=where)
