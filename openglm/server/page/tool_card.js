// One call of a tool: what the model wants, and the answer to it - by hand, or from a demo tool.

import { codeBlock } from "./markdown.js";
import { isDemoTool, runDemoTool } from "./demo_tools.js";
import { h, icon } from "./dom.js";
import { callArguments } from "./request.js";
import { t } from "./texts.js";

/**
 * The cards of an assistant turn. `results` are the answers that were given ([{ id, content }] or null), `writing` says that calls still
 * arrive. `onSend(results)` gets all results at once; `onDraft` is told of every key, with the text so far in `turn.drafts`.
 */
export function toolCards(turn, { results, writing, disabled, onSend, onDraft }) {
  const whole = turn.calls.filter(Boolean);
  const open = !results && !writing;
  const drafts = (turn.drafts ??= {});
  const fields = new Map();
  const send = h("button.primary", { type: "button", disabled, onclick: () => submit() }, whole.length > 1 ? t("toolSendAll", { n: whole.length }) : t("toolSend"));
  const submit = () => onSend(whole.map((call) => ({ id: call.id, content: fields.get(call)?.value ?? "" })));
  const cards = whole.map((call, i) => {
    const args = callArguments(call);
    const head = h("div.tool-head", {}, icon("tool"), h("span.tool-name", {}, call.name), h("span.tool-state", {}, state(args, { results, writing })));
    const parts = [head, argumentsOf(call, args, writing)];
    if (results) {
      const result = results.find((each) => each.id === call.id) ?? results[i];
      parts.push(h("div.tool-result", {}, h("span.tool-label", {}, t("toolResult")), codeBlock(pretty(result?.content ?? ""), "json")));
    } else if (open && args !== null) {
      const field = h("textarea.tool-answer", { rows: "2", "aria-label": `${t("toolResult")}: ${call.name}`, placeholder: t("toolResultHint"), spellcheck: "false" });
      field.value = drafts[call.id] ?? "";
      field.addEventListener("input", () => {
        drafts[call.id] = field.value;
        onDraft();
      });
      field.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        if (!disabled) submit();
      });
      fields.set(call, field);
      const run = isDemoTool(call.name)
        ? h(
            "button",
            {
              type: "button",
              onclick: () => {
                drafts[call.id] = field.value = runDemoTool(call.name, args);
                onDraft();
                send.focus();
              },
            },
            icon("play"),
            t("toolRun"),
          )
        : null;
      parts.push(field, h("div.tool-actions", {}, run, whole.length === 1 ? send : null));
    }
    return h("section.tool-card", { "aria-label": `${t("toolCall")}: ${call.name}` }, ...parts);
  });
  if (open && whole.length > 1 && fields.size) cards.push(h("div.tool-actions", {}, send));
  return cards;
}

function state(args, { results, writing }) {
  if (results) return t("toolAnswered");
  if (writing) return t("toolWriting");
  return args === null ? t("toolCut") : t("toolWaiting");
}

function argumentsOf(call, args, writing) {
  if (args === null) return h("pre.tool-raw", {}, call.arguments);
  const entries = Object.entries(args);
  if (!entries.length) return h("p.tool-none", {}, writing ? "" : t("noArguments"));
  const rows = entries.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, typeof value === "string" ? value : JSON.stringify(value))]);
  return h("dl.tool-arguments", {}, ...rows);
}

function pretty(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && text.length > 60 ? JSON.stringify(value, null, 2) : text;
  } catch {
    return text;
  }
}
