// Markdown as nodes, block by block, so that while an answer grows only its last block is made again.
//
// markdown-it reads; the nodes are made from its tokens here, from a closed set of tags. HTML in the text stays text. Images
// become links: the page loads nothing from elsewhere.

import MarkdownIt from "./vendor/markdown-it.js";
import { copyText, h, icon } from "./dom.js";
import { highlighted } from "./highlight.js";
import { mathsNode, mathsPlugin } from "./maths.js";
import { t } from "./texts.js";

const TAGS = new Set("p h1 h2 h3 h4 h5 h6 blockquote ul ol li table thead tbody tr th td em strong s a".split(" "));
const ALIGNED = { "text-align:left": "left", "text-align:center": "center", "text-align:right": "right" };

const reader = new MarkdownIt({ html: false, linkify: true, breaks: false }).use(mathsPlugin);

/** Shows Markdown in one node; `update` may be called as often as text arrives. */
export class MarkdownView {
  constructor() {
    this.node = h("div.markdown");
  }

  #blocks = [];
  #text = null;

  update(text, { fresh = false } = {}) {
    if (text === this.#text && !fresh) return;
    this.#text = text;
    const blocks = blocksOf(text);
    const same = fresh ? 0 : blocks.findIndex((block, i) => block.key !== this.#blocks[i]?.key);
    const kept = same === -1 ? Math.min(blocks.length, this.#blocks.length) : same;
    for (const block of this.#blocks.splice(kept)) block.node.remove();
    for (const block of blocks.slice(kept)) {
      block.node = nodeOf(block.tokens);
      this.node.append(block.node);
      this.#blocks.push(block);
    }
  }
}

/** Top-level blocks with their source as key. */
function blocksOf(text) {
  const lines = text.split("\n");
  const blocks = [];
  let tokens = [];
  for (const token of reader.parse(text, {})) {
    tokens.push(token);
    if (token.level !== 0 || token.nesting > 0) continue;
    const [begin, end] = tokens[0].map ?? [0, lines.length];
    blocks.push({ key: `${tokens[0].type}\n${lines.slice(begin, end).join("\n")}`, tokens, node: null });
    tokens = [];
  }
  return blocks;
}

function nodeOf(tokens) {
  const root = document.createDocumentFragment();
  build(root, tokens);
  return root.childNodes.length === 1 ? root.firstChild : h("div", {}, ...root.childNodes);
}

function build(root, tokens) {
  const open = [root];
  for (const token of tokens) {
    const parent = open.at(-1);
    if (token.nesting > 0) {
      const child = token.hidden ? document.createDocumentFragment() : element(token);
      if (!token.hidden) parent.append(child);
      open.push(token.hidden ? parent : child);
    } else if (token.nesting < 0) {
      const closed = open.pop();
      if (closed.localName === "table") frame(closed);
    } else if (token.type === "inline") {
      build(parent, token.children);
    } else {
      parent.append(leaf(token));
    }
  }
}

/** A wide table scrolls by itself. */
function frame(table) {
  const box = h("div.table-frame");
  table.replaceWith(box);
  box.append(table);
}

function element(token) {
  const node = h(TAGS.has(token.tag) ? token.tag : "span");
  for (const [name, value] of token.attrs ?? []) {
    if (name === "href") link(node, value);
    else if (name === "title") node.title = value;
    else if (name === "start") node.setAttribute("start", value);
    else if (name === "style" && Object.hasOwn(ALIGNED, value)) node.className = ALIGNED[value];
  }
  return node;
}

function link(node, address) {
  if (!/^(https?:|mailto:|#)/i.test(address)) return; // markdown-it lets more schemes pass
  node.setAttribute("href", address);
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
}

function leaf(token) {
  switch (token.type) {
    case "text":
      return document.createTextNode(token.content);
    case "softbreak":
      return document.createTextNode("\n");
    case "hardbreak":
      return h("br");
    case "code_inline":
      return h("code", {}, token.content);
    case "code_block":
    case "fence":
      return codeBlock(token.content.replace(/\n$/, ""), token.info.trim().split(/\s+/)[0]);
    case "hr":
      return h("hr");
    case "maths":
      return mathsNode(token.content, token.meta.display);
    case "image": {
      const node = h("a", {}, token.content || token.attrGet("src"));
      link(node, token.attrGet("src") ?? "");
      return node;
    }
    default:
      return document.createTextNode(token.content);
  }
}

export function codeBlock(code, language) {
  const label = h("span", {}, t("copy"));
  const copy = h(
    "button.code-copy",
    {
      type: "button",
      "aria-label": t("copyCode"),
      onclick: async () => {
        if (!(await copyText(code))) return;
        label.textContent = t("copied");
        setTimeout(() => (label.textContent = t("copy")), 1500);
      },
    },
    icon("copy"),
    label,
  );
  const head = h("div.code-head", {}, h("span.code-language", {}, language), copy);
  return h("div.code-block", {}, head, h("pre", { tabindex: "0" }, h("code", {}, ...highlighted(code, language))));
}
