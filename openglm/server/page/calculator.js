// Arithmetic by recursive descent over numbers, + - * / // % ** and parentheses. Nothing else is read, so nothing else can happen.
//
//   sum     = product { ("+" | "-") product }
//   product = signed { ("*" | "/" | "//" | "%") signed }
//   signed  = ("+" | "-") signed | atom [ "**" signed ]
//   atom    = number | "(" sum ")"
//
// Whole numbers are exact (BigInt) until a fraction enters. Length, depth and size are bounded: the text comes from a model.

const MAX_CHARS = 200;
const MAX_DEPTH = 40;
const MAX_DIGITS = 1000;
const TOKEN = /\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(\*\*|\/\/|[-+*/%()^×÷−]))/y;
const SPELLINGS = { "^": "**", "×": "*", "÷": "/", "−": "-" };

export class CalculatorError extends Error {}

/** The value of an expression as decimal text. Throws CalculatorError saying what is wrong. */
export function calculate(expression) {
  if (expression.length > MAX_CHARS) throw new CalculatorError(`the expression is longer than ${MAX_CHARS} characters`);
  const value = new Expression(expression).value();
  if (typeof value === "number" && !Number.isFinite(value)) throw new CalculatorError("the result is not a finite number");
  return String(value);
}

class Expression {
  #tokens = [];
  #next = 0;

  constructor(text) {
    const trimmed = text.trim();
    TOKEN.lastIndex = 0;
    while (TOKEN.lastIndex < trimmed.length) {
      const start = TOKEN.lastIndex;
      const match = TOKEN.exec(trimmed);
      if (match === null) throw new CalculatorError(`cannot read "${trimmed.slice(start, start + 10)}"`);
      const token = match[1] ?? match[2];
      this.#tokens.push(SPELLINGS[token] ?? token);
    }
  }

  value() {
    const value = this.#sum(0);
    if (this.#next < this.#tokens.length) throw new CalculatorError(`unexpected "${this.#tokens[this.#next]}"`);
    return value;
  }

  #peek() {
    return this.#tokens[this.#next] ?? "";
  }

  #take() {
    return this.#tokens[this.#next++] ?? "";
  }

  #sum(depth) {
    let value = this.#product(depth);
    while (["+", "-"].includes(this.#peek())) value = apply(this.#take(), value, this.#product(depth));
    return value;
  }

  #product(depth) {
    let value = this.#signed(depth);
    while (["*", "/", "//", "%"].includes(this.#peek())) value = apply(this.#take(), value, this.#signed(depth));
    return value;
  }

  #signed(depth) {
    if (depth > MAX_DEPTH) throw new CalculatorError("the expression nests too deeply");
    if (["+", "-"].includes(this.#peek())) {
      const sign = this.#take();
      const value = this.#signed(depth + 1);
      return sign === "-" ? -value : value;
    }
    const base = this.#atom(depth);
    if (this.#peek() !== "**") return base;
    this.#take();
    return power(base, this.#signed(depth + 1));
  }

  #atom(depth) {
    const token = this.#take();
    if (token === "(") {
      const value = this.#sum(depth + 1);
      if (this.#take() !== ")") throw new CalculatorError("a parenthesis is not closed");
      return value;
    }
    if (!/^[\d.]/.test(token)) throw new CalculatorError(token ? `expected a number, got "${token}"` : "the expression ends too early");
    return /^\d+$/.test(token) ? BigInt(token) : Number(token);
  }
}

function apply(operator, left, right) {
  const whole = typeof left === "bigint" && typeof right === "bigint";
  if (["/", "//", "%"].includes(operator) && Number(right) === 0 && !(whole && right !== 0n)) throw new CalculatorError("division by zero");
  if (operator === "/") return whole && left % right === 0n ? left / right : Number(left) / Number(right);
  const [a, b] = whole ? [left, right] : [Number(left), Number(right)];
  switch (operator) {
    case "+":
      return a + b;
    case "-":
      return a - b;
    case "*":
      return bounded(a * b);
    case "//":
      return whole ? floorDivide(a, b) : Math.floor(a / b);
    default: // the remainder has the sign of the divisor, as `//` rounds down
      return whole ? a - floorDivide(a, b) * b : a - Math.floor(a / b) * b;
  }
}

function floorDivide(a, b) {
  const quotient = a / b;
  return a % b !== 0n && a < 0n !== b < 0n ? quotient - 1n : quotient;
}

function power(base, exponent) {
  const size = Math.abs(Number(base));
  if (Number(base) === 0 && Number(exponent) < 0) throw new CalculatorError("division by zero");
  if (size > 1 && Math.abs(Number(exponent)) * Math.log10(size) > MAX_DIGITS) throw new CalculatorError("the result is too large");
  if (typeof base === "bigint" && typeof exponent === "bigint" && exponent >= 0n) {
    if (size <= 1) return exponent === 0n ? 1n : base === -1n ? (exponent % 2n === 0n ? 1n : -1n) : base;
    return base ** exponent;
  }
  const value = Number(base) ** Number(exponent);
  if (Number.isNaN(value)) throw new CalculatorError("the result is not a real number");
  return value;
}

function bounded(value) {
  if (typeof value === "bigint" && value.toString(16).length > MAX_DIGITS) throw new CalculatorError("the result is too large");
  return value;
}
