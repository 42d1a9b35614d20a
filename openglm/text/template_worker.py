"""The child process in which a checkpoint's own chat template runs. Started by `template_process`, by path, on its own.

A template is a program that came with a download. It runs in jinja2's immutable sandbox, and because that sandbox does not
bound loops or memory, it runs here: little memory, no files, and a parent that kills the process when it takes too long.

Protocol, one JSON document per line: in comes `{"source": ...}`, out goes `{"ready": true}`; from then on variables come in
and `{"text": ...}` goes out. Either answer may be `{"error": ...}` instead. Imports nothing of openglm.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MAX_MEMORY = 512 << 20  # bytes of address space; the interpreter itself takes about 60 MiB
MAX_OUTPUT = 16 << 20  # characters


class _TemplateRaised(Exception):
    """The template called `raise_exception`: it refuses the conversation."""


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks trained text in some templates; rendering only needs the body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def main() -> None:
    """Serve until standard input ends."""
    _limit_process()
    template: jinja2.Template | None = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if template is None:
            answer, template = _compile(request["source"])
        else:
            answer = _answer(partial(_render, template, request))
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _compile(source: str) -> tuple[dict[str, Any], jinja2.Template | None]:
    compiled: list[jinja2.Template] = []

    def compile_source() -> dict[str, Any]:
        compiled.append(_environment().from_string(source))
        return {"ready": True}

    answer = _answer(compile_source)
    return answer, compiled[0] if compiled else None


def _answer(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Whatever a foreign template raises is an answer to the parent, never the end of this process."""
    try:
        return action()
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:
        return {"error": f"{type(error).__name__.lstrip('_')}: {str(error)[:300]}"}


def _render(template: jinja2.Template, variables: dict[str, Any]) -> dict[str, Any]:
    pieces: list[str] = []
    length = 0
    for piece in template.generate(**variables):
        length += len(piece)
        if length > MAX_OUTPUT:
            raise ValueError(f"the prompt is longer than {MAX_OUTPUT} characters")
        pieces.append(piece)
    return {"text": "".join(pieces)}


def _environment() -> jinja2.Environment:
    """What transformers gives a chat template: block trimming, a JSON filter without HTML escapes, two functions."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise _TemplateRaised(message)


def _limit_process() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
