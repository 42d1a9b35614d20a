// Maths in Markdown: $...$, $$...$$, \(...\) and \[...\]. KaTeX comes when the first formula does.

import { h } from "./dom.js";

const MAX_CHARS = 5000;

/** A markdown-it plugin: tokens of type "maths" with `content` (TeX) and `meta.display`. */
export function mathsPlugin(markdown) {
  markdown.inline.ruler.before("escape", "maths", inlineRule);
  markdown.block.ruler.before("fence", "maths_block", blockRule, { alt: ["paragraph", "reference", "blockquote", "list"] });
}

const PAIRS = [
  ["$$", "$$", true],
  ["\\[", "\\]", true],
  ["\\(", "\\)", false],
  ["$", "$", false],
];

function inlineRule(state, silent) {
  const { src, pos, posMax } = state;
  const pair = PAIRS.find(([open]) => src.startsWith(open, pos));
  if (!pair) return false;
  const [open, close, display] = pair;
  const start = pos + open.length;
  const end = src.indexOf(close, start);
  if (end <= start || end + close.length > posMax || end - start > MAX_CHARS) return false;
  const tex = src.slice(start, end);
  // "$5 and $6" is money: a dollar closes a formula only right behind something, and never right before a digit.
  if (open === "$" && (/^\s|\s$|\n\n/.test(tex) || /\d/.test(src[end + 1] ?? ""))) return false;
  if (!silent) push(state, tex, display);
  state.pos = end + close.length;
  return true;
}

function blockRule(state, startLine, endLine, silent) {
  const begin = state.bMarks[startLine] + state.tShift[startLine];
  const first = state.src.slice(begin, state.eMarks[startLine]);
  const pair = PAIRS.slice(0, 2).find(([open]) => first.startsWith(open));
  if (!pair) return false;
  const [open, close] = pair;
  const lines = [first.slice(open.length)];
  let line = startLine;
  while (!lines.at(-1).trimEnd().endsWith(close)) {
    line++;
    if (line >= endLine || state.sCount[line] < state.blkIndent) return false;
    lines.push(state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]));
  }
  const tex = lines.join("\n").trimEnd().slice(0, -close.length);
  if (!tex.trim() || tex.includes(close) || tex.length > MAX_CHARS) return false;
  if (silent) return true;
  const token = push(state, tex, true);
  token.block = true;
  token.map = [startLine, line + 1];
  state.line = line + 1;
  return true;
}

function push(state, tex, display) {
  const token = state.push("maths", "", 0);
  token.content = tex.trim();
  token.meta = { display };
  return token;
}

let loading = null;

function load() {
  loading ??= new Promise((resolve, reject) => {
    document.head.append(h("link", { rel: "stylesheet", href: new URL("vendor/katex.css", import.meta.url).href }));
    import("./vendor/katex.js").then(() => resolve(globalThis.katex), reject);
  });
  return loading;
}

/** The formula; its source until KaTeX is there, and where KaTeX cannot read it. */
export function mathsNode(tex, display) {
  const source = h("code.maths-source", {}, tex);
  const node = h(display ? "span.maths.maths-display" : "span.maths", { role: "math", "aria-label": tex }, source);
  load().then(
    (katex) => {
      try {
        // Renders node by node with style properties, which the page's content policy allows; HTML text it would not.
        katex.render(tex, node, { displayMode: display, output: "html", throwOnError: true, strict: "ignore", trust: false, maxSize: 20, maxExpand: 500 });
      } catch {
        node.replaceChildren(source);
      }
    },
    () => {},
  );
  return node;
}
