// The panel of settings: thinking, system prompt, sampling, tools, display. Every change holds at once.

import { key } from "./api.js";
import { h } from "./dom.js";
import { SAMPLING, toolsOf } from "./request.js";
import { t } from "./texts.js";

const STEPS = { temperature: "0.1", top_p: "0.05", min_p: "0.01", frequency_penalty: "0.1", presence_penalty: "0.1", repetition_penalty: "0.05" };
const RANGES = { temperature: [0, 2], top_p: [0, 1], top_k: [0, null], min_p: [0, 1], max_tokens: [1, null], seed: [null, null], frequency_penalty: [-2, 2], presence_penalty: [-2, 2], repetition_penalty: [0, null] };
const EXAMPLE = `[
  {
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "parameters": {
      "type": "object",
      "properties": { "city": { "type": "string", "description": "Name of the city" } },
      "required": ["city"]
    }
  }
]`;

export function settingsPanel({ chat, settings, about, onTheme, onLanguage, onChange }) {
  const change = (values) => {
    settings.change(values);
    onChange();
  };
  const node = h("div.settings");
  node.append(
    thinking(settings, about, change),
    systemPrompt(chat),
    tools(settings, change),
    sampling(settings, about, change),
    display(settings, change, { onTheme, onLanguage }),
    facts(about),
  );
  return node;
}

function section(title, ...children) {
  return h("section.setting", {}, h("h3", {}, title), ...children);
}

/** One of a few choices, as radio buttons that look like one control. */
function choice(label, name, options, present, onPick) {
  const buttons = options.map(([value, text]) => {
    const input = h("input", { type: "radio", name, value, onchange: () => onPick(value) });
    input.checked = value === present;
    return h("label", {}, input, h("span", {}, text));
  });
  return h("div.choice", { role: "radiogroup", "aria-label": label }, ...buttons);
}

function toggle(label, why, present, onToggle) {
  const input = h("input", { type: "checkbox", onchange: () => onToggle(input.checked) });
  input.checked = present;
  return h("label.toggle", {}, input, h("span", {}, label, why ? h("small", {}, why) : null));
}

function numberField(label, { name, value, placeholder, step, min, max }, onInput) {
  const input = h("input", { type: "number", id: `setting-${name}`, inputmode: "decimal", step: step ?? "1", min, max, placeholder });
  input.value = value ?? "";
  input.addEventListener("input", () => onInput(input.validity.badInput ? "" : input.value));
  return h("label.field", {}, h("span", {}, label), input);
}

function thinking(settings, about, change) {
  const { values } = settings;
  const byServer = about.thinking === undefined ? t("byServer") : `${t("byServer")} (${t(about.thinking ? "on" : "off")})`;
  const options = [["default", byServer], ["on", t("on")], ["off", t("off")]];
  return section(
    t("thinkingSetting"),
    choice(t("thinkingSetting"), "thinking", options, values.thinking, (thinkingNow) => change({ thinking: thinkingNow })),
    numberField(t("budget"), { name: "budget", value: values.thinkingBudget, placeholder: t("budgetHint"), min: 0 }, (thinkingBudget) => change({ thinkingBudget })),
  );
}

function systemPrompt(chat) {
  const field = h("textarea", { rows: "3", "aria-label": t("systemPrompt"), placeholder: t("systemPlaceholder"), maxlength: "200000" });
  field.value = chat.current.system;
  field.addEventListener("input", () => chat.setSystem(field.value));
  return section(t("systemPrompt"), field);
}

function tools(settings, change) {
  const { values } = settings;
  const state = h("p.state", { role: "status" });
  const own = h("textarea.code-field", { rows: "4", spellcheck: "false", "aria-label": t("ownTools"), placeholder: "[ ]" });
  own.value = values.ownTools;
  const tell = () => {
    const { tools: offered, error } = toolsOf(settings.values);
    state.classList.toggle("problem", error !== null);
    state.textContent = error ? t(error) : offered.length ? t("toolsOk", { n: offered.length }) : "";
    example.hidden = Boolean(own.value.trim());
  };
  const edit = () => {
    change({ ownTools: own.value });
    tell();
  };
  own.addEventListener("input", edit);
  const example = h("button.quiet", { type: "button", onclick: () => ((own.value = EXAMPLE), (own.rows = 12), edit()) }, t("ownToolsInsert"));
  const demo = (name, label, why) =>
    toggle(label, why, values.demoTools.includes(name), (on) => {
      const others = settings.values.demoTools.filter((each) => each !== name);
      change({ demoTools: on ? [...others, name] : others });
      tell();
    });
  tell();
  return section(
    t("tools"),
    demo("calculator", t("calculator"), t("calculatorWhy")),
    demo("clock", t("clock"), t("clockWhy")),
    toggle(t("runTools"), t("runToolsWhy"), values.runTools, (runTools) => change({ runTools })),
    h("label.stacked", {}, h("span", {}, t("ownTools")), own),
    example,
    state,
  );
}

function sampling(settings, about, change) {
  const set = (name, value) => change({ sampling: { ...settings.values.sampling, [name]: value } });
  const defaults = { max_tokens: t("whatFits"), seed: t("random"), frequency_penalty: "0", presence_penalty: "0", repetition_penalty: "1", ...about.sampling };
  const grid = h("div.grid");
  const stop = h("textarea", { rows: "2", "aria-label": t("stopStrings"), spellcheck: "false" });
  const fill = () => {
    const present = settings.values.sampling;
    const fields = SAMPLING.map((name) => {
      const [min, max] = RANGES[name];
      return numberField(t(name), { name, value: present[name], placeholder: String(defaults[name] ?? ""), step: STEPS[name], min, max }, (value) => set(name, value));
    });
    grid.replaceChildren(...fields);
    stop.value = present.stop ?? "";
  };
  stop.addEventListener("input", () => set("stop", stop.value));
  const reset = () => {
    change({ sampling: {} });
    fill();
  };
  fill();
  return section(t("sampling"), grid, h("label.stacked", {}, h("span", {}, t("stopStrings")), stop), h("button.quiet", { type: "button", onclick: reset }, t("samplingReset")));
}

function display(settings, change, { onTheme, onLanguage }) {
  const { values } = settings;
  const themes = [["system", t("themeSystem")], ["light", t("themeLight")], ["dark", t("themeDark")]];
  const languages = [["en", "English"], ["zh", "中文"]];
  const forget = h("button.quiet", { type: "button", onclick: () => (key.set(""), location.reload()) }, t("keyForget"));
  return section(
    t("display"),
    toggle(t("logprobs"), t("logprobsWhy"), values.logprobs, (logprobs) => change({ logprobs })),
    choice(t("theme"), "theme", themes, values.theme, onTheme),
    choice(t("language"), "language", languages, document.documentElement.lang === "zh-CN" ? "zh" : "en", onLanguage),
    key.get() ? forget : null,
  );
}

function facts(about) {
  if (!about.model) return "";
  const rows = [["factModel", about.model], ["factTemplate", about.template], ["factVersion", `openglm ${about.version}`]];
  return section(t("about"), h("dl.facts", {}, ...rows.flatMap(([name, value]) => [h("dt", {}, t(name)), h("dd", {}, value)])));
}
