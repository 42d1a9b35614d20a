"""Constrained requests through the real engine: every answer valid, reasoning untouched, and no way of running changes a token."""

import json
import random
from functools import cache

import jsonschema
import pytest
from constrained_runs import (
    CONTENT,
    REASONING,
    START,
    UNDECIDED,
    make_core,
    prompt,
    random_object,
    random_schema,
    random_tools,
    text_of,
    tokenizer,
    with_definitions,
)
from engine_runs import generate, merged, preempt_often
from engine_runs import make_core as make_plain_core

from openglm.engine.constraint import Constraint
from openglm.engine.llm import LLM
from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.errors import RequestError
from openglm.text.answer_grammar import json_answer
from openglm.text.tool_grammar import calls_grammar, each_call_grammar
from openglm.text.turn_parser import parse_turn

ABC = Constraint("regex", "[abc]{6}")


def sampled(constraint, seed, **settings):
    return SamplingParams(**{"max_tokens": 900, "temperature": 1.0, "seed": seed, "constraint": constraint, **settings})


def answer_of(output, start, tools=()):
    assert output.error is None, output.error
    return parse_turn(text_of(output.token_ids), START[start], tuple(tools), ended=output.finish_reason == "stop")


def run_schemas(count, first_seed=0, **settings):
    """How many of `count` random schemas ran into the token limit; all others must have valid answers."""
    starts = [CONTENT, UNDECIDED, REASONING]
    cases = []
    for seed in range(first_seed, first_seed + count):
        rng = random.Random(seed)
        cases.append((with_definitions(random_schema(rng) if rng.random() < 0.3 else random_object(rng)), starts[seed % 3]))
    params = [
        sampled(Constraint("lark", json_answer(schema)), i, thinking_budget=4, temperature=(1.0, 0.0, 1.5)[i % 3])
        for i, (schema, _) in enumerate(cases)
    ]
    outputs = generate(make_core(**settings), [prompt(start) for _, start in cases], params)
    cut = 0
    for (schema, start), output in zip(cases, outputs, strict=True):
        message = answer_of(output, start)
        if output.finish_reason == "length":
            cut += 1
            continue
        assert output.finish_reason == "stop" and not message.tool_calls
        jsonschema.validate(json.loads(message.content), schema)
    return cut


def run_tools(count, first_seed=0, **settings):
    """The same for tool lists of which calls are required."""
    starts = [CONTENT, UNDECIDED, REASONING]
    cases = [(random_tools(random.Random(seed)), starts[seed % 3], seed % 2 == 0) for seed in range(first_seed, first_seed + count)]
    params = []
    for i, (tools, _, one_call) in enumerate(cases):
        constraint = Constraint("lark", calls_grammar(tools, one_call=one_call), reads_calls=True)
        # Ends are made likelier, or a random model would make all the calls it may, with arguments without end, and write digits for ever.
        ends = {tokenizer().observation: 30.0, tokenizer().end_tool_call: 10.0, tokenizer().end_arg_value: 10.0}
        params.append(sampled(constraint, i, thinking_budget=4, logit_bias=ends))
    outputs = generate(make_core(**settings), [prompt(start) for _, start, _ in cases], params)
    cut = 0
    for (tools, start, one_call), output in zip(cases, outputs, strict=True):
        message = answer_of(output, start, tools)
        schemas = {tool.name: tool.parameters for tool in tools}
        for call in message.tool_calls:
            jsonschema.validate(call.arguments, schemas[call.name])
        if output.finish_reason == "length":
            cut += 1
            continue
        assert output.finish_reason == "stop" and not message.content
        assert len(message.tool_calls) == 1 if one_call else 1 <= len(message.tool_calls) <= 32
    return cut


def test_answers_to_random_schemas_are_valid():
    assert run_schemas(24, max_num_seqs=24) <= 1


def test_calls_of_random_tools_are_valid():
    assert run_tools(24, max_num_seqs=24) <= 1


@pytest.mark.slow
def test_500_random_schemas_and_300_tool_lists():
    large = {"max_num_seqs": 50, "deterministic": False}
    cut = sum(run_schemas(100, first_seed=1000 * block, num_speculative_tokens=block % 3, **large) for block in range(1, 6))
    cut += sum(run_tools(100, first_seed=1000 * block, num_speculative_tokens=block % 3, **large) for block in range(1, 4))
    assert cut <= 16  # of 800


@cache
def mixed_batch():
    """Constraints of every kind beside free requests, with every other way to change a choice."""
    rng = random.Random(5)
    tools = random_tools(rng, 3)
    schema = json_answer(with_definitions(random_object(rng)))
    t = tokenizer()
    think_less = {t.end_think: 14.0}

    def sampled(constraint, seed, **own):
        return SamplingParams(**{"max_tokens": 30, "seed": seed, "constraint": constraint, **own})

    own = [
        (CONTENT, sampled(ABC, 1, temperature=0.0)),
        (UNDECIDED, sampled(ABC, 2, logprobs=3, logit_bias={t.think: 9.0, **think_less})),
        (REASONING, sampled(Constraint("lark", schema), 3, logit_bias=think_less, max_tokens=40)),
        (
            REASONING,
            sampled(Constraint("lark", calls_grammar(tools, one_call=False), reads_calls=True), 4, thinking_budget=7, max_tokens=40),
        ),
        (
            CONTENT,
            sampled(
                Constraint("lark", each_call_grammar(tools, one_call=False), at="call"), 5, logit_bias={t.tool_call: 9.0}, max_tokens=40
            ),
        ),
        (
            CONTENT,
            sampled(Constraint("json_schema", '{"type": "array", "items": {"type": "integer"}}'), 6, max_tokens=25, repetition_penalty=1.3),
        ),
        (
            CONTENT,
            sampled(Constraint("regex", "([a-z]+ ){3}end"), 7, top_p=0.9, frequency_penalty=0.5, bad_words=((t.encode_text("end")[0],),)),
        ),
        (UNDECIDED, sampled(None, 8, max_tokens=20)),
        (CONTENT, sampled(Constraint("regex", "x*"), 9, min_tokens=3, max_tokens=12)),
        (REASONING, sampled(None, 10, max_tokens=30, temperature=0.0)),
        (CONTENT, sampled(Constraint("lark", 'start: "a" start | "b"'), 11, top_k=50, logprobs=0, max_tokens=30)),
        (CONTENT, sampled(Constraint("regex", "[0-9]+"), 12, ignore_eos=True, max_tokens=9)),
    ]
    return [prompt(text) for text, _ in own], [params for _, params in own]


def facts(output):
    return output.token_ids, output.logprobs, output.finish_reason, output.stop_reason, output.error


@cache
def alone():
    found = []
    for ids, params in zip(*mixed_batch(), strict=True):
        (output,) = generate(make_core(0, enable_prefix_caching=False), [ids], params)
        found.append(facts(output))
    return found


class HalfRight:
    """Proposes what the requests will say, and at every fifth place something else."""

    def __init__(self, answers):
        self.answers = answers

    def propose(self, settled, hidden):
        drafts = []
        for item in settled:
            place = item.sequence.num_output
            right = self.answers[int(item.sequence.id[1:])][place : place + item.depth]
            drafts.append([7 if (place + i) % 5 == 4 else token for i, token in enumerate(right)])
        return drafts


def core_with_drafts(depth, **settings):
    core = make_core(depth, **settings)
    if depth:
        core.proposer = HalfRight([found[0] for found in alone()])
    return core


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 24, "max_num_seqs": 5}], ids=["whole", "chunks"])
def test_no_company_chunk_or_draft_changes_a_token(depth, settings):
    core = core_with_drafts(depth, **settings)
    assert [facts(output) for output in generate(core, *mixed_batch())] == alone()
    stats = core.stats()
    assert stats.num_redrawn_tokens > 0 and stats.pages_held == 0
    assert depth == 0 or 0 < sum(stats.accepted_by_position) < sum(stats.drafted_by_position)
    assert not core.constrainer._answers and not core.constrainer._waiting


@pytest.mark.parametrize("depth", [0, 3])
def test_preempted_requests_resume_in_the_state_of_their_grammar(depth):
    core = core_with_drafts(depth, max_model_len=192, kv_cache_tokens=448)
    preempt_often(core, every=5)
    assert [facts(output) for output in generate(core, *mixed_batch())] == alone()
    assert core.stats().num_preemptions > 0


def test_drafts_that_the_grammar_forbids_are_cut_and_right_ones_verified():
    class Oracle:
        """Proposes the answer, and after every third token something the grammar forbids."""

        def propose(self, settled, hidden):
            drafts = []
            for item in settled:
                done = item.sequence.num_output
                right = answer[done : done + item.depth]
                drafts.append([*right[:1], tokenizer().user] if done % 3 == 0 else right)
            return drafts

    params = sampled(Constraint("regex", "[a-z]{1,2}( [a-z]{1,2}){6}"), 3)
    (plain,) = generate(make_core(0), [prompt()], params)
    answer = plain.token_ids
    core = make_core(3)
    core.proposer = Oracle()
    (again,) = generate(core, [prompt()], params)
    assert facts(again) == facts(plain)
    stats = core.stats()
    drafted, accepted = sum(stats.drafted_by_position), sum(stats.accepted_by_position)
    assert accepted > 0 and drafted - accepted <= 1  # nothing hopeless was verified; the draft that ends the request is not counted


@pytest.mark.parametrize("start", [UNDECIDED, REASONING])
def test_reasoning_is_that_of_the_free_run(start):
    t, num_shared = tokenizer(), 0
    for seed in range(6):
        # `</think>` and the ends of a turn come up within some tokens.
        bias = {t.end_think: 6.0, t.user: 4.0, t.endoftext: 4.0, **({t.think: 30.0} if start == UNDECIDED else {})}
        free, held = (
            generate(make_core(0), [prompt(start)], sampled(constraint, seed, logit_bias=bias, max_tokens=60))[0]
            for constraint in (None, Constraint("regex", "(yes|no)"))
        )
        end = held.token_ids.index(t.end_think) if t.end_think in held.token_ids else len(held.token_ids)
        shared = free.token_ids[:end]  # the free run may have ended its turn inside the reasoning
        assert shared == held.token_ids[: len(shared)]
        num_shared += len(shared)
        assert len(shared) == end or free.finish_reason == "stop"
        assert held.finish_reason == "length" or text_of(held.token_ids[end + 1 :]) in ("yes", "no")
    assert num_shared > 12


def test_a_turn_cannot_end_before_its_answer():
    t = tokenizer()
    eager = dict.fromkeys(t.stop_ids, 60.0)
    (output,) = generate(make_core(1), [prompt(REASONING)], sampled(ABC, 1, logit_bias={**eager, t.end_think: 50.0}))
    assert output.finish_reason == "stop" and output.token_ids[0] == t.end_think
    assert len(text_of(output.token_ids[1:])) == 6 and set(text_of(output.token_ids[1:])) <= set("abc")
    (output,) = generate(make_core(1), [prompt()], sampled(Constraint("regex", "a+"), 1, logit_bias=eager))
    assert (text_of(output.token_ids), output.finish_reason, output.stop_reason in t.stop_ids) in (
        ("a", "stop", True),
        ("aa", "stop", True),
    )


def test_the_model_may_open_its_reasoning_or_answer_at_once():
    t = tokenizer()
    layout = t.encode_text("\n")
    thinks = sampled(ABC, 1, logit_bias={layout[0]: 60.0}, max_tokens=40, thinking_budget=3)
    (output,) = generate(make_core(1), [prompt(UNDECIDED)], thinks)
    # A newline that cannot belong to the answer can only stand before <think>, or before a lone </think>.
    assert output.token_ids[0] == layout[0] and output.token_ids[1] in (t.think, t.end_think)
    (output,) = generate(
        make_core(1), [prompt(UNDECIDED)], sampled(ABC, 1, logit_bias={t.think: -100.0, t.end_think: -100.0, layout[0]: -100})
    )
    assert set(text_of(output.token_ids)) <= set("abc")


def test_text_does_not_spell_tags():
    """Ordinary tokens that spell `</arg_value>` or `</think>` would be tags for the turn parser."""
    t = tokenizer()
    tools = random_tools(random.Random(1), 1)
    spelled = t.encode_text("</arg_value>")
    assert len(spelled) > 1
    parameters = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 40}}, "required": ["text"]}
    tools = (type(tools[0])("write", parameters, {}),)
    constraint = Constraint("lark", calls_grammar(tools, one_call=True), reads_calls=True)
    eager = dict.fromkeys(spelled, 40.0)
    for seed in range(5):
        (output,) = generate(make_core(1), [prompt()], sampled(constraint, seed, logit_bias={**eager, t.end_arg_value: 35.0}))
        (call,) = answer_of(output, CONTENT, tools).tool_calls
        jsonschema.validate(call.arguments, parameters)
    for seed in range(3):
        eager = dict.fromkeys(t.encode_text("</think>"), 40.0)
        own = sampled(ABC, seed, logit_bias=eager, thinking_budget=30)
        (output,) = generate(make_core(1), [prompt(REASONING)], own)
        assert set(answer_of(output, REASONING).content) <= set("abc")


def test_calls_are_constrained_only_once_they_are_opened():
    t = tokenizer()
    tools = random_tools(random.Random(3), 2)
    once = Constraint("lark", each_call_grammar(tools, one_call=True), at="call", reads_calls=True)
    free = sampled(None, 4, max_tokens=40)
    (plain,) = generate(make_core(1), [prompt(UNDECIDED)], free)
    (held,) = generate(make_core(1), [prompt(UNDECIDED)], sampled(once, 4, max_tokens=40))
    assert t.tool_call not in plain.token_ids and facts(held) == facts(plain)
    (called,) = generate(make_core(1), [prompt(REASONING)], sampled(once, 4, logit_bias={t.tool_call: 20.0}))
    message = answer_of(called, REASONING, tools)
    assert len(message.tool_calls) == 1 and called.finish_reason == "stop" and called.token_ids[-1] == t.end_tool_call
    (call,) = message.tool_calls
    jsonschema.validate(call.arguments, {tool.name: tool.parameters for tool in tools}[call.name])


def test_tokens_run_out_inside_an_answer():
    (output,) = generate(make_core(3), [prompt()], sampled(Constraint("regex", "[ab]{500}"), 1, max_tokens=10))
    assert (output.finish_reason, len(output.token_ids)) == ("length", 10)


def test_constraints_and_bans_that_leave_nothing_end_the_request_alone():
    t = tokenizer()
    banned = tuple((i,) for i in range(t.num_tokens) if t.token_bytes(i).startswith(b"b"))
    bad, good = generate(make_core(1), [prompt()] * 2, [sampled(Constraint("regex", "b+"), 1, bad_words=banned), sampled(ABC, 1)])
    assert (bad.finish_reason, bad.error.code, bad.error.param) == ("error", "invalid_request", "constraint")
    assert good.finish_reason == "stop"


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("json_schema", '{"type": "wizard"}'),
        Constraint("json_schema", '{"type": '),
        Constraint("json_schema", "[1]"),
        Constraint("json_schema", '{"$ref": "https://example.org/x"}'),
        Constraint("json_schema", '{"not": {"type": "string"}}'),
        Constraint("regex", "(a"),
        Constraint("regex", "(?=a)b"),
        Constraint("lark", "start: nothing"),
        Constraint("lark", "}{"),
    ],
    ids=lambda constraint: constraint.text,
)
def test_a_constraint_that_cannot_be_compiled_is_its_requests_error(constraint):
    core = make_core(1)
    bad, good = generate(core, [prompt()] * 2, [sampled(constraint, 1), sampled(ABC, 1)])
    assert (bad.finish_reason, bad.error.code, bad.error.param) == ("error", "invalid_request", "constraint")
    assert isinstance(bad.error.to_error(), RequestError) and len(bad.error.message) < 300
    assert good.finish_reason == "stop" and core.stats().num_finished == {"stop": 1, "error": 1}


def test_a_constraint_needs_a_tokenizer():
    core = make_plain_core("tiny-air")
    with pytest.raises(RequestError, match="needs a tokenizer"):
        core.add(GenerationRequest("r", [1, 2], SamplingParams(constraint=ABC)))
    assert not core.has_work


def test_requests_without_a_grammar_go_on_while_one_is_compiled():
    core = make_core(1)
    submit, held_back = core.constrainer._compiler.submit, []

    def submit_late(constraint):
        from openglm.engine.grammar_compiler import Compilation

        held_back.append((constraint, Compilation()))
        return held_back[-1][1]

    core.constrainer._compiler.submit = submit_late
    core.add(GenerationRequest("waits", prompt(), sampled(ABC, 1)))
    core.add(GenerationRequest("runs", prompt(), sampled(None, 1, max_tokens=5, ignore_eos=True)))
    outputs = []
    while not any(output.finish_reason for output in outputs):
        outputs += core.step()
    assert {output.request_id for output in outputs} == {"runs"} and core.has_work
    assert core.step() == []
    ((constraint, compilation),) = held_back
    done = submit(constraint)
    while not done.done:
        core.constrainer.wait(0.1)
    compilation.grammar, compilation.done = done.grammar, True
    outputs = []
    while core.has_work:
        outputs += core.step()
    assert merged(outputs).finish_reason == "stop"


def test_a_request_is_aborted_while_its_grammar_is_compiled():
    core = make_core(1)
    core.add(GenerationRequest("r", prompt(), sampled(ABC, 1)))
    assert core.abort("r").finish_reason == "abort"
    assert not core.has_work and not core.constrainer.is_compiling


@pytest.mark.parametrize("n", [3])
def test_several_answers_share_a_compiled_grammar_offline(n):
    llm = LLM.from_core(make_core(1), tokenizer())
    results = llm.generate([prompt()], sampled(Constraint("regex", "[a-z]{12}"), 5), n=n)
    assert len({tuple(result.token_ids) for result in results}) == n
    assert all(len(text_of(result.token_ids)) == 12 and result.finish_reason == "stop" for result in results)
    assert len(llm.core.constrainer._compiler._cache) == 1
