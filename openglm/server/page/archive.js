// Conversations as they are kept and as they leave and enter in files.

import { ConversationTree, ROOT, TreeError } from "./tree.js";

export const FORMAT = "openglm-conversations";
export const MAX_IMPORTED = 500;

export class ArchiveError extends Error {}

export function newConversation(system = "") {
  const now = Date.now();
  return { id: newId(), title: "", system, created: now, updated: now, tree: new ConversationTree() };
}

export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, "0")).join("").slice(0, 16);
}

export function toRecord({ id, title, system, created, updated, tree }) {
  return { id, title, system, created, updated, tree: tree.toJSON() };
}

/** A conversation from a record; throws ArchiveError. With `id` it gets that one instead of its own. */
export function fromRecord(record, id = record?.id) {
  if (typeof record !== "object" || record === null || typeof id !== "string") throw new ArchiveError("not a conversation");
  const time = (value) => (Number.isFinite(value) ? value : Date.now());
  const words = (value, limit) => (typeof value === "string" ? value.slice(0, limit) : "");
  try {
    const tree = ConversationTree.fromJSON(record.tree);
    return { id, title: words(record.title, 200), system: words(record.system, 200_000), created: time(record.created), updated: time(record.updated), tree };
  } catch (error) {
    if (error instanceof TreeError) throw new ArchiveError(error.message);
    throw error;
  }
}

export function exportText(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations: conversations.map(toRecord) }, null, 1);
}

/** Conversations from the text of a file: an export of this page, or plain OpenAI messages. All get new ids. Throws ArchiveError. */
export function importText(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new ArchiveError("not JSON");
  }
  if (data?.format === FORMAT) {
    if (data.version !== 1 || !Array.isArray(data.conversations)) throw new ArchiveError("an unknown version");
    if (data.conversations.length > MAX_IMPORTED) throw new ArchiveError("too many conversations");
    return data.conversations.map((record) => fromRecord(record, newId()));
  }
  const messages = Array.isArray(data) ? data : data?.messages;
  if (Array.isArray(messages)) return [fromMessages(messages)];
  throw new ArchiveError("neither an export nor a list of messages");
}

function fromMessages(messages) {
  const conversation = newConversation();
  const { tree } = conversation;
  let leaf = ROOT;
  const add = (turn) => {
    leaf = tree.add(leaf, turn);
  };
  for (const message of messages) {
    const content = textOf(message?.content);
    switch (message?.role) {
      case "system":
      case "developer":
        conversation.system += (conversation.system && "\n\n") + content;
        break;
      case "user":
        add({ role: "user", content });
        break;
      case "assistant": {
        const calls = (message.tool_calls ?? []).map((call, i) => ({
          id: String(call?.id ?? `call_${i}`),
          name: String(call?.function?.name ?? ""),
          arguments: typeof call?.function?.arguments === "string" ? call.function.arguments : JSON.stringify(call?.function?.arguments ?? {}),
        }));
        add({ role: "assistant", content, reasoning: textOf(message.reasoning_content ?? message.reasoning), calls, finish: "stop" });
        break;
      }
      case "tool": {
        const result = { id: String(message.tool_call_id ?? ""), content };
        if (leaf !== ROOT && tree.turn(leaf).role === "tool") tree.turn(leaf).results.push(result);
        else add({ role: "tool", results: [result] });
        break;
      }
      default:
        throw new ArchiveError("a message has no known role");
    }
  }
  return conversation;
}

function textOf(content) {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  return content.map((part) => (typeof part === "string" ? part : (part?.text ?? ""))).join("");
}
