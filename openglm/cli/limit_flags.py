"""A flag for every limit of the server: made from the two dataclasses that hold them, so that no limit lacks one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Annotated, Any, Final

import typer

from openglm.config.server import ConnectionLimits, RequestLimits, limit_flag

PANEL: Final = "Limits (sizes in bytes, times in seconds)"

_MEANINGS: Final = {
    "body_read_s": "For a body to arrive.",
    "json_depth": "Nesting of a body.",
    "top_logprobs": "Alternatives per token.",
    "choices": "Answers per request (n).",
    "schema_chars": "One schema, or all tools together where calls are constrained.",
    "head_bytes": "Request line and headers together.",
    "head_line_bytes": "One of them.",
    "head_read_s": "For the headers to arrive.",
    "body_chunks": "Chunks of a body.",
    "idle_s": "That a connection is kept between requests.",
    "write_stall_s": "That a client may leave its answer unread.",
    "connections": "Open connections.",
    "connections_per_peer": "Open connections of one address; raise it behind a proxy.",
}


def with_limit_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command like `command`, which takes `limits` and `connection_limits`, with a flag for each field instead of those two."""
    holders = {"limits": RequestLimits, "connection_limits": ConnectionLimits}
    signature = inspect.signature(command, eval_str=True)
    parameters = [parameter for name, parameter in signature.parameters.items() if name not in holders]
    holder_of: dict[str, str] = {}
    for holder, limits in holders.items():
        for each in fields(limits):
            holder_of[f"limit_{each.name}"] = holder
            parameters.append(_parameter(each))

    @functools.wraps(command)
    def with_limits(**values: Any) -> None:
        made = {holder: limits(**_taken(values, holder_of, holder)) for holder, limits in holders.items()}
        command(**values, **made)

    with_limits.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # what typer reads
    with_limits.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_limits


def _parameter(limit: Field[Any]) -> inspect.Parameter:
    kind = type(limit.default)
    meaning = _MEANINGS.get(limit.name, limit.name.replace("_", " ").capitalize() + ".")
    option = typer.Option(limit_flag(limit.name), help=meaning, rich_help_panel=PANEL)
    return inspect.Parameter(
        f"limit_{limit.name}", inspect.Parameter.KEYWORD_ONLY, default=limit.default, annotation=Annotated[kind, option]
    )


def _taken(values: dict[str, Any], holder_of: Mapping[str, str], holder: str) -> dict[str, Any]:
    names = [name for name, of in holder_of.items() if of == holder]
    return {name.removeprefix("limit_"): values.pop(name) for name in names}
