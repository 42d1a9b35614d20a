// Questions that must be answered before anything goes on. The browser's own dialog element holds the focus and gives it back.

import { h } from "./dom.js";
import { t } from "./texts.js";

/** Shows a dialog; resolves to what `submit` was given, or null when it was left. */
function ask({ title, body, action, danger = false, value = () => true }) {
  return new Promise((resolve) => {
    let result = null;
    const go = h(`button.${danger ? "danger" : "primary"}`, { type: "submit" }, action);
    const form = h(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          result = value();
          dialog.close();
        },
      },
      h("h2", {}, title),
      ...body,
      h("div.dialog-actions", {}, h("button", { type: "button", onclick: () => dialog.close() }, t("cancel")), go),
    );
    const dialog = h("dialog.dialog", { "aria-label": title }, form);
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(result);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Whether the user agrees. */
export async function confirmDialog(title, why) {
  return (await ask({ title, body: [h("p", {}, why)], action: t("remove"), danger: true })) === true;
}

export function renameDialog(present) {
  const field = h("input", { type: "text", maxlength: "200", "aria-label": t("renameTitle"), autofocus: true });
  field.value = present;
  return ask({ title: t("renameTitle"), body: [field], action: t("rename"), value: () => field.value });
}

export function keyDialog(wrong) {
  const field = h("input", { type: "password", autocomplete: "off", "aria-label": t("keyTitle"), autofocus: true, required: true });
  const body = [h("p", {}, t("keyWhy")), wrong ? h("p.problem", { role: "alert" }, t("keyWrong")) : null, field].filter(Boolean);
  return ask({ title: t("keyTitle"), body, action: t("keyUse"), value: () => field.value.trim() });
}

export function keyboardDialog() {
  const rows = [
    ["Enter", "keyEnter"],
    ["Shift Enter", "keyShiftEnter"],
    ["Esc", "keyEsc"],
    ["↑", "keyUp"],
    ["↑ ↓", "keyUpDown"],
    ["← →", "keyLeftRight"],
    ["/", "keySlash"],
    ["Ctrl Shift O", "keyNew"],
  ].flatMap(([keys, text]) => [h("dt", {}, ...keys.split(" ").map((each) => h("kbd", {}, each))), h("dd", {}, t(text))]);
  const close = h("button.primary", { type: "button", autofocus: true, onclick: () => dialog.close() }, t("close"));
  const dialog = h("dialog.dialog", { "aria-label": t("keyboardTitle") }, h("h2", {}, t("keyboardTitle")), h("dl.keys", {}, ...rows), h("div.dialog-actions", {}, close));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** A short note at the edge, with at most one thing to do about it. */
export function toast(text, action = null) {
  const node = h("div.toast", { role: "status" }, h("span", {}, text));
  if (action) node.append(h("button.quiet", { type: "button", onclick: () => (action.run(), node.remove()) }, action.label));
  let corner = document.querySelector(".toasts");
  if (!corner) document.body.append((corner = h("div.toasts")));
  corner.append(node);
  setTimeout(() => node.remove(), action ? 15_000 : 4000);
}
