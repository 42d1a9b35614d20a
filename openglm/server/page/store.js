// Conversations in the browser's storage, bounded: when there is no more room the oldest give way, and the caller is told which.

import { fromRecord, toRecord } from "./archive.js";

const INDEX = "openglm.conversations";
const KEY = "openglm.conversation.";
const DRAFT = "openglm.draft.";
export const MAX_CONVERSATIONS = 200;
export const MAX_CHARS = 4_000_000;

export class Store {
  /** `storage` is `localStorage` or anything like it; `limits` are for tests. */
  constructor(storage, { maxConversations = MAX_CONVERSATIONS, maxChars = MAX_CHARS } = {}) {
    this.#storage = storage;
    this.#maxConversations = maxConversations;
    this.#maxChars = maxChars;
  }

  #storage;
  #maxConversations;
  #maxChars;

  /** What is kept, latest first: [{ id, title, updated, chars }]. */
  list() {
    const entries = this.#read(INDEX);
    if (!Array.isArray(entries)) return [];
    const sound = entries.filter((each) => typeof each?.id === "string" && typeof each.title === "string" && Number.isFinite(each.updated));
    return sound.sort((a, b) => b.updated - a.updated);
  }

  /** The conversation, or null when it is not kept or cannot be read. */
  load(id) {
    try {
      return fromRecord(this.#read(KEY + id), id);
    } catch {
      return null;
    }
  }

  /** Keeps a conversation. Returns { saved, removed }: whether there was room, and the records that had to go for it. */
  save(conversation) {
    const text = JSON.stringify(toRecord(conversation));
    const { id, title, updated } = conversation;
    const entry = { id, title, updated, chars: text.length };
    const kept = this.list().filter((each) => each.id !== id);
    const removed = [];
    if (text.length > this.#maxChars) return { saved: false, removed };
    const total = () => kept.reduce((sum, each) => sum + (each.chars || 0), text.length);
    while (kept.length && (kept.length >= this.#maxConversations || total() > this.#maxChars)) this.#evict(kept, removed);
    for (;;) {
      try {
        this.#storage.setItem(KEY + id, text);
        this.#storage.setItem(INDEX, JSON.stringify([entry, ...kept]));
        return { saved: true, removed };
      } catch {
        if (!kept.length) return this.#takeBack(id, removed);
        this.#evict(kept, removed);
      }
    }
  }

  remove(id) {
    this.#storage.removeItem(KEY + id);
    this.#storage.removeItem(DRAFT + id);
    this.#write(INDEX, JSON.stringify(this.list().filter((each) => each.id !== id)));
  }

  draft(id) {
    return this.#storage.getItem(DRAFT + id) ?? "";
  }

  setDraft(id, text) {
    if (!text) this.#storage.removeItem(DRAFT + id);
    else this.#write(DRAFT + id, text);
  }

  /** Nothing made enough room: what was removed for it comes back. */
  #takeBack(id, removed) {
    this.#storage.removeItem(KEY + id);
    for (const record of removed) this.#write(KEY + record.id, JSON.stringify(record));
    return { saved: false, removed: [] };
  }

  #evict(kept, removed) {
    const oldest = kept.pop();
    const record = this.#read(KEY + oldest.id);
    if (record) removed.push(record);
    this.#storage.removeItem(KEY + oldest.id);
  }

  #read(key) {
    try {
      return JSON.parse(this.#storage.getItem(key) ?? "null");
    } catch {
      return null;
    }
  }

  #write(key, text) {
    try {
      this.#storage.setItem(key, text);
    } catch {
      // no room: a draft stays in the page, and a removed conversation is not found when it is asked for
    }
  }
}
