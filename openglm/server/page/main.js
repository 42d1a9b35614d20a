// Puts the page together: the chat and its panels, the view of figures, keys, language, theme, and what the server's state means for them.

import { key } from "./api.js";
import { Chat } from "./chat.js";
import { ChatView } from "./chat_view.js";
import { Composer } from "./composer.js";
import { confirmDialog, keyboardDialog, keyDialog, toast } from "./dialogs.js";
import { h, icon, iconButton } from "./dom.js";
import { Inspector } from "./inspector.js";
import { MetricsView } from "./metrics_view.js";
import { ServerWatch } from "./server_watch.js";
import { Settings } from "./settings.js";
import { settingsPanel } from "./settings_panel.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { setLanguage, t } from "./texts.js";

const NARROW = window.matchMedia("(max-width: 52rem)");

class Page {
  constructor() {
    this.settings = new Settings(localStorage);
    this.store = new Store(localStorage);
    this.chat = new Chat({ store: this.store, settings: this.settings });
    this.watch = new ServerWatch();
    this.live = h("div.off-screen", { "aria-live": "polite" });
    this.chat.addEventListener("run", ({ detail }) => detail?.ended && this.#announce(detail.ended));
    this.chat.addEventListener("answer", () => this.#announcePhase());
    this.chat.addEventListener("full", () => toast(t("full")));
    this.watch.addEventListener("about", () => this.#learn());
    this.watch.addEventListener("figures", () => this.watch.live && this.metrics.update());
    this.watch.addEventListener("state", ({ detail }) => this.#onState(detail));
    this.build();
    document.addEventListener("keydown", (event) => this.#onKey(event));
    window.addEventListener("hashchange", () => this.#route());
    window.addEventListener("pagehide", () => this.chat.saveAll());
    window.addEventListener("storage", (event) => event.key?.startsWith("openglm.conversation") && this.chat.reload());
    NARROW.addEventListener("change", () => this.#showSidebar(!NARROW.matches && this.settings.values.sidebar));
    this.watch.start();
  }

  #panel = null; // "settings", "inspector" or null
  #asking = false;
  #built = null;
  #saidPhase = "";

  /** Makes every node, in the language of the settings. Called again when that changes; what is typed is in the store. */
  build() {
    const language = setLanguage(this.settings.values.language);
    document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
    this.#built?.abort(); // the nodes of before listen no longer
    this.#built = new AbortController();
    const { signal } = this.#built;
    const about = () => this.watch.about;
    const composer = (this.composer = new Composer(this.chat, {
      signal,
      about,
      onEditLast: () => this.view.editLast(),
      onInput: () => this.inspector.refresh(),
    }));
    this.inspector = new Inspector(this.chat, { signal, settings: this.settings, draft: () => composer.text });
    this.view = new ChatView(this.chat, {
      signal,
      welcome: () => this.#welcome(),
      model: () => about().model ?? "GLM",
      onPrompt: (id) => this.openPanel("inspector", id),
      onKey: (then) => this.askKey(false, then),
      confirmRemove: async (id) => (await confirmDialog(t("deleteTurnQuestion"), t("deleteTurnWhy"))) && this.chat.removeTurn(id),
    });
    this.sidebar = new Sidebar(this.chat, { signal, onChosen: () => this.#onChosen() });
    this.metrics = new MetricsView({ about, series: this.watch.series });
    this.panel = h("aside.panel", { hidden: true });
    this.banner = h("div.banner", { role: "status", hidden: true });
    this.scrim = h("div.scrim", { hidden: true, onclick: () => this.#closeOverlays() });
    this.menuButton = iconButton("menu", t("menu"), () => this.#toggleSidebar(), { "aria-controls": "sidebar", "aria-expanded": "true" });
    const button = (name, text, run, extra) => iconButton(name, t(text), run, extra);
    this.settingsButton = button("sliders", "settings", () => this.openPanel(this.#panel === "settings" ? null : "settings"), { "aria-expanded": "false" });
    this.inspectorButton = button("prompt", "inspector", () => this.openPanel(this.#panel === "inspector" ? null : "inspector"), { "aria-expanded": "false" });
    this.metricsButton = button("chart", "metrics", () => (location.hash = location.hash === "#metrics" ? "" : "metrics"));
    this.themeButton = button("moon", "theme", () => this.setTheme(this.#isDark() ? "light" : "dark"));
    this.modelName = h("span.model-name");
    const top = h(
      "header.top",
      {},
      this.menuButton,
      this.modelName,
      h("span.spacer"),
      h("button.quiet.language", { type: "button", onclick: () => this.setLanguage(language === "zh" ? "en" : "zh") }, t("switchLanguage")),
      button("keyboard", "keyboardTitle", () => keyboardDialog(), { class: "icon-button keyboard-button" }),
      this.themeButton,
      this.metricsButton,
      this.inspectorButton,
      this.settingsButton,
    );
    this.chatArea = h("div.chat-area", {}, this.view.node, composer.node);
    const main = h("main", {}, top, this.banner, this.chatArea, this.metrics.node);
    const skip = h("a.skip", { href: "#message", onclick: (event) => (event.preventDefault(), composer.focus()) }, t("skip"));
    document.body.replaceChildren(skip, this.sidebar.node, main, this.panel, this.scrim, this.live);
    this.#showSidebar(!NARROW.matches && this.settings.values.sidebar);
    this.#applyTheme();
    this.#learn();
    this.#showState();
    this.#route();
    if (!NARROW.matches) composer.focus();
  }

  setTheme(theme) {
    this.settings.change({ theme });
    this.#applyTheme();
    if (this.#panel === "settings" && !this.panel.contains(document.activeElement)) this.openPanel("settings");
  }

  setLanguage(language) {
    this.settings.change({ language });
    this.#rebuild();
  }

  openPanel(name, target = null) {
    const opener = this.#panel === "settings" ? this.settingsButton : this.inspectorButton;
    if (name === null && this.panel.contains(document.activeElement)) opener.focus();
    this.#panel = name;
    this.inspector.hide();
    this.panel.hidden = name === null;
    this.scrim.hidden = !(NARROW.matches && name !== null);
    this.settingsButton.setAttribute("aria-expanded", String(name === "settings"));
    this.inspectorButton.setAttribute("aria-expanded", String(name === "inspector"));
    if (name === null) return;
    const title = t(name === "settings" ? "settings" : "inspector");
    const close = iconButton("close", t("close"), () => this.openPanel(null));
    this.panel.setAttribute("aria-label", title);
    this.panel.replaceChildren(h("header.panel-head", {}, h("h2", {}, title), close), name === "settings" ? this.#settings() : this.inspector.node);
    if (name === "inspector") this.inspector.show(target);
    close.focus();
  }

  /** Asks for the API key, once at a time; `then` runs when there is a new one. */
  async askKey(wrong, then = null) {
    if (this.#asking) return;
    this.#asking = true;
    const given = await keyDialog(wrong);
    this.#asking = false;
    if (!given) {
      this.#showState();
      return;
    }
    key.set(given);
    this.watch.state = "unknown";
    await this.watch.look();
    if (this.watch.state !== "key") then?.();
  }

  #settings() {
    return settingsPanel({
      chat: this.chat,
      settings: this.settings,
      about: this.watch.about,
      onTheme: (theme) => this.setTheme(theme),
      onLanguage: (language) => this.setLanguage(language),
      onChange: () => this.inspector.refresh(),
    });
  }

  #rebuild() {
    const panel = this.#panel;
    this.build();
    this.openPanel(panel);
  }

  #welcome() {
    return h("div.welcome", {}, h("h1", {}, t("welcome")), h("p", {}, t("welcomeWhy")));
  }

  #learn() {
    const { about } = this.watch;
    this.modelName.textContent = about.model ?? "";
    document.title = about.model ? `${about.model} · openglm` : "openglm";
    this.chat.topLogprobs = about.limits?.top_logprobs;
    this.composer.update();
    if (this.#panel === "settings" && !this.panel.contains(document.activeElement)) this.openPanel("settings");
  }

  #onState({ state, before }) {
    this.#showState();
    if (state === "key") this.askKey(Boolean(key.get()));
    if (state === "ready" && !["unknown", "key", "starting"].includes(before)) toast(t("back"));
  }

  #showState() {
    const { state } = this.watch;
    const text = { offline: "offline", restarting: "restarting", starting: "loading", draining: "draining", dead: "dead", key: "errorKey" }[state];
    this.banner.hidden = !text;
    if (!text) return;
    const action = state === "key" ? h("button", { type: "button", onclick: () => this.askKey(false) }, t("enterKey")) : null;
    this.banner.replaceChildren(...[h("span", {}, t(text)), action].filter(Boolean));
  }

  #route() {
    const metrics = location.hash === "#metrics";
    this.metrics.node.hidden = !metrics;
    this.chatArea.hidden = metrics;
    this.watch.live = metrics;
    this.metricsButton.setAttribute("aria-pressed", String(metrics));
    this.metricsButton.title = t(metrics ? "chat" : "metrics");
    if (!metrics) return;
    this.openPanel(null);
    this.metrics.update();
    this.watch.look();
  }

  #onChosen() {
    if (location.hash === "#metrics") location.hash = "";
    if (NARROW.matches) this.#showSidebar(false);
    if (this.#panel === "settings") this.openPanel("settings");
    this.composer.focus();
  }

  #toggleSidebar() {
    const show = this.sidebar.node.hidden;
    if (!NARROW.matches) this.settings.change({ sidebar: show });
    this.#showSidebar(show);
  }

  #showSidebar(show) {
    this.sidebar.node.hidden = !show;
    this.menuButton.setAttribute("aria-expanded", String(show));
    this.scrim.hidden = !(NARROW.matches && (show || this.#panel !== null));
  }

  #closeOverlays() {
    this.openPanel(null);
    if (NARROW.matches) this.#showSidebar(false);
  }

  #isDark() {
    const { theme } = this.settings.values;
    return theme === "dark" || (theme === "system" && window.matchMedia("(prefers-color-scheme: dark)").matches);
  }

  #applyTheme() {
    const { theme } = this.settings.values;
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    this.themeButton?.replaceChildren(icon(this.#isDark() ? "sun" : "moon"));
  }

  #announce(turn) {
    this.#saidPhase = "";
    this.live.textContent = turn.error ? "" : t(turn.finish === "tool_calls" ? "answerTools" : turn.finish === "stopped" ? "stopped" : "answerDone");
    if (["network", "cut", "unavailable", "server", "key"].includes(turn.error?.kind)) this.watch.look();
  }

  #announcePhase() {
    const phase = this.chat.run?.reader.phase;
    if (phase !== "thinking" || this.#saidPhase === phase) return;
    this.#saidPhase = phase;
    this.live.textContent = t("answerThinking");
  }

  #onKey(event) {
    if (event.isComposing || document.querySelector("dialog[open]")) return;
    const typing = event.target.matches?.("input, textarea, select");
    if (event.key === "Escape") {
      if (this.chat.run) this.chat.stop();
      else if (this.#panel !== null || NARROW.matches) this.#closeOverlays();
    } else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      this.composer.focus();
    } else if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.chat.create();
      this.#onChosen();
    }
  }
}

new Page();
