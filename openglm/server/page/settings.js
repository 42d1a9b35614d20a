// What the user chose, for all conversations, kept in the browser. Every value has a default and is checked when read.

const KEY = "openglm.settings";

export const DEFAULTS = Object.freeze({
  language: "",
  theme: "system",
  thinking: "default",
  thinkingBudget: "",
  sampling: Object.freeze({}),
  demoTools: Object.freeze([]),
  runTools: false,
  ownTools: "",
  logprobs: true,
  sidebar: true,
});

const CHOICES = { language: ["", "en", "zh"], theme: ["system", "light", "dark"], thinking: ["default", "on", "off"] };

export class Settings {
  constructor(storage) {
    this.#storage = storage;
    this.values = read(storage);
  }

  #storage;

  /** Changes some values and keeps them. */
  change(values) {
    this.values = sound({ ...this.values, ...values });
    try {
      this.#storage.setItem(KEY, JSON.stringify(this.values));
    } catch {
      // no room: they hold until the page is closed
    }
  }
}

function read(storage) {
  try {
    return sound(JSON.parse(storage.getItem(KEY) ?? "{}"));
  } catch {
    return sound({});
  }
}

function sound(values) {
  const checked = {};
  for (const [name, fallback] of Object.entries(DEFAULTS)) {
    const value = values?.[name];
    const fits = CHOICES[name] ? CHOICES[name].includes(value) : typeof value === typeof fallback && value !== null && Array.isArray(value) === Array.isArray(fallback);
    checked[name] = fits ? value : fallback;
  }
  return checked;
}
