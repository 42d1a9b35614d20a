// Where messages are written. What is typed is kept with its conversation until it has been sent.

import { h, iconButton } from "./dom.js";
import { count, t } from "./texts.js";

const MAX_ROWS_PX = 260;

export class Composer {
  constructor(chat, { signal, about, onEditLast, onInput }) {
    this.chat = chat;
    this.about = about;
    this.onEditLast = onEditLast;
    this.onInput = onInput;
    this.field = h("textarea#message", { rows: "1", "aria-label": t("message"), "aria-describedby": "composer-hint", enterkeyhint: "send" });
    this.sendButton = iconButton("send", t("send"), () => this.submit());
    this.sendButton.classList.add("send");
    this.stopButton = iconButton("stop", t("stop"), () => this.chat.stop(), { hidden: true });
    this.stopButton.classList.add("send", "stop");
    this.context = h("span.context", { hidden: true });
    const form = h("form.composer", { onsubmit: (event) => event.preventDefault() }, this.field, this.sendButton, this.stopButton);
    this.node = h("footer.composer-area", {}, form, h("div.composer-foot", {}, h("span#composer-hint", {}, t("hint")), this.context));
    this.field.addEventListener("input", () => this.#changed());
    this.field.addEventListener("keydown", (event) => this.#onKey(event));
    chat.addEventListener("open", () => this.#restore(), { signal });
    chat.addEventListener("run", () => this.update(), { signal });
    chat.addEventListener("path", () => this.update(), { signal });
    this.#restore();
    this.update();
  }

  get text() {
    return this.field.value;
  }

  focus() {
    this.field.focus();
  }

  submit() {
    const text = this.field.value;
    if (!text.trim() || !this.chat.send(text)) return;
    this.field.value = "";
    this.#changed();
    this.focus();
  }

  update() {
    const running = Boolean(this.chat.run);
    const stopFocused = document.activeElement === this.stopButton;
    this.sendButton.hidden = running;
    this.stopButton.hidden = !running;
    this.sendButton.disabled = !this.field.value.trim();
    this.field.placeholder = t("messagePlaceholder", { model: this.about().model ?? "GLM" });
    if (stopFocused && !running) this.focus();
    this.#showContext();
  }

  #showContext() {
    const { tree } = this.chat;
    const max = this.about().max_model_len;
    const figures = tree.path().map((id) => tree.turn(id).figures).filter((each) => each?.promptTokens !== undefined).at(-1);
    this.context.hidden = !figures || !max;
    if (this.context.hidden) return;
    const used = figures.promptTokens + figures.completionTokens;
    const bar = h("span.bar");
    bar.style.setProperty("width", `${Math.min(100, (100 * used) / max)}%`);
    this.context.title = t("contextUsed", { used: count(used), max: count(max) });
    this.context.classList.toggle("nearly-full", used > 0.85 * max);
    this.context.replaceChildren(h("span.meter", { role: "meter", "aria-label": t("context"), "aria-valuemin": 0, "aria-valuemax": max, "aria-valuenow": used }, bar), ` ${count(used)} / ${count(max)}`);
  }

  #restore() {
    this.field.value = this.chat.store.draft(this.chat.current.id);
    this.#fit();
    this.update();
  }

  #changed() {
    this.chat.store.setDraft(this.chat.current.id, this.field.value);
    this.sendButton.disabled = !this.field.value.trim();
    this.#fit();
    this.onInput();
  }

  #fit() {
    this.field.style.setProperty("height", "auto");
    this.field.style.setProperty("height", `${Math.min(MAX_ROWS_PX, this.field.scrollHeight)}px`);
  }

  #onKey(event) {
    if (event.isComposing) return; // Enter belongs to the input method
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.submit();
    } else if (event.key === "ArrowUp" && !this.field.value && this.onEditLast()) {
      event.preventDefault();
    }
  }
}
