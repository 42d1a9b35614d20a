// Tools that the page can run itself, so that tool calls can be tried without writing a program.

import { CalculatorError, calculate } from "./calculator.js";

function tool(name, description, properties) {
  return { type: "function", function: { name, description, parameters: { type: "object", properties, required: Object.keys(properties) } } };
}

export const DEMO_TOOLS = [
  tool("calculator", "Evaluate an arithmetic expression", {
    expression: { type: "string", description: "Numbers, + - * / // % ** and parentheses, such as (3 + 4) * 12" },
  }),
  tool("clock", "Get the current date and time", {}),
];

export function isDemoTool(name) {
  return DEMO_TOOLS.some((each) => each.function.name === name);
}

/** The result of a call as the text of a tool turn; a mistake becomes a text too, so that the model can react to it. */
export function runDemoTool(name, args, now = new Date()) {
  if (name === "clock") return JSON.stringify({ time: localTime(now) });
  if (name !== "calculator") return JSON.stringify({ error: `there is no tool called ${name}` });
  try {
    const value = calculate(String(args?.expression ?? ""));
    return /^-?\d+$/.test(value) ? `{"result": ${value}}` : JSON.stringify({ result: Number(value) });
  } catch (error) {
    if (error instanceof CalculatorError) return JSON.stringify({ error: error.message });
    throw error;
  }
}

/** ISO 8601 with the offset of this place, to the second. */
function localTime(now) {
  const minutes = -now.getTimezoneOffset();
  const two = (value) => String(Math.trunc(Math.abs(value))).padStart(2, "0");
  const local = new Date(now.getTime() + minutes * 60_000).toISOString().slice(0, 19);
  return `${local}${minutes < 0 ? "-" : "+"}${two(minutes / 60)}:${two(minutes % 60)}`;
}
