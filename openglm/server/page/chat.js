// What the page is about, without its looks: the conversations, and the answers that run in them.
//
// Events: "conversations" (the list changed), "open" (another conversation is shown), "path" (other turns are shown), "answer"
// (a turn that is shown grew; detail.id), "run" (an answer began or ended), "kept" (detail: what storage could not hold), "full" (the
// conversation takes no more turns).

import { AnswerReader, newAnswer } from "./answer.js";
import { ApiError, request, streamChat } from "./api.js";
import { fromRecord, newConversation } from "./archive.js";
import { isDemoTool, runDemoTool } from "./demo_tools.js";
import { callArguments, requestBody } from "./request.js";
import { MAX_TURNS } from "./tree.js";

const MAX_TOOL_ROUNDS = 8; // of tools that run by themselves, after one message
const SAVE_EVERY_MS = 1500;
const SAVE_AFTER_MS = 300;
const MAX_TITLE = 60;

export const now = () => performance.now() / 1000;

export class Chat extends EventTarget {
  constructor({ store, settings }) {
    super();
    this.store = store;
    this.settings = settings;
    this.topLogprobs = undefined;
    /** Messages that are being edited, by id: what is typed there outlives a change of branch or language. */
    this.edits = new Map();
    /** The conversation that is shown. */
    this.current = newConversation();
  }

  #open = new Map();
  #runs = new Map();
  #tokens = new WeakMap();
  #saving = null;
  #unsaved = null;

  get tree() {
    return this.current.tree;
  }

  /** Ids of the conversations in which an answer runs. */
  get running() {
    return new Set(this.#runs.keys());
  }

  /** The answer that runs in the shown conversation: { id, reader }, or undefined. */
  get run() {
    return this.#runs.get(this.current.id);
  }

  /** Per-token records of an answer that this page has generated. */
  tokensOf(turn) {
    return this.#tokens.get(turn) ?? [];
  }

  create() {
    this.#show(newConversation(this.current.system));
  }

  /** Shows a kept conversation; false when it is gone. */
  select(id) {
    const conversation = this.#open.get(id) ?? this.store.load(id);
    if (conversation === null) return false;
    this.#show(conversation);
    return true;
  }

  removeConversation(id) {
    this.#runs.get(id)?.controller.abort();
    this.#open.delete(id);
    if (this.#unsaved?.id === id) this.#unsaved = null;
    this.store.remove(id);
    if (id === this.current.id) this.#show(newConversation());
    this.#emit("conversations");
  }

  rename(id, title) {
    const conversation = id === this.current.id ? this.current : (this.#open.get(id) ?? this.store.load(id));
    if (!conversation || !title.trim()) return;
    conversation.title = title.trim().slice(0, 200);
    this.save(conversation);
  }

  setSystem(text) {
    this.current.system = text;
    if (this.tree.size) this.saveSoon();
    this.#emit("path");
  }

  adopt(conversations) {
    for (const conversation of conversations) {
      conversation.title ||= titleOf(conversation.tree);
      this.save(conversation);
    }
    if (conversations.length) this.#show(conversations.at(-1));
  }

  all() {
    return this.store.list().map(({ id }) => this.#open.get(id) ?? this.store.load(id)).filter(Boolean);
  }

  save(conversation = this.current) {
    const { saved, removed } = this.store.save(conversation);
    if (removed.length || !saved) this.#emit("kept", { saved, removed: removed.map((record) => readable(record)).filter(Boolean) });
    this.#emit("conversations");
  }

  /** Keeps what is being typed, once the typing pauses. */
  saveSoon() {
    const conversation = this.current;
    clearTimeout(this.#saving);
    this.#unsaved = conversation;
    this.#saving = setTimeout(() => this.#saveNow(), SAVE_AFTER_MS);
  }

  #saveNow() {
    clearTimeout(this.#saving);
    if (this.#unsaved) this.store.save(this.#unsaved);
    this.#unsaved = null;
  }

  /** A message at the end of the shown branch, and its answer. Returns whether it was taken. */
  send(text) {
    if (!this.#mayAnswer()) return false;
    const { tree } = this;
    const asked = tree.add(tree.leaf, { role: "user", content: text });
    this.current.title ||= titleOf(tree);
    this.#answer(this.current, asked);
    return true;
  }

  /** Another version of a message, and its answer. */
  edit(id, text) {
    if (!this.#mayAnswer()) return;
    this.#answer(this.current, this.tree.addSibling(id, { role: "user", content: text }));
  }

  /** Another answer at the same place. */
  regenerate(id) {
    if (!this.#mayAnswer()) return;
    this.#answer(this.current, this.tree.parent(id));
  }

  /** Another try after a failure; one that said nothing is replaced, not kept beside. */
  retry(id) {
    if (!this.#mayAnswer()) return;
    const parent = this.tree.parent(id);
    if (isEmpty(this.tree.turn(id)) && this.tree.below(id) === null) this.tree.remove(id);
    this.#answer(this.current, parent);
  }

  /** The results of all calls of an assistant turn, and the answer to them. */
  answerTools(id, results) {
    if (!this.#mayAnswer()) return;
    delete this.tree.turn(id).drafts;
    this.#answer(this.current, this.tree.add(id, { role: "tool", results }));
  }

  showSibling(id, step) {
    if (this.run) return;
    this.tree.showSibling(id, step);
    this.save();
    this.#emit("path");
  }

  removeTurn(id) {
    if (this.run) return;
    this.tree.remove(id);
    this.save();
    this.#emit("path");
  }

  stop() {
    this.run?.controller.abort();
  }

  async stopThinking() {
    const id = this.run?.reader.id;
    if (!id) return;
    try {
      await request(`v1/chat/completions/${encodeURIComponent(id)}/stop_thinking`, { method: "POST" });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // the answer may be over by now, and if not, it still runs
    }
  }

  /** Keeps what was typed and what has arrived so far: for a page that is about to go. */
  saveAll() {
    this.#saveNow();
    for (const { conversation } of this.#runs.values()) this.store.save(conversation);
  }

  /** Takes in what another tab wrote. */
  reload() {
    this.#emit("conversations");
    if (this.run || !this.tree.size) return;
    const kept = this.store.load(this.current.id);
    if (kept && kept.updated > this.current.updated) this.#show(kept);
  }

  /** Whether no answer runs, and a message and its answer still fit. */
  #mayAnswer() {
    if (this.run) return false;
    const fits = this.tree.size + 2 <= MAX_TURNS;
    if (!fits) this.#emit("full");
    return fits;
  }

  #show(conversation) {
    for (const [id] of this.#open) if (!this.#runs.has(id)) this.#open.delete(id);
    this.#open.set(conversation.id, conversation);
    this.#saveNow();
    if (conversation !== this.current) this.edits.clear();
    this.current = conversation;
    this.#emit("open");
    this.#emit("path");
    this.#emit("run");
    this.#emit("conversations");
  }

  async #answer(conversation, parent) {
    this.#open.set(conversation.id, conversation);
    for (let round = 0; round <= MAX_TOOL_ROUNDS; round++) {
      const id = await this.#generate(conversation, parent);
      const turn = conversation.tree.turn(id);
      if (turn.finish !== "tool_calls" || !this.settings.values.runTools || round === MAX_TOOL_ROUNDS) return;
      if (conversation.tree.size + 2 > MAX_TURNS) return;
      if (!turn.calls.every((call) => isDemoTool(call.name) && callArguments(call))) return;
      const results = turn.calls.map((call) => ({ id: call.id, content: runDemoTool(call.name, callArguments(call)) }));
      parent = conversation.tree.add(id, { role: "tool", results });
    }
  }

  /** One answer below `parent`, from request to end; returns its id. Failures end up in the turn. */
  async #generate(conversation, parent) {
    const { tree } = conversation;
    const turns = tree.pathTo(parent).map((id) => tree.turn(id));
    const turn = newAnswer();
    const id = tree.add(parent, turn);
    const reader = new AnswerReader(turn, now());
    const controller = new AbortController();
    this.#tokens.set(turn, reader.tokens);
    this.#runs.set(conversation.id, { id, reader, controller, conversation });
    conversation.updated = Date.now();
    this.save(conversation);
    this.#emit("path");
    this.#emit("run");
    const saving = setInterval(() => this.store.save(conversation), SAVE_EVERY_MS);
    try {
      const body = requestBody({ turns, system: conversation.system, settings: this.settings.values, topLogprobs: this.topLogprobs });
      for await (const chunk of streamChat(body, controller.signal)) {
        if (reader.read(chunk, now()) && conversation === this.current) this.#emit("answer", { id });
      }
    } catch (error) {
      if (error.name === "AbortError") turn.finish = "stopped";
      else turn.error = failure(error);
    }
    clearInterval(saving);
    reader.end(now());
    this.#runs.delete(conversation.id);
    conversation.updated = Date.now();
    if (tree.has(id) && (this.#open.has(conversation.id) || conversation === this.current)) this.save(conversation);
    if (conversation === this.current) this.#emit("answer", { id });
    this.#emit("path");
    this.#emit("run", { ended: turn });
    return id;
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** Whether an answer says nothing at all. */
export function isEmpty(turn) {
  return !turn.content && !turn.reasoning && !turn.calls.length;
}

function failure(error) {
  if (!(error instanceof ApiError)) return { kind: "page", message: String(error?.message ?? error) };
  const retryAt = error.retryAfterS === null ? null : Date.now() + 1000 * error.retryAfterS;
  return { kind: error.kind, message: error.message, retryAt };
}

function titleOf(tree) {
  const first = tree.path().map((id) => tree.turn(id)).find((turn) => turn.role === "user");
  const line = (first?.content ?? "").trim().split("\n")[0];
  return line.length > MAX_TITLE ? `${line.slice(0, MAX_TITLE - 1)}…` : line;
}

function readable(record) {
  try {
    return fromRecord(record);
  } catch {
    return null;
  }
}

