"""The compiler: hostile texts cost their own request and time, nothing else; the cache is bounded."""

import json
import time

import pytest
from constrained_runs import tokenizer

from openglm.engine import grammar_compiler
from openglm.engine.constraint import Constraint
from openglm.engine.grammar_compiler import GrammarCompiler
from openglm.engine.loading import vocabulary_of
from openglm.errors import RequestError


@pytest.fixture(scope="module")
def vocabulary():
    return vocabulary_of(tokenizer(), tokenizer().stop_ids)


@pytest.fixture
def compiler(vocabulary):
    compiler = GrammarCompiler(vocabulary)
    yield compiler
    if compiler._stop is not None:
        compiler._stop()


def finished(compiler, constraint):
    compilation = compiler.submit(constraint)
    while not compilation.done:
        compiler.wait(0.2)
    return compilation


def test_a_grammar_is_compiled_once_and_copies_go_their_own_ways(compiler):
    first = finished(compiler, Constraint("regex", "[ab]{2}"))
    assert compiler.submit(Constraint("regex", "[ab]{2}")) is first
    a = tokenizer().encode_text("a")[0]
    one, other = first.grammar.copy(), first.grammar.copy()
    assert one.advance(a) and one.advance(a) and one.exhausted and not one.advance(a)
    assert not other.exhausted and not other.accepts
    one.rollback(2)
    assert (one.mask() == other.mask()).all() and one.num_accepted([a, a, a]) == 2


HOSTILE = [
    Constraint("regex", "(" * 5000 + "a" + ")" * 5000),
    Constraint("regex", "((((a{1,99}){1,99}){1,99}){1,99}){1,99}"),
    Constraint("lark", "start: " + "(" * 60_000 + '"a"' + ")" * 60_000),
    Constraint("lark", "start: start"),
    Constraint("json_schema", '{"allOf":[' * 3000 + "{}" + "]}" * 3000),
    Constraint("json_schema", '{"$ref": "#"}'),
    Constraint("json_schema", '{"type": "string", "minLength": 1000000000}'),
    Constraint("json_schema", '{"enum": [' + ",".join(f'"{i:0200d}"' for i in range(4000)) + "]}"),
]


@pytest.mark.parametrize("constraint", HOSTILE, ids=lambda constraint: constraint.text[:24])
def test_a_hostile_text_ends_in_an_error_or_a_grammar_and_the_next_one_compiles(compiler, constraint):
    compilation = finished(compiler, constraint)
    if compilation.failure is not None:
        assert (compilation.failure.code, compilation.failure.param) == ("invalid_request", "constraint")
        assert len(compilation.failure.message) < 300
        assert compiler.submit(constraint) is compilation  # its time is not spent twice
    else:
        compilation.grammar.copy().mask()
    assert finished(compiler, Constraint("regex", "ok")).grammar is not None


def test_a_text_that_takes_too_long_is_given_up_and_the_child_replaced(vocabulary, monkeypatch):
    monkeypatch.setattr("openglm.engine.grammar_compiler._CHECK_EVERY_S", 0.001)  # the machine may be fast
    compiler = GrammarCompiler(vocabulary)
    assert finished(compiler, Constraint("regex", "a")).grammar is not None
    compiler._trial._limit_s = 0.0
    child = compiler._trial._child
    large = json.dumps({"enum": [f"{i:0100d}" for i in range(9_000)]})
    failure = finished(compiler, Constraint("json_schema", large)).failure
    assert failure.code == "invalid_request" and "longer than" in failure.message
    assert child.returncode is not None and compiler._trial._child is None
    compiler._trial._limit_s = 30.0
    assert finished(compiler, Constraint("regex", "c")).grammar is not None
    compiler._stop()
    assert compiler._trial._child is None and not compiler._thread.is_alive()


def test_the_cache_is_bounded(compiler, monkeypatch):
    monkeypatch.setattr(grammar_compiler, "MAX_CACHED", 3)
    kept = finished(compiler, Constraint("regex", "x0"))
    for i in range(1, 6):
        finished(compiler, Constraint("regex", f"x{i}"))
        assert compiler.submit(Constraint("regex", "x0")) is kept  # used lately
        assert len(compiler._cache) <= 3
    monkeypatch.setattr(grammar_compiler, "MAX_CACHED_CHARS", 100)
    finished(compiler, Constraint("regex", "y" * 99))
    assert len(compiler._cache) == 1


def test_a_child_that_dies_costs_one_request(compiler):
    finished(compiler, Constraint("regex", "a"))
    compiler._trial._child.kill()
    compiler._trial._child.wait()
    assert finished(compiler, Constraint("regex", "b")).failure.code == "invalid_request"
    assert finished(compiler, Constraint("regex", "c")).grammar is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "wizard", "text": "a"},
        {"kind": "regex", "text": ""},
        {"kind": "regex", "text": "a" * 20_000},
        {"kind": "lark", "text": "a" * (2 << 20)},
        {"kind": "lark", "text": "\ud800"},
        {"kind": "lark", "text": "a", "at": "end"},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_what_is_no_constraint_is_refused_at_once(fields):
    with pytest.raises(RequestError) as caught:
        Constraint(**fields, param="guided_regex")
    assert caught.value.param == "guided_regex"


def test_compiling_leaves_the_caller_free(compiler):
    began = time.monotonic()
    compiler.submit(Constraint("regex", "[a-z]{1,50}"))
    assert time.monotonic() - began < 1.0
