// From turns and settings to the body of a chat-completions request.

import { DEMO_TOOLS } from "./demo_tools.js";

export const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "frequency_penalty", "presence_penalty", "repetition_penalty"];
const WHOLE = new Set(["top_k", "max_tokens", "seed"]);
const TOP_LOGPROBS = 5;

/** The arguments of a call as an object, or null where they are none (a call that was cut off). */
export function callArguments(call) {
  try {
    const value = JSON.parse(call.arguments || "{}");
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

/** Messages in OpenAI's form. Turns that failed before they said anything, and calls that were cut off, are left out. */
export function messagesOf(turns, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.role === "user") messages.push({ role: "user", content: turn.content });
    else if (turn.role === "tool") {
      for (const result of turn.results) messages.push({ role: "tool", tool_call_id: result.id, content: result.content });
    } else {
      const calls = turn.calls.filter((call) => call.name && callArguments(call) !== null);
      if (!turn.content && !calls.length && !turn.reasoning) continue;
      const message = { role: "assistant", content: turn.content };
      if (turn.reasoning) message.reasoning_content = turn.reasoning;
      if (calls.length) {
        message.tool_calls = calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text || "{}" } }));
      }
      messages.push(message);
    }
  }
  return messages;
}

/** The tools that are switched on: { tools, error }; `error` is a key of the texts where the user's own definitions are no such list. */
export function toolsOf(settings) {
  const tools = DEMO_TOOLS.filter((tool) => settings.demoTools.includes(tool.function.name));
  if (!settings.ownTools.trim()) return { tools, error: null };
  let own;
  try {
    own = JSON.parse(settings.ownTools);
  } catch {
    return { tools, error: "toolsNotJson" };
  }
  if (!Array.isArray(own)) own = [own];
  const read = [];
  for (const each of own) {
    const definition = each?.function ?? each;
    if (typeof definition !== "object" || definition === null || typeof definition.name !== "string" || !/^[^\s<>]{1,128}$/.test(definition.name)) {
      return { tools, error: "toolsNeedName" };
    }
    read.push({ type: "function", function: definition });
  }
  return { tools: [...tools, ...read], error: null };
}

/** The whole body. Empty settings are left out, so the server's own defaults hold. */
export function requestBody({ turns, system, settings, topLogprobs = TOP_LOGPROBS }) {
  const body = { messages: messagesOf(turns, system), stream: true, stream_options: { include_usage: true } };
  const { tools } = toolsOf(settings);
  if (tools.length) body.tools = tools;
  if (settings.thinking !== "default") body.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
  const budget = number(settings.thinkingBudget, true);
  if (budget !== null && settings.thinking !== "off") body.thinking_budget = budget;
  for (const name of SAMPLING) {
    const value = number(settings.sampling[name], WHOLE.has(name));
    if (value !== null) body[name] = value;
  }
  const stop = (settings.sampling.stop ?? "").split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  if (settings.logprobs) Object.assign(body, { logprobs: true, top_logprobs: Math.min(TOP_LOGPROBS, topLogprobs) });
  return body;
}

function number(text, whole) {
  if (text === undefined || text === null || String(text).trim() === "") return null;
  const value = Number(text);
  if (!Number.isFinite(value)) return null;
  return whole ? Math.trunc(value) : value;
}
