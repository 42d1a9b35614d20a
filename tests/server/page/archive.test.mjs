import assert from "node:assert/strict";
import test from "node:test";
import { ArchiveError, exportText, fromRecord, importText, newConversation } from "../../../openglm/server/page/archive.js";
import { Store } from "../../../openglm/server/page/store.js";
import { textNames, textsOf } from "../../../openglm/server/page/texts.js";
import { ROOT } from "../../../openglm/server/page/tree.js";

class Memory extends Map {
  constructor(room = Infinity) {
    super();
    this.room = room;
  }
  getItem = (key) => this.get(key) ?? null;
  removeItem = (key) => this.delete(key);
  setItem(key, value) {
    const used = [...this].reduce((sum, [name, text]) => sum + (name === key ? 0 : text.length), 0);
    if (used + value.length > this.room) throw new Error("QuotaExceededError");
    this.set(key, value);
  }
}

function conversation(title, updated = 1, text = "hello") {
  const made = newConversation("system");
  made.tree.add(ROOT, { role: "user", content: text });
  return Object.assign(made, { title, updated });
}

test("an export comes back as it was, under new ids", () => {
  const made = conversation("one");
  const [again] = importText(exportText([made]));
  assert.notEqual(again.id, made.id);
  assert.deepEqual([again.title, again.system, again.tree.toJSON()], ["one", "system", made.tree.toJSON()]);
});

test("plain OpenAI messages can be imported", () => {
  const messages = [
    { role: "system", content: "s" },
    { role: "user", content: [{ type: "text", text: "q" }] },
    { role: "assistant", content: null, tool_calls: [{ id: "c", function: { name: "f", arguments: "{}" } }, { function: { name: "g", arguments: { a: 1 } } }] },
    { role: "tool", tool_call_id: "c", content: "1" },
    { role: "tool", tool_call_id: "d", content: "2" },
    { role: "assistant", content: "done", reasoning_content: "r" },
  ];
  for (const data of [messages, { messages }]) {
    const [{ tree, system }] = importText(JSON.stringify(data));
    assert.equal(system, "s");
    assert.deepEqual(tree.path().map((id) => tree.turn(id).role), ["user", "assistant", "tool", "assistant"]);
    assert.equal(tree.turn(tree.path()[1]).calls[1].arguments, '{"a":1}');
    assert.equal(tree.turn(tree.leaf).reasoning, "r");
  }
});

test("files that are something else are refused", () => {
  const version = (version) => JSON.stringify({ format: "openglm-conversations", version, conversations: [] });
  for (const text of ["", "{", "null", "1", "{}", '[{"role": "x"}]', "[1]", version(2), version("1"), '{"format":"openglm-conversations","version":1,"conversations":[{}]}', '{"format":"openglm-conversations","version":1,"conversations":[null]}']) {
    assert.throws(() => importText(text), ArchiveError, text);
  }
  assert.throws(() => fromRecord(null), ArchiveError);
});

test("what is kept is found again, latest first", () => {
  const store = new Store(new Memory());
  const [a, b] = [conversation("a", 1), conversation("b", 2)];
  for (const each of [b, a]) assert.deepEqual(store.save(each), { saved: true, removed: [] });
  assert.deepEqual(store.list().map((each) => each.title), ["b", "a"]);
  assert.deepEqual(store.load(a.id).tree.toJSON(), a.tree.toJSON());
  store.setDraft(a.id, "typed");
  assert.equal(store.draft(a.id), "typed");
  store.remove(a.id);
  assert.deepEqual([store.list().length, store.load(a.id), store.draft(a.id)], [1, null, ""]);
});

test("the oldest give way, and are handed back", () => {
  const store = new Store(new Memory(), { maxConversations: 2 });
  for (const [i, title] of ["a", "b", "c"].entries()) {
    const { removed } = store.save(conversation(title, i));
    assert.deepEqual(removed.map((each) => each.title), title === "c" ? ["a"] : []);
  }
  const full = new Memory(1500);
  const small = new Store(full);
  for (let i = 0; i < 20; i++) assert.equal(small.save(conversation(`n${i}`, i, "x".repeat(200))).saved, true);
  assert.ok(small.list().length < 8 && small.list()[0].title === "n19");
  const before = small.list();
  assert.deepEqual(small.save(conversation("huge", 99, "x".repeat(5000))), { saved: false, removed: [] });
  assert.deepEqual(small.list(), before);
  assert.ok(before.every(({ id }) => small.load(id) !== null));
});

test("storage that was damaged, or refuses, breaks nothing", () => {
  const memory = new Memory();
  memory.set("openglm.conversations", '[{"id":"x","title":"t","updated":1},{"id":1},null]');
  memory.set("openglm.conversation.x", "{");
  const store = new Store(memory);
  assert.equal(store.list().length, 1);
  assert.equal(store.load("x"), null);
  memory.set("openglm.conversations", "}");
  assert.deepEqual(store.list(), []);
  memory.room = 0;
  store.setDraft("x", "text");
  assert.equal(store.save(conversation("a")).saved, false);
});

test("every text exists in both languages, with the same places to fill in", () => {
  for (const name of textNames()) {
    const [english, chinese] = textsOf(name);
    const places = (text) => [...text.matchAll(/\{(\w+)\}/g)].map((match) => match[1]).sort();
    assert.ok(english && chinese, name);
    assert.deepEqual(places(english), places(chinese), name);
  }
});
