// Colours for code: Prism cuts the text, nodes are made here.

import Prism from "./vendor/prism.js";
import { h } from "./dom.js";

const MAX_CHARS = 60_000;
const ALIASES = { py: "python", js: "javascript", ts: "typescript", sh: "bash", shell: "bash", zsh: "bash", console: "bash", yml: "yaml", rs: "rust", "c++": "cpp", cc: "cpp", h: "c", "c#": "csharp", cs: "csharp", html: "markup", xml: "markup", rb: "ruby", kt: "kotlin", dockerfile: "docker", golang: "go", patch: "diff" };

/** Nodes of `code`; plain text where the language is unknown or the code is very long. */
export function highlighted(code, language) {
  const name = language.toLowerCase();
  const grammar = Object.hasOwn(Prism.languages, ALIASES[name] ?? name) ? Prism.languages[ALIASES[name] ?? name] : null;
  if (typeof grammar !== "object" || grammar === null || code.length > MAX_CHARS) return [document.createTextNode(code)];
  return nodes(Prism.tokenize(code, grammar));
}

function nodes(content) {
  return [content].flat().map((each) => {
    if (typeof each === "string") return document.createTextNode(each);
    return h(`span.code-${each.type.replace(/[^\w-]/g, "-")}`, {}, ...nodes(each.content));
  });
}
