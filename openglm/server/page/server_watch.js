// Keeps an eye on the server: what it is, its figures, and whether it can be reached. Looks more often while something is wrong.
//
// Events: "about" (facts arrived), "figures" (a reading arrived), "state" (detail: "ready", "offline", "key", or the engine's state).

import { ApiError, request } from "./api.js";
import { Series } from "./series.js";

const CALM_MS = 15_000;
const BUSY_MS = 1000;
const TROUBLE_MS = 2000;
const PATIENCE_MS = 8000; // a server that is there answers these at once, and within 2 s when its engine is busy

export class ServerWatch extends EventTarget {
  about = {};
  series = new Series();
  state = "unknown";
  /** Whether someone looks at the plots. */
  live = false;

  #timer = null;
  #looking = false;

  start() {
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
    window.addEventListener("online", () => this.look());
    return this.look();
  }

  /** Looks now; later looks follow by themselves. */
  async look() {
    if (this.#looking) return;
    this.#looking = true;
    clearTimeout(this.#timer);
    try {
      await this.#look();
    } finally {
      this.#looking = false;
      const trouble = this.state !== "ready";
      const pause = trouble ? TROUBLE_MS : this.live ? BUSY_MS : CALM_MS;
      if (this.state !== "key") this.#timer = setTimeout(() => (document.hidden ? null : this.look()), pause);
    }
  }

  async #look() {
    try {
      const reading = await request("page/figures", { signal: AbortSignal.timeout(PATIENCE_MS) });
      this.series.add(reading);
      const fresh = this.about.engine ? reading.state === "ready" && this.state !== "ready" : true;
      if (fresh) {
        this.about = await request("page/about", { signal: AbortSignal.timeout(PATIENCE_MS) });
        this.dispatchEvent(new Event("about"));
      }
      this.dispatchEvent(new Event("figures"));
      this.#enter(reading.state);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.#enter(error.kind === "key" ? "key" : "offline");
    }
  }

  #enter(state) {
    if (state === this.state) return;
    const before = this.state;
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, before } }));
  }
}
