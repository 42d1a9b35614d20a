// The exact prompt: token by token with control tokens marked, or as text. Made by the server, from the body that a request would have.

import { ApiError, request } from "./api.js";
import { copyText, h } from "./dom.js";
import { requestBody } from "./request.js";
import { count, t } from "./texts.js";
import { visible } from "./tokens_view.js";

const DELAY_MS = 250;
const MAX_SEGMENT_CHARS = 100_000; // shown of one segment; "Copy text" has all of it

export class Inspector {
  constructor(chat, { signal, settings, draft }) {
    this.chat = chat;
    this.settings = settings;
    this.draft = draft;
    this.node = h("div.inspector");
    this.#head = h("p.inspector-about");
    this.#body = h("div.inspector-body");
    this.node.append(this.#head, this.#body);
    for (const type of ["open", "path", "run"]) chat.addEventListener(type, () => this.refresh(), { signal });
  }

  #head;
  #body;
  #target = null;
  #asText = false;
  #prompt = null;
  #timer = null;
  #request = null;
  #shown = false;

  /** Begins to follow the conversation; with `id` the prompt of that answer is shown, without it that of the next one. */
  show(id = null) {
    this.#target = id;
    this.#shown = true;
    this.refresh(0);
  }

  hide() {
    this.#shown = false;
    this.#request?.abort();
  }

  refresh(delay = DELAY_MS) {
    if (!this.#shown) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#load(), delay);
  }

  async #load() {
    const { tree, current } = this.chat;
    if (this.#target !== null && !tree.has(this.#target)) this.#target = null;
    const draft = this.draft().trim() ? { role: "user", content: this.draft() } : null;
    const target = this.#target ?? (draft ? null : lastAnswer(tree));
    const path = target === null ? tree.path() : tree.pathTo(tree.parent(target));
    const turns = path.map((id) => tree.turn(id));
    if (target === null && draft) turns.push(draft);
    this.#head.textContent = t(target === null ? "inspectNext" : "inspectTurn");
    const body = requestBody({ turns, system: current.system, settings: this.settings.values });
    if (!body.messages.length) {
      this.#body.replaceChildren(h("p.none", {}, t("inspectNothing")));
      return;
    }
    this.#request?.abort();
    const own = (this.#request = new AbortController());
    try {
      this.#prompt = await request("page/prompt", { body, signal: own.signal });
      this.#render();
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ApiError)) throw error;
      this.#body.replaceChildren(h("p.problem", { role: "alert" }, error.message || t("errorNetwork")));
    }
  }

  #render() {
    const prompt = this.#prompt;
    const pick = (asText) => {
      this.#asText = asText;
      this.#render();
      this.#body.querySelector("[aria-pressed=true]")?.focus();
    };
    const tab = (label, asText) => h("button", { type: "button", "aria-pressed": String(this.#asText === asText), onclick: () => pick(asText) }, label);
    const copy = (label, text) =>
      h("button.quiet", { type: "button", onclick: async ({ currentTarget: button }) => (await copyText(text())) && (button.textContent = t("copied")) }, label);
    const bar = h(
      "div.inspector-bar",
      {},
      h("div.tabs", {}, tab(t("inspectAsTokens"), false), tab(t("inspectAsText"), true)),
      copy(t("inspectCopy"), () => prompt.segments.map((each) => each.text).join("")),
      copy(t("inspectCopyIds"), () => JSON.stringify(prompt.tokens.ids)),
    );
    const about = h("p.inspector-count", {}, t("inspectTokens", { n: count(prompt.num_tokens), max: count(prompt.max_model_len) }), " · ", t(START[prompt.start]));
    const shown = this.#asText ? textOf(prompt.segments) : tokensOf(prompt.tokens);
    this.#body.replaceChildren(bar, about, shown, this.#asText ? legend("template", "text") : legend("control", "text"));
  }
}

/** The answer at the end of the shown branch: while nothing is typed, its prompt is the one that was made last. */
function lastAnswer(tree) {
  const { leaf } = tree;
  return tree.turn(leaf)?.role === "assistant" ? leaf : null;
}

const START = { undecided: "startUndecided", reasoning: "startReasoning", content: "startContent" };

function tokensOf({ ids, texts, control, first, omitted }) {
  const flow = h("div.prompt-tokens", { tabindex: "0", role: "group", "aria-label": t("inspector") });
  ids.forEach((id, i) => {
    if (omitted && i === first) flow.append(h("span.omitted", {}, t("inspectOmitted", { n: count(omitted) })));
    const kind = control[i] ? "control" : i % 2 ? "odd" : "even";
    flow.append(h(`span.prompt-token.${kind}`, { title: `${id}` }, visible(texts[i])));
  });
  return flow;
}

function textOf(segments) {
  return h("pre.prompt-text", { tabindex: "0" }, ...segments.map(({ text, control }) => h(control ? "span.template" : "span.text", {}, shortened(text))));
}

function shortened(text) {
  return text.length > MAX_SEGMENT_CHARS ? `${text.slice(0, MAX_SEGMENT_CHARS / 2)}\n…\n${text.slice(-MAX_SEGMENT_CHARS / 2)}` : text;
}

function legend(...kinds) {
  const names = { control: t("legendControl"), template: t("legendTemplate"), text: t("legendText") };
  return h("p.legend", {}, ...kinds.map((kind) => h("span", {}, h(`span.swatch.${kind}`), names[kind])));
}
