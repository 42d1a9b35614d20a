import assert from "node:assert/strict";
import test from "node:test";
import { AnswerReader, newAnswer } from "../../../openglm/server/page/answer.js";
import { EventParser } from "../../../openglm/server/page/event_parser.js";
import { callArguments, messagesOf, requestBody, toolsOf } from "../../../openglm/server/page/request.js";
import { acceptance, niceTop, pointBetween, Series } from "../../../openglm/server/page/series.js";
import { DEFAULTS, Settings } from "../../../openglm/server/page/settings.js";

test("events come out the same however the stream is cut", () => {
  const text = 'data: {"a":1}\n\n: comment\n\ndata:x\r\n\r\nevent: e\ndata: one\ndata:  two\rid: 3\r\rdata\n\ndata: [DONE]\n\n';
  const whole = ['{"a":1}', "x", "one\n two", "", "[DONE]"];
  assert.deepEqual(new EventParser().push(text), whole);
  for (let size = 1; size < 12; size++) {
    const parser = new EventParser();
    const events = [];
    for (let i = 0; i < text.length; i += size) events.push(...parser.push(text.slice(i, i + size)));
    assert.deepEqual(events, whole, `pieces of ${size}`);
  }
  assert.deepEqual(new EventParser().push("data: unfinished"), []);
});

test("an event without an end is not collected for ever", () => {
  const parser = new EventParser();
  assert.throws(() => {
    for (let i = 0; i < 40; i++) parser.push("x".repeat(1 << 20));
  }, /too large/);
});

const chunk = (delta, more = {}) => ({ id: "chatcmpl-1", choices: [{ delta, ...more }] });

test("chunks become thoughts, text and calls, with their figures", () => {
  const turn = newAnswer();
  const reader = new AnswerReader(turn, 10);
  assert.equal(reader.read(chunk({ role: "assistant", content: "" }), 10.1), false);
  assert.equal(reader.phase, "waiting");
  reader.read(chunk({ reasoning_content: "hm" }), 10.5);
  assert.equal(reader.phase, "thinking");
  assert.ok(Math.abs(reader.figures(11).thinkingS - 0.5) < 1e-9);
  reader.read(chunk({ reasoning: "." }), 11);
  reader.read(chunk({ content: "Yes" }), 11.5);
  assert.equal(reader.phase, "answering");
  reader.read(chunk({ tool_calls: [{ index: 0, id: "c1", function: { name: "f", arguments: "" } }] }), 12);
  reader.read(chunk({ tool_calls: [{ index: 0, function: { arguments: '{"a"' } }] }), 12.1);
  reader.read(chunk({ tool_calls: [{ index: 0, function: { arguments: ":1}" } }] }), 12.5);
  reader.read(chunk({}, { finish_reason: "tool_calls" }), 12.5);
  const usage = { prompt_tokens: 20, completion_tokens: 9, prompt_tokens_details: { cached_tokens: 4 }, completion_tokens_details: { reasoning_tokens: 3, draft_tokens: 4, accepted_draft_tokens: 3 } };
  reader.read({ id: "chatcmpl-1", choices: [], usage }, 12.6);
  reader.end(12.6);
  assert.deepEqual({ ...turn, figures: null }, { role: "assistant", content: "Yes", reasoning: "hm.", calls: [{ id: "c1", name: "f", arguments: '{"a":1}' }], finish: "tool_calls", figures: null });
  const { firstTokenS, thinkingS, tokensPerS, ...counts } = turn.figures;
  assert.ok(Math.abs(firstTokenS - 0.5) < 1e-9 && Math.abs(thinkingS - 1) < 1e-9 && Math.abs(tokensPerS - 8 / 2) < 1e-9);
  assert.deepEqual({ ...counts, totalS: 0 }, { totalS: 0, completionTokens: 9, promptTokens: 20, cachedTokens: 4, reasoningTokens: 3, draftTokens: 4, acceptedTokens: 3 });
  assert.equal(reader.id, "chatcmpl-1");
});

test("both reasoning fields at once are told once, and half characters stay visible", () => {
  const turn = newAnswer();
  const reader = new AnswerReader(turn, 0);
  const content = [{ token: "\ufffd", bytes: [240, 159], logprob: -0.1, top_logprobs: [{ token: "a", bytes: [97], logprob: -0.1 }] }, { token: "b", bytes: [98], logprob: -1 }];
  reader.read(chunk({ reasoning_content: "x", reasoning: "x" }, { logprobs: { content } }), 1);
  assert.equal(turn.reasoning, "x");
  assert.equal(reader.numTokens, 2);
  assert.deepEqual(reader.tokens.map((each) => each.token), ["<0xF0><0x9F>", "b"]);
});

test("a chunk of any odd shape does no harm", () => {
  const reader = new AnswerReader(newAnswer(), 0);
  for (const odd of [{}, { choices: null }, { choices: [] }, { choices: [{}] }, { choices: [{ delta: null }] }, chunk({ content: null }), chunk({ tool_calls: [{}] })]) reader.read(odd, 1);
  reader.end(2);
  assert.equal(reader.turn.calls.length, 1);
});

test("messages leave out what never was said, and calls that were cut off", () => {
  const call = (text) => ({ id: "c", name: "f", arguments: text });
  const turns = [
    { role: "user", content: "q" },
    { role: "assistant", content: "", reasoning: "", calls: [], error: { kind: "network" } },
    { role: "assistant", content: "partly", reasoning: "r", calls: [call('{"a":'), call('{"a": 1}')] },
    { role: "tool", results: [{ id: "c", content: "1" }] },
  ];
  const messages = messagesOf(turns, "  ");
  assert.deepEqual(messages.map((each) => each.role), ["user", "assistant", "tool"]);
  assert.deepEqual(messages[1], { role: "assistant", content: "partly", reasoning_content: "r", tool_calls: [{ id: "c", type: "function", function: { name: "f", arguments: '{"a": 1}' } }] });
  assert.equal(messagesOf(turns, "be kind")[0].role, "system");
  assert.deepEqual([callArguments(call("")), callArguments(call("[]")), callArguments(call("1"))], [{}, null, null]);
});

test("settings become fields, and empty ones are left out", () => {
  const turns = [{ role: "user", content: "q" }];
  const plain = requestBody({ turns, system: "", settings: { ...DEFAULTS, logprobs: false } });
  assert.deepEqual(Object.keys(plain), ["messages", "stream", "stream_options"]);
  const settings = { ...DEFAULTS, thinking: "on", thinkingBudget: "100", demoTools: ["clock"], sampling: { temperature: "0.5", top_k: "3.7", seed: " ", min_p: "x", stop: "a\n\nb" } };
  const body = requestBody({ turns, system: "", settings, topLogprobs: 3 });
  assert.deepEqual(body.chat_template_kwargs, { enable_thinking: true });
  assert.deepEqual([body.thinking_budget, body.temperature, body.top_k, body.seed, body.min_p, body.stop], [100, 0.5, 3, undefined, undefined, ["a", "b"]]);
  assert.deepEqual([body.logprobs, body.top_logprobs, body.tools.length], [true, 3, 1]);
});

test("own tools are taken bare or wrapped, and mistakes are named", () => {
  const read = (ownTools) => toolsOf({ ...DEFAULTS, ownTools });
  assert.equal(read('{"name": "f"}').tools[0].function.name, "f");
  assert.equal(read('[{"type": "function", "function": {"name": "g"}}]').tools[0].function.name, "g");
  assert.equal(read("[").error, "toolsNotJson");
  for (const wrong of ["[1]", "[null]", '[{"name": ""}]', '[{"name": "a b"}]', '[{"name": 1}]', '"f"']) assert.equal(read(wrong).error, "toolsNeedName", wrong);
});

test("settings that were tampered with fall back one by one", () => {
  const kept = { theme: "purple", thinking: "off", demoTools: "all", sampling: [], logprobs: "yes" };
  const { values } = new Settings({ getItem: () => JSON.stringify(kept) });
  assert.deepEqual({ ...values }, { ...DEFAULTS, thinking: "off" });
  for (const broken of ["{", "null", "1", "[]"]) assert.deepEqual(new Settings({ getItem: () => broken }).values, { ...DEFAULTS });
});

const stats = (values) => ({ num_steps: 0, num_generated_tokens: 0, num_prefill_tokens: 0, num_scheduled_tokens: 0, prompt_tokens_looked_up: 0, prompt_tokens_cached: 0, num_running: 1, num_waiting: 2, pages_total: 10, pages_held: 4, pages_cached: 1, drafted_by_position: [10, 4, 0], accepted_by_position: [9, 1, 0], ...values });

test("counters become rates, and a restart breaks the line instead of falling below zero", () => {
  const before = { time: 1, stats: stats({}) };
  const after = { time: 3, stats: stats({ num_steps: 4, num_generated_tokens: 10, num_scheduled_tokens: 20, prompt_tokens_looked_up: 8, prompt_tokens_cached: 2 }) };
  const point = pointBetween(before, after);
  assert.deepEqual([point.generated, point.batch, point.cache, point.kv, point.running, point.waiting], [5, 5, 0.25, 0.4, 1, 2]);
  assert.equal(pointBetween(after, { time: 5, stats: stats({}) }).generated, undefined);
  assert.equal(pointBetween(after, { time: 5, stats: null }), null);
  assert.equal(pointBetween(null, before).generated, undefined);
  assert.deepEqual(acceptance(after.stats).map((each) => each.share), [0.9, 0.25]);
  assert.deepEqual(acceptance(null), []);
  const series = new Series();
  for (let time = 0; time < 1000; time++) series.add({ time, stats: stats({}) });
  assert.ok(series.points.length <= 181);
  assert.deepEqual([0, 0.3, 1, 7, 20.5, 100].map(niceTop), [1, 0.5, 1, 10, 50, 100]);
});
