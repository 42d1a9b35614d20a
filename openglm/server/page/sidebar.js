// The list of conversations, and their way into and out of files.

import { ArchiveError, exportText, importText } from "./archive.js";
import { confirmDialog, renameDialog, toast } from "./dialogs.js";
import { download, h, icon, iconButton, place } from "./dom.js";
import { t } from "./texts.js";

const MAX_FILE_BYTES = 32 << 20;

export class Sidebar {
  constructor(chat, { signal, onChosen }) {
    this.chat = chat;
    this.onChosen = onChosen;
    this.list = h("ul.conversations");
    const file = h("input", { type: "file", accept: ".json,application/json", hidden: true, onchange: () => this.#import(file) });
    const create = () => {
      chat.create();
      onChosen();
    };
    this.node = h(
      "nav#sidebar.sidebar",
      { "aria-label": t("conversations") },
      h("div.brand", {}, h("img", { src: new URL("icon.svg", import.meta.url).href, alt: "", width: "22", height: "22" }), h("span", {}, "openglm")),
      h("button.new-chat", { type: "button", onclick: create }, icon("plus"), t("newChat")),
      this.list,
      h(
        "div.sidebar-foot",
        {},
        h("button.quiet", { type: "button", onclick: () => file.click() }, icon("open"), t("importFile")),
        h("button.quiet", { type: "button", title: t("exportAll"), onclick: () => this.#export(chat.all(), "conversations") }, icon("save"), t("exportAll")),
        file,
      ),
    );
    chat.addEventListener("conversations", () => this.update(), { signal });
    chat.addEventListener("run", () => this.update(), { signal });
    chat.addEventListener("kept", ({ detail }) => this.#tellKept(detail), { signal });
    this.update();
  }

  update() {
    const entries = this.chat.store.list();
    const { running } = this.chat;
    const items = entries.map(({ id, title }) => {
      const current = id === this.chat.current.id;
      const name = title || t("untitled");
      const open = () => {
        if (this.chat.select(id)) this.onChosen();
      };
      return h(
        current ? "li.current" : "li",
        {},
        h("button.conversation", { type: "button", title: name, "aria-current": current ? "true" : null, onclick: open }, running.has(id) ? h("span.pulse") : null, name),
        h(
          "span.conversation-actions",
          {},
          iconButton("edit", `${t("rename")}: ${name}`, () => this.#rename(id, title)),
          iconButton("save", `${t("exportOne")}: ${name}`, () => this.#export(this.chat.all().filter((each) => each.id === id), "conversation")),
          iconButton("trash", `${t("remove")}: ${name}`, () => this.#remove(id)),
        ),
      );
    });
    place(this.list, items.length ? items : [h("li.none", {}, t("noConversations"))]);
  }

  async #rename(id, title) {
    const given = await renameDialog(title);
    if (given) this.chat.rename(id, given);
  }

  async #remove(id) {
    if (await confirmDialog(t("deleteConversation"), t("deleteWhy"))) this.chat.removeConversation(id);
  }

  #export(conversations, name) {
    download(`${name}-${new Date().toISOString().slice(0, 10)}.json`, exportText(conversations));
  }

  async #import(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    try {
      if (file.size > MAX_FILE_BYTES) throw new ArchiveError("larger than 32 MiB");
      const conversations = importText(await file.text());
      this.chat.adopt(conversations);
      toast(t("imported", { n: conversations.length }));
      this.onChosen();
    } catch (error) {
      if (!(error instanceof ArchiveError)) throw error;
      toast(t("importFailed", { why: error.message }));
    }
  }

  #tellKept({ saved, removed }) {
    for (const conversation of removed) {
      toast(t("madeRoom", { title: conversation.title || t("untitled") }), { label: t("keepFile"), run: () => this.#export([conversation], "conversation") });
    }
    if (!saved) toast(t("notKept"), { label: t("keepFile"), run: () => this.#export([this.chat.current], "conversation") });
  }
}
