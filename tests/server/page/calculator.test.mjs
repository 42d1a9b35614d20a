import assert from "node:assert/strict";
import test from "node:test";
import { CalculatorError, calculate } from "../../../openglm/server/page/calculator.js";
import { DEMO_TOOLS, isDemoTool, runDemoTool } from "../../../openglm/server/page/demo_tools.js";

test("precedence, signs and exact whole numbers", () => {
  const cases = {
    "2 + 3 * 4": "14",
    "(2 + 3) * 4": "20",
    "2 ** 3 ** 2": "512",
    "-2 ** 2": "-4",
    "2 ** -1": "0.5",
    "7 // 2": "3",
    "-7 // 2": "-4",
    "-7 % 3": "2",
    "7 % -3": "-2",
    "5.5 % 2": "1.5",
    "10 / 4": "2.5",
    "10 / 5": "2",
    "9007199254740993 + 0": "9007199254740993",
    "123456789 * 987654321 * 1000000007": "121932631966163686788446883",
    "2 ^ 10": "1024",
    "6 × 7 ÷ 2 − 1": "20",
    ".5 + 1.": "1.5",
    "1e3": "1000",
    "(-1) ** 1000001": "-1",
    "0 ** 0": "1",
  };
  for (const [expression, value] of Object.entries(cases)) assert.equal(calculate(expression), value, expression);
});

test("what is no arithmetic, or too much of it, is refused", () => {
  const wrong = ["", " ", "1 +", "* 1", "(1", "1)", "1 2", "a", "alert(1)", "constructor", "1 / 0", "1 % 0", "1 // 0", "0 ** -1", "1.0 / 0", "1e999", "(-1) ** 0.5", "9 ** 9 ** 9", "2 ** 99999", "1" + "+1".repeat(100), "(".repeat(60) + "1" + ")".repeat(60), "-".repeat(60) + "1", "1;2", "__proto__", "１+１"];
  for (const expression of wrong) assert.throws(() => calculate(expression), CalculatorError, expression);
});

test("random text either has a value or is refused, quickly", () => {
  const alphabet = "0123456789.+-*/%()^eE ×÷−x";
  let seed = 7;
  const next = (bound) => (seed = (seed * 48271) % 2147483647) % bound;
  for (let i = 0; i < 20_000; i++) {
    const text = Array.from({ length: next(24) }, () => alphabet[next(alphabet.length)]).join("");
    try {
      assert.match(calculate(text), /^-?\d/);
    } catch (error) {
      assert.ok(error instanceof CalculatorError, `${text}: ${error}`);
    }
  }
});

test("demo tools answer with JSON, mistakes included", () => {
  assert.deepEqual(DEMO_TOOLS.map((tool) => tool.function.name), ["calculator", "clock"]);
  assert.ok(isDemoTool("clock") && !isDemoTool("toString"));
  assert.equal(runDemoTool("calculator", { expression: "6 * 7" }), '{"result": 42}');
  assert.deepEqual(JSON.parse(runDemoTool("calculator", { expression: "1 / 8" })), { result: 0.125 });
  assert.match(JSON.parse(runDemoTool("calculator", { expression: "one" })).error, /cannot read/);
  assert.match(JSON.parse(runDemoTool("calculator", null)).error, /ends too early/);
  assert.match(JSON.parse(runDemoTool("nothing", {})).error, /no tool/);
  const now = new Date("2026-03-04T05:06:07Z");
  const { time } = JSON.parse(runDemoTool("clock", {}, now));
  assert.match(time, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d$/);
  assert.equal(new Date(time).getTime(), now.getTime());
});
