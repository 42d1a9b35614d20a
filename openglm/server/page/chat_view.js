// The shown branch as a column of turns that follows a growing answer, unless the reader has scrolled away.

import { h, iconButton, place } from "./dom.js";
import { AnswerView, UserView } from "./message_view.js";
import { t } from "./texts.js";

const NEAR_END_PX = 90;
const TICK_MS = 200;

export class ChatView {
  constructor(chat, hooks) {
    this.chat = chat;
    this.hooks = hooks;
    this.list = h("div.turns");
    this.toEnd = iconButton("down", t("toBottom"), () => this.scrollToEnd(), { hidden: true });
    this.toEnd.classList.add("to-end");
    this.scroller = h("div.scroller", {}, this.list);
    this.node = h("section.chat", { "aria-label": t("chat") }, this.scroller, this.toEnd);
    this.scroller.addEventListener("scroll", () => this.#followIfAtEnd(), { passive: true });
    this.node.addEventListener("keydown", (event) => this.#onKey(event));
    const { signal } = hooks;
    chat.addEventListener("open", () => this.#reset(), { signal });
    chat.addEventListener("path", () => this.update(), { signal });
    chat.addEventListener("answer", ({ detail }) => this.#grow(detail.id), { signal });
    chat.addEventListener("run", () => this.update(), { signal });
    const clock = setInterval(() => this.#runningView()?.tick(), TICK_MS);
    signal.addEventListener("abort", () => clearInterval(clock));
    this.update();
  }

  #views = new Map();
  #follows = true;
  #pending = null;

  update() {
    const { tree } = this.chat;
    const shown = tree.path().filter((id) => tree.turn(id).role !== "tool");
    for (const id of this.#views.keys()) if (!shown.includes(id)) this.#views.delete(id);
    const nodes = shown.map((id) => {
      let view = this.#views.get(id);
      if (view) view.update();
      else this.#views.set(id, (view = new (tree.turn(id).role === "user" ? UserView : AnswerView)(this.chat, id, this.hooks)));
      return view.node;
    });
    place(this.list, nodes.length ? nodes : [this.hooks.welcome()]);
    this.#follow();
  }

  /** Starts to edit the last message of the user. */
  editLast() {
    const last = [...this.#views.values()].filter((view) => view instanceof UserView).at(-1);
    last?.beginEdit();
    return Boolean(last);
  }

  scrollToEnd() {
    this.#follows = true;
    this.#follow();
  }

  #reset() {
    this.#views.clear();
    this.#follows = true;
  }

  /** At most one update a frame, however fast text arrives. */
  #grow(id) {
    if (this.#pending) return;
    this.#pending = requestAnimationFrame(() => {
      this.#pending = null;
      this.#views.get(id)?.update();
      this.#follow();
    });
  }

  #runningView() {
    return this.#views.get(this.chat.run?.id);
  }

  #followIfAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.#follows = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    this.toEnd.hidden = this.#follows;
  }

  #follow() {
    if (this.#follows) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Arrows on a turn that has the focus itself: up and down to its neighbours, left and right to its versions. */
  #onKey(event) {
    const turn = event.target;
    if (!turn.matches?.("article.turn") || event.ctrlKey || event.metaKey || event.altKey) return;
    const { key } = event;
    if (key === "ArrowUp" || key === "ArrowDown") {
      const next = key === "ArrowUp" ? turn.previousElementSibling : turn.nextElementSibling;
      if (!next) return;
      event.preventDefault();
      next.focus();
    } else if (key === "ArrowLeft" || key === "ArrowRight") {
      event.preventDefault();
      const index = [...this.list.children].indexOf(turn);
      this.chat.showSibling(turn.dataset.turn, key === "ArrowLeft" ? -1 : 1);
      this.list.children[index]?.focus();
    }
  }
}
