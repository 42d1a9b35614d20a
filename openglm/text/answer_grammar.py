"""Grammars of whole answers that are no calls: JSON, a regular expression, one of several texts, or a grammar of the client's own.

An answer may begin with the layout's newline, which the turn parser drops. Where calls are possible too, the answer is either: a text
of the wanted form, or calls. The result is llguidance's JSON form of several grammars that refer to each other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import llguidance
from llguidance import gbnf_to_lark

from openglm.errors import RequestError
from openglm.text.argument_grammar import to_literal
from openglm.text.messages import JSON, Tool
from openglm.text.tool_grammar import GAP, GAP_LINE, MAX_CALLS, call_rules

ANY_OBJECT: Final = {"type": "object"}

_JSON_STYLE: Final = {"whitespace_pattern": r" {1,4}|\r?\n[ \t]{0,40}"}  # as in the engine's own json_schema constraints


def json_answer(schema: dict[str, JSON], *, strict: bool = True, tools: Sequence[Tool] = (), one_call: bool = False) -> str:
    """An answer that is JSON of this schema, or calls of `tools`. Keywords that cannot be honoured are refused when the grammar is
    compiled if `strict`, else passed over."""
    style = {**_JSON_STYLE, "lenient": not strict}
    return _whole(f"{GAP} @answer", {"json_schema": {**schema, "x-guidance": style}}, tools, one_call)


def regex_answer(pattern: str, *, tools: Sequence[Tool] = (), one_call: bool = False) -> str:
    """An answer that matches a regular expression from end to end."""
    regex = f"/{llguidance.regex_to_lark(pattern, 'd')}/"
    # A newline of the answer's own at its beginning must stand behind the layout's, or the parser would drop it.
    answer = 'start: "\\n" WHOLE | INLINE'
    return _whole("@answer", {"lark_grammar": f"{answer}\nWHOLE: {regex}\nINLINE: {regex} & ~/\\n(?s:.*)/"}, tools, one_call)


def choice_answer(choices: Sequence[str], *, tools: Sequence[Tool] = (), one_call: bool = False) -> str:
    """An answer that is one of these texts."""
    gap = '"\\n"' if any(choice.startswith("\n") for choice in choices) else GAP
    return _whole(f"{gap} @answer", {"lark_grammar": choice_grammar(choices)}, tools, one_call)


def choice_grammar(choices: Sequence[str]) -> str:
    """One of these texts, in Lark, without a layout around it."""
    return f"start: {' | '.join(map(to_literal, choices))}"


def grammar_answer(grammar: str, *, param: str, tools: Sequence[Tool] = (), one_call: bool = False) -> str:
    """An answer of a client's grammar, in Lark (llguidance's dialect) or in the EBNF of llama.cpp and xgrammar."""
    return _whole(f"{GAP} @answer", {"lark_grammar": client_grammar(grammar, param=param)}, tools, one_call)


def client_grammar(grammar: str, *, param: str) -> str:
    """A client's grammar in Lark, without a layout around it."""
    try:
        lark: str = gbnf_to_lark.any_to_lark(grammar)
    except Exception as error:  # the converter raises bare Exception, and IndexError where a text ends early
        reason = "it nests too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise RequestError(f"{param}: the grammar cannot be read: {reason}", param=param) from None
    return lark


def _whole(answer: str, grammar: dict[str, JSON], tools: Sequence[Tool], one_call: bool) -> str:
    lines = [GAP_LINE]
    if tools:
        call, rules = call_rules(tools)
        more = "" if one_call else f" ({GAP} {call}){{0,{MAX_CALLS - 1}}}"
        lines += [f"start: {answer} | {GAP} {call}{more}", *rules]
    else:
        lines.append(f"start: {answer}")
    return json.dumps({"grammars": [{"lark_grammar": "\n".join(lines)}, {"name": "answer", **grammar}]})
