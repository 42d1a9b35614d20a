import assert from "node:assert/strict";
import test from "node:test";
import { ConversationTree, MAX_TURNS, ROOT, TreeError } from "../../../openglm/server/page/tree.js";

const user = (content) => ({ role: "user", content });
const answer = (content) => ({ role: "assistant", content, reasoning: "", calls: [] });

/** question -> two answers, the second goes on; another version of the question */
function grown() {
  const tree = new ConversationTree();
  const q = tree.add(ROOT, user("q"));
  const a1 = tree.add(q, answer("a1"));
  const a2 = tree.addSibling(a1, answer("a2"));
  const q2 = tree.add(a2, user("more"));
  return { tree, q, a1, a2, q2 };
}

test("the newest version is shown, and arrows bring back what was below the others", () => {
  const { tree, q, a1, a2, q2 } = grown();
  assert.deepEqual(tree.path(), [q, a2, q2]);
  assert.deepEqual(tree.place(a2), { index: 1, count: 2 });
  assert.equal(tree.showSibling(a2, -1), a1);
  assert.deepEqual(tree.path(), [q, a1]);
  assert.equal(tree.showSibling(a1, -1), a1);
  tree.showSibling(a1, 5);
  assert.deepEqual(tree.path(), [q, a2, q2]);
  assert.equal(tree.leaf, q2);
  assert.deepEqual(tree.pathTo(a1), [q, a1]);
  assert.equal(tree.below(a2), q2);
  assert.equal(tree.below(q2), null);
});

test("editing a question keeps the old one with everything below", () => {
  const { tree, q, q2 } = grown();
  const edited = tree.addSibling(q, user("other"));
  assert.deepEqual(tree.path(), [edited]);
  tree.show(q2);
  assert.equal(tree.path().at(-1), q2);
});

test("removing takes the whole branch and shows a neighbour", () => {
  const { tree, q, a1, a2, q2 } = grown();
  tree.remove(a2);
  assert.deepEqual(tree.path(), [q, a1]);
  assert.ok(!tree.has(q2) && tree.size === 2);
  tree.remove(q);
  assert.deepEqual([tree.path(), tree.leaf, tree.size], [[], ROOT, 0]);
  assert.throws(() => tree.remove(ROOT), TreeError);
});

test("a tree survives being written and read, branches shown included", () => {
  const { tree, a2 } = grown();
  tree.showSibling(a2, -1);
  tree.add(tree.leaf, { role: "tool", results: [{ id: "c", content: "r" }] });
  const again = ConversationTree.fromJSON(JSON.parse(JSON.stringify(tree)));
  const turns = (each) => each.path().map((id) => each.turn(id));
  assert.deepEqual(turns(again), turns(tree));
  assert.equal(again.size, tree.size);
  again.showSibling(again.path()[1], 1);
  assert.equal(again.turn(again.leaf).content, "more");
});

test("what is no tree is refused", () => {
  const one = (turn, more = {}) => ({ turns: [{ id: "a", parent: ROOT, turn, ...more }] });
  const wrong = [null, 1, [], {}, { turns: 1 }, { turns: [null] }, { turns: [{}] }, one(null), one({ role: "admin", content: "" }), one({ role: "user" }), one({ role: "user", content: 1 }), one({ role: "tool", results: [1] }), one({ role: "assistant", content: "", calls: 1 }), one(user(""), { parent: "b" }), one(user(""), { parent: "__proto__" }), { turns: [...one(user("")).turns, ...one(user("")).turns] }, { turns: Array(MAX_TURNS + 1).fill({}) }];
  for (const data of wrong) assert.throws(() => ConversationTree.fromJSON(data), TreeError, JSON.stringify(data)?.slice(0, 80));
  assert.deepEqual(ConversationTree.fromJSON({ ...one(user("x")), shown: "nobody" }).path().length, 1);
});

test("a tree is bounded", () => {
  const tree = new ConversationTree();
  for (let i = 0; i < MAX_TURNS; i++) tree.add(tree.leaf === ROOT ? ROOT : "t1", user(""));
  assert.throws(() => tree.add(ROOT, user("")), TreeError);
});
