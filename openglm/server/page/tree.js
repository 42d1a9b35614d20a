// A conversation as a tree: every turn may have several continuations, one of which is shown.
//
// Editing or regenerating never replaces a turn, it adds a sibling. Turns are plain objects:
//   { role: "user", content }
//   { role: "assistant", content, reasoning, calls: [{ id, name, arguments }], finish, error, figures }
//   { role: "tool", results: [{ id, content }] }     the answers to all calls of the assistant turn above it
// Nothing here knows a browser.

export const ROOT = "root";
export const MAX_TURNS = 4000;
const MAX_TEXT = 4_000_000;
const ROLES = new Set(["user", "assistant", "tool"]);

export class TreeError extends Error {}

export class ConversationTree {
  #nodes = new Map([[ROOT, { id: ROOT, parent: null, children: [], shown: null, turn: null }]]);
  #next = 1;

  /** Number of turns, on all branches. */
  get size() {
    return this.#nodes.size - 1;
  }

  has(id) {
    return this.#nodes.has(id);
  }

  turn(id) {
    return this.#node(id).turn;
  }

  parent(id) {
    return this.#node(id).parent;
  }

  /** Adds a continuation of `parent`, shows it, and returns its id. */
  add(parent, turn) {
    if (this.size >= MAX_TURNS) throw new TreeError("too many turns");
    const above = this.#node(parent);
    const id = `t${this.#next++}`;
    this.#nodes.set(id, { id, parent, children: [], shown: null, turn });
    above.children.push(id);
    above.shown = id;
    return id;
  }

  /** Another version of a turn: the same place, a new branch. */
  addSibling(id, turn) {
    return this.add(this.#node(id).parent, turn);
  }

  /** Where a turn stands among its versions: { index, count }, index from 0. */
  place(id) {
    const { children } = this.#node(this.#node(id).parent);
    return { index: children.indexOf(id), count: children.length };
  }

  /** Shows the version `step` places further (clamped), with the branch that was last shown below it; returns its id. */
  showSibling(id, step) {
    const above = this.#node(this.#node(id).parent);
    const index = Math.min(Math.max(above.children.indexOf(id) + step, 0), above.children.length - 1);
    above.shown = above.children[index];
    return above.shown;
  }

  /** Shows the branch that leads to a turn. */
  show(id) {
    for (let node = this.#node(id); node.parent !== null; node = this.#node(node.parent)) {
      this.#node(node.parent).shown = node.id;
    }
  }

  /** Removes a turn and everything below it. A neighbour is shown in its place. */
  remove(id) {
    const node = this.#node(id);
    if (node.parent === null) throw new TreeError("the root cannot be removed");
    const above = this.#node(node.parent);
    const index = above.children.indexOf(id);
    above.children.splice(index, 1);
    if (above.shown === id) above.shown = above.children[Math.min(index, above.children.length - 1)] ?? null;
    const doomed = [id];
    while (doomed.length) {
      const each = doomed.pop();
      doomed.push(...this.#node(each).children);
      this.#nodes.delete(each);
    }
  }

  /** Ids of the shown branch, from the first turn to the last. */
  path() {
    const ids = [];
    for (let id = this.#node(ROOT).shown; id !== null; id = this.#node(id).shown) ids.push(id);
    return ids;
  }

  /** Ids from the first turn to this one. */
  pathTo(id) {
    const ids = [];
    for (let node = this.#node(id); node.parent !== null; node = this.#node(node.parent)) ids.push(node.id);
    return ids.reverse();
  }

  /** The last shown turn; ROOT when there is none. */
  get leaf() {
    return this.path().at(-1) ?? ROOT;
  }

  /** The shown continuation of a turn, or null. */
  below(id) {
    return this.#node(id).shown;
  }

  toJSON() {
    const turns = [];
    const waiting = [...this.#node(ROOT).children].reverse();
    while (waiting.length) {
      const { id, parent, children, shown, turn } = this.#node(waiting.pop());
      const position = { id, parent };
      if (shown !== null) position.shown = shown;
      turns.push({ ...position, turn });
      waiting.push(...[...children].reverse());
    }
    return { shown: this.#node(ROOT).shown, turns };
  }

  /** A tree from what `toJSON` gave, or from a file that says it is that; throws TreeError where it is not. */
  static fromJSON(data) {
    if (!isObject(data) || !Array.isArray(data.turns)) throw new TreeError("no list of turns");
    if (data.turns.length > MAX_TURNS) throw new TreeError("too many turns");
    const tree = new ConversationTree();
    const ids = new Map([[ROOT, ROOT]]);
    for (const entry of data.turns) {
      if (!isObject(entry) || typeof entry.id !== "string" || ids.has(entry.id)) throw new TreeError("a turn has no id of its own");
      const parent = ids.get(entry.parent);
      if (parent === undefined) throw new TreeError("a turn comes before the one it answers");
      ids.set(entry.id, tree.add(parent, readTurn(entry.turn)));
    }
    const shown = [{ id: ROOT, shown: data.shown }, ...data.turns];
    for (const entry of shown) {
      const node = tree.#node(ids.get(entry.id));
      const wanted = ids.get(entry.shown);
      if (node.children.includes(wanted)) node.shown = wanted;
    }
    return tree;
  }

  #node(id) {
    const node = this.#nodes.get(id);
    if (node === undefined) throw new TreeError("no such turn");
    return node;
  }
}

function readTurn(turn) {
  if (!isObject(turn) || !ROLES.has(turn.role)) throw new TreeError("a turn has no known role");
  if (turn.role === "user") return { role: "user", content: text(turn.content) };
  if (turn.role === "tool") {
    return { role: "tool", results: list(turn.results).map((each) => ({ id: text(each?.id), content: text(each?.content) })) };
  }
  const calls = list(turn.calls).map((each) => ({ id: text(each?.id), name: text(each?.name), arguments: text(each?.arguments) }));
  const read = { role: "assistant", content: text(turn.content), reasoning: text(turn.reasoning ?? ""), calls };
  if (typeof turn.finish === "string") read.finish = turn.finish.slice(0, 40);
  if (isObject(turn.figures)) read.figures = numbers(turn.figures);
  if (isObject(turn.error)) read.error = { kind: text(turn.error.kind ?? "server"), message: text(turn.error.message ?? "") };
  if (isObject(turn.drafts)) read.drafts = strings(turn.drafts);
  return read;
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function text(value) {
  if (typeof value !== "string" || value.length > MAX_TEXT) throw new TreeError("a turn has a text that is none");
  return value;
}

function list(value) {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value) || value.length > 1000) throw new TreeError("a turn has a list that is none");
  return value;
}

function numbers(source) {
  return Object.fromEntries(Object.entries(source).filter(([, value]) => Number.isFinite(value)).slice(0, 40));
}

function strings(source) {
  return Object.fromEntries(Object.entries(source).filter(([, value]) => typeof value === "string").slice(0, 1000));
}
