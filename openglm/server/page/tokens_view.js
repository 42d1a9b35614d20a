// An answer token by token, coloured by probability; the alternatives of a token show on hover and on focus.

import { h } from "./dom.js";
import { percent, t } from "./texts.js";

const LEVELS = [0.9, 0.7, 0.5, 0.3, 0.1];
const MAX_SHOWN = 6000;

/** 0 for a token that was all but certain, up to 5. */
export function level(logprob) {
  const p = Math.exp(logprob);
  const found = LEVELS.findIndex((bound) => p >= bound);
  return found === -1 ? LEVELS.length : found;
}

/** Text as it can be seen: line ends and tabs get a sign before they act. */
export function visible(text) {
  return text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t");
}

export function tokensView(tokens) {
  if (!tokens.length) return h("p.tokens-none", {}, t("noProbabilities"));
  const shown = tokens.slice(0, MAX_SHOWN);
  const flow = h("div.tokens", { role: "group", "aria-label": t("showTokens") });
  const card = h("div.token-card", { role: "tooltip", hidden: true });
  shown.forEach((entry, i) => flow.append(h(`span.token.level-${level(entry.logprob)}`, { tabindex: i ? "-1" : "0", "data-index": i }, visible(entry.token))));
  const show = (target) => {
    const entry = shown[target.dataset?.index];
    card.hidden = !entry;
    if (!entry) return;
    card.replaceChildren(...alternatives(entry));
    const box = flow.parentElement.getBoundingClientRect();
    const at = target.getBoundingClientRect();
    card.style.setProperty("left", `${Math.max(0, Math.min(at.left - box.left, box.width - card.offsetWidth))}px`);
    card.style.setProperty("top", `${at.bottom - box.top + 6}px`);
  };
  flow.addEventListener("mouseover", (event) => show(event.target));
  flow.addEventListener("focusin", (event) => show(event.target));
  flow.addEventListener("mouseleave", () => (card.hidden = true));
  flow.addEventListener("focusout", () => (card.hidden = true));
  flow.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = step && flow.children[Number(event.target.dataset.index) + step];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  const legend = h("div.tokens-legend", {}, t("tokensLegend"), ...[0, 1, 2, 3, 4, 5].map((each) => h(`span.swatch.level-${each}`)), t("tokensLegendEnd"));
  return h("div.tokens-frame", {}, flow, card, legend);
}

function alternatives(entry) {
  const listed = entry.top.some((each) => each.token === entry.token);
  const rows = entry.top.map((each) => row(each, each.token === entry.token));
  if (!listed) rows.push(row(entry, true));
  return rows;
}

function row({ token, logprob }, chosen) {
  const p = Math.exp(logprob);
  const bar = h("span.bar");
  bar.style.setProperty("width", `${(100 * p).toFixed(1)}%`);
  const label = token === "" ? "∅" : visible(token).replace(/\n/g, "").replaceAll(" ", "␣");
  return h(chosen ? "div.alternative.chosen" : "div.alternative", {}, h("code", {}, label), h("span.track", {}, bar), h("span.share", {}, percent(p)));
}
