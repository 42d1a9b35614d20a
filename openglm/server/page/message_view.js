// One turn on the screen: a message of the user, or an answer with its thoughts, tool calls, figures and versions.

import { isEmpty, now } from "./chat.js";
import { copyText, h, icon, iconButton, place } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { count, percent, seconds, t } from "./texts.js";
import { tokensView } from "./tokens_view.js";
import { toolCards } from "./tool_card.js";

const PREVIEW_CHARS = 160;

/** Common to both kinds: arrows between versions, and copying. */
class TurnView {
  constructor(chat, id, { onPrompt }) {
    this.chat = chat;
    this.id = id;
    this.onPrompt = onPrompt;
  }

  get turn() {
    return this.chat.tree.turn(this.id);
  }

  versions(id = this.id) {
    const { index, count: total } = this.chat.tree.place(id);
    if (total < 2) return null;
    const busy = Boolean(this.chat.run);
    return h(
      "span.versions",
      {},
      iconButton("left", t("olderVersion"), () => this.chat.showSibling(id, -1), { disabled: busy || index === 0 }),
      h("span", { "aria-label": t("version", { i: index + 1, n: total }) }, `${index + 1} / ${total}`),
      iconButton("right", t("newerVersion"), () => this.chat.showSibling(id, 1), { disabled: busy || index === total - 1 }),
    );
  }

  copyButton(text) {
    const button = iconButton("copy", t("copy"), async () => {
      if (!(await copyText(text()))) return;
      button.classList.add("done");
      button.title = t("copied");
      setTimeout(() => button.classList.remove("done"), 1500);
    });
    return button;
  }
}

export class UserView extends TurnView {
  constructor(chat, id, hooks) {
    super(chat, id, hooks);
    this.confirmRemove = hooks.confirmRemove;
    this.node = h("article.turn.user", { tabindex: "0", "aria-label": t("you"), "data-turn": id });
    if (chat.edits.has(id)) this.beginEdit();
    else this.update();
  }

  #editor = null;

  update() {
    if (this.#editor) {
      this.#editor.send.disabled = Boolean(this.chat.run);
      return;
    }
    const busy = Boolean(this.chat.run);
    const actions = h(
      "div.turn-foot",
      {},
      this.versions(),
      iconButton("edit", t("edit"), () => this.beginEdit(), { disabled: busy }),
      this.copyButton(() => this.turn.content),
      iconButton("trash", t("deleteTurn"), () => this.confirmRemove(this.id), { disabled: busy }),
    );
    place(this.node, [h("div.bubble", {}, this.turn.content), actions]);
  }

  beginEdit() {
    if (this.#editor) return;
    const field = h("textarea.edit", { "aria-label": t("edit") });
    field.value = this.chat.edits.get(this.id) ?? this.turn.content;
    field.addEventListener("input", () => this.chat.edits.set(this.id, field.value));
    const send = h("button.primary", { type: "button", disabled: Boolean(this.chat.run), onclick: () => this.#commit(field.value) }, t("editSend"));
    const cancel = h("button", { type: "button", onclick: () => this.#endEdit() }, t("cancel"));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        this.#endEdit();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#commit(field.value);
      }
    });
    this.#editor = { send };
    place(this.node, [h("div.editor", {}, field, h("div.editor-actions", {}, cancel, send))]);
    field.rows = Math.min(12, Math.max(2, field.value.split("\n").length));
    field.focus();
  }

  #commit(text) {
    if (!text.trim() || this.chat.run) return;
    this.#close();
    this.chat.edit(this.id, text);
  }

  #close() {
    this.#editor = null;
    this.chat.edits.delete(this.id);
  }

  #endEdit() {
    this.#close();
    this.update();
    this.node.focus();
  }
}

export class AnswerView extends TurnView {
  constructor(chat, id, hooks) {
    super(chat, id, hooks);
    this.onKey = hooks.onKey;
    this.model = hooks.model;
    this.node = h("article.turn.answer", { tabindex: "0", "aria-label": this.model(), "data-turn": id });
    this.#thoughts = new Thoughts(() => chat.stopThinking());
    this.update();
  }

  #content = new MarkdownView();
  #thoughts;
  #showsTokens = false;
  #tools = null; // { key, nodes }: cards are kept while nothing about them changed, because someone may be typing in them
  #errorNote = null;
  #wasRunning = false;

  update() {
    const { turn } = this;
    const run = this.chat.run?.id === this.id ? this.chat.run : null;
    const parts = [];
    if (turn.reasoning) {
      this.#thoughts.update(turn, run);
      parts.push(this.#thoughts.node);
    }
    if (run && isEmpty(turn)) parts.push(h("p.waiting", {}, h("span.pulse"), t("waiting")));
    if (this.#showsTokens) parts.push(tokensView(this.chat.tokensOf(turn)));
    else if (turn.content) {
      this.#content.update(turn.content, { fresh: this.#wasRunning && !run });
      parts.push(this.#content.node);
    }
    if (turn.calls.length) parts.push(...this.#toolNodes(turn, run));
    const note = this.#note(turn, run);
    if (note) parts.push(note);
    parts.push(this.#foot(turn, run));
    place(this.node, parts);
    this.node.classList.toggle("running", Boolean(run));
    this.#wasRunning = Boolean(run);
  }

  /** What changes with time alone, while the answer runs. */
  tick() {
    const run = this.chat.run;
    if (run?.id !== this.id) return;
    this.#thoughts.tick(this.turn, run);
    this.node.querySelector(".figures")?.replaceWith(figuresLine(run.reader.figures(now())));
  }

  toggleThoughts() {
    this.#thoughts.toggle();
  }

  #toolNodes(turn, run) {
    const answers = this.chat.tree.below(this.id);
    const below = answers === null ? null : this.chat.tree.turn(answers);
    const results = below?.role === "tool" ? below.results : null;
    const busy = Boolean(this.chat.run);
    const key = JSON.stringify([turn.calls, results, Boolean(run), busy, results && this.chat.tree.place(answers)]);
    if (this.#tools?.key !== key) {
      const nodes = toolCards(turn, {
        results,
        writing: Boolean(run),
        disabled: busy,
        onSend: (given) => this.chat.answerTools(this.id, given),
        onDraft: () => this.chat.saveSoon(),
      });
      if (results) {
        const again = h("button.quiet", { type: "button", disabled: busy, onclick: () => this.#answerAgain(results) }, t("toolAgain"));
        nodes.push(h("div.tool-actions", {}, this.versions(answers), again));
      }
      this.#tools = { key, nodes };
    }
    return this.#tools.nodes;
  }

  /** Other results for the same calls: the fields come back, filled with what was sent; sending makes a new branch. */
  #answerAgain(results) {
    const { turn } = this;
    turn.drafts = Object.fromEntries(results.map(({ id, content }) => [id, content]));
    const nodes = toolCards(turn, {
      results: null,
      writing: false,
      disabled: false,
      onSend: (given) => this.chat.answerTools(this.id, given),
      onDraft: () => this.chat.saveSoon(),
    });
    for (const old of this.#tools.nodes) old.remove();
    this.#tools = { ...this.#tools, nodes };
    this.update();
    this.node.querySelector("textarea")?.focus();
  }

  #note(turn, run) {
    if (run) return null;
    if (turn.error) {
      const retry = () => this.chat.retry(this.id);
      // Made once, because an alert that is made again is read out again.
      this.#errorNote ??= errorNote(turn.error, { onRetry: retry, onKey: () => this.onKey(retry) });
      return this.#errorNote;
    }
    if (turn.finish === "stopped" || turn.finish === "abort") return h("p.note", {}, t("stopped"));
    if (turn.finish === "length") return h("p.note", {}, t("cutLength"));
    return null;
  }

  #foot(turn, run) {
    if (run) return h("div.turn-foot", {}, figuresLine(run.reader.figures(now())));
    const busy = Boolean(this.chat.run);
    const toggle = iconButton(
      "tokens",
      this.#showsTokens ? t("showText") : t("showTokens"),
      () => {
        this.#showsTokens = !this.#showsTokens;
        this.update();
        this.node.querySelector(".show-tokens")?.focus();
      },
      { "aria-pressed": String(this.#showsTokens) },
    );
    toggle.classList.add("show-tokens");
    return h(
      "div.turn-foot",
      {},
      this.versions(),
      iconButton("again", t("again"), () => this.chat.regenerate(this.id), { disabled: busy }),
      turn.content ? this.copyButton(() => turn.content) : null,
      toggle,
      iconButton("prompt", t("showPrompt"), () => this.onPrompt(this.id)),
      turn.figures ? figuresLine(turn.figures) : null,
    );
  }
}

/** The fold around what the model thought, with a clock while it thinks. */
class Thoughts {
  constructor(onStop) {
    this.#label = h("span.thoughts-label");
    this.#preview = h("span.thoughts-preview", { "aria-hidden": "true" });
    this.#toggle = h("button.thoughts-toggle", { type: "button", "aria-expanded": "false", onclick: () => this.toggle() }, icon("right"), this.#label, this.#preview);
    this.#stop = h("button.quiet.stop-thinking", { type: "button", title: t("stopThinkingHint"), onclick: () => this.#stopNow(onStop) }, t("stopThinking"));
    this.#body = h("div.thoughts-body", { hidden: true });
    this.node = h("section.thoughts", { "aria-label": t("thoughts") }, h("div.thoughts-head", {}, this.#toggle, this.#stop), this.#body);
    this.#body.append(this.#text.node);
  }

  #label;
  #preview;
  #toggle;
  #stop;
  #body;
  #text = new MarkdownView();
  #reasoning = "";

  update(turn, run) {
    this.#reasoning = turn.reasoning;
    const thinking = run?.reader.phase === "thinking";
    this.#stop.hidden = !thinking;
    this.node.classList.toggle("thinking", thinking);
    this.#preview.textContent = thinking ? turn.reasoning.slice(-PREVIEW_CHARS).replace(/\s+/g, " ") : "";
    if (!this.#body.hidden) this.#text.update(turn.reasoning);
    this.tick(turn, run);
  }

  tick(turn, run) {
    const figures = run ? run.reader.figures(now()) : turn.figures;
    const spent = figures?.thinkingS;
    if (run?.reader.phase === "thinking") this.#label.textContent = t("thinkingFor", { s: seconds(spent ?? 0) });
    else this.#label.textContent = spent === undefined || spent < 0.01 ? t("thoughts") : t("thought", { s: seconds(spent) });
  }

  toggle() {
    this.#body.hidden = !this.#body.hidden;
    this.#toggle.setAttribute("aria-expanded", String(!this.#body.hidden));
    if (!this.#body.hidden) this.#text.update(this.#reasoning);
  }

  async #stopNow(onStop) {
    this.#stop.disabled = true;
    await onStop();
    this.#stop.disabled = false;
  }
}

const ERRORS = {
  network: ["errorNetwork", "errorNetworkHint"],
  key: ["errorKey", null],
  busy: ["errorBusy", "errorBusyHint"],
  unavailable: ["errorUnavailable", "errorBusyHint"],
  too_long: ["errorTooLong", "newBranchHint"],
  refused: ["errorRefused", "errorRefusedHint"],
  server: ["errorServer", "errorServerHint"],
  cut: ["errorCut", "errorCutHint"],
};

function errorNote(error, { onRetry, onKey }) {
  const [title, hint] = ERRORS[error.kind] ?? ["errorServer", "errorServerHint"];
  const button = error.kind === "key" ? h("button.primary", { type: "button", onclick: onKey }, t("enterKey")) : retryButton(error, onRetry);
  return h(
    "div.error-note",
    { role: "alert" },
    h("p", {}, h("strong", {}, t(title)), hint ? ` ${t(hint)}` : ""),
    error.message ? h("p.error-detail", {}, error.message) : null,
    button,
  );
}

/** Counts down where the server said when to come back; it can be pressed before. */
function retryButton(error, onRetry) {
  const label = () => {
    const left = error.retryAt ? Math.ceil((error.retryAt - Date.now()) / 1000) : 0;
    return left > 0 ? t("tryAgainIn", { s: left }) : t("tryAgain");
  };
  const button = h("button", { type: "button", onclick: onRetry }, label());
  if (error.retryAt > Date.now()) {
    const clock = setInterval(() => {
      button.textContent = label();
      if (error.retryAt <= Date.now() || !button.isConnected) clearInterval(clock);
    }, 500);
  }
  return button;
}

function figuresLine(figures) {
  const parts = [];
  if (figures.tokensPerS) parts.push(`${figures.tokensPerS.toFixed(1)} ${t("figTokensPerS")}`);
  if (figures.firstTokenS !== undefined) parts.push(`${t("figFirst")} ${seconds(figures.firstTokenS)}`);
  if (figures.draftTokens) parts.push(`${percent(figures.acceptedTokens / figures.draftTokens)} ${t("figAccepted")}`);
  if (figures.promptTokens !== undefined) {
    const cached = figures.cachedTokens ? ` (${count(figures.cachedTokens)} ${t("figCached")})` : "";
    parts.push(`${count(figures.promptTokens)} ${t("figIn")}${cached}`);
  }
  if (figures.completionTokens) parts.push(`${count(figures.completionTokens)} ${t("figOut")}`);
  return h("span.figures", {}, ...parts.map((part) => h("span", {}, part)));
}
