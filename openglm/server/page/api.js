// The server, for this page: requests with the key, errors that say what to do, and the stream of an answer.

import { EventParser } from "./event_parser.js";

const KEY = "openglm.key";
const SILENCE_S = 45; // the server sends a comment every 10 s, so a stream that says nothing for this long is broken

/** Kinds: "network", "key", "busy" (429), "unavailable" (503), "too_long", "refused" (other 4xx), "server" (5xx and mid-stream), "cut". */
export class ApiError extends Error {
  constructor(kind, message, { retryAfterS = null, code = null } = {}) {
    super(message);
    this.kind = kind;
    this.retryAfterS = retryAfterS;
    this.code = code;
  }
}

/** The key lives as long as the tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** JSON of a route; throws ApiError, or the AbortError of `signal`. */
export async function request(path, { body, signal, method = body === undefined ? "GET" : "POST" } = {}) {
  const response = await send(path, { body, signal, method });
  try {
    return response.status === 204 ? null : await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("network", "");
  }
}

/** The chunks of a streamed answer. Ends after [DONE]; throws ApiError when the stream ends without, or carries an error. */
export async function* streamChat(body, signal) {
  const response = await send("v1/chat/completions", { body, signal, method: "POST" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await nextPiece(reader);
      if (done) throw new ApiError("cut", "");
      for (const data of parser.push(value)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError("server", String(chunk.error.message ?? ""), { code: chunk.error.code ?? null });
        yield chunk;
      }
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("cut", "");
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function nextPiece(reader) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new ApiError("cut", "")), SILENCE_S * 1000);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } finally {
    clearTimeout(timer);
  }
}

async function send(path, { body, signal, method }) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "same-origin",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("network", "");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // a proxy in between answers in its own words
  }
  const wait = Number(response.headers.get("retry-after"));
  const details = { retryAfterS: Number.isFinite(wait) && wait > 0 ? Math.min(wait, 600) : null, code: error.code ?? null };
  return new ApiError(kindOf(response.status, error.code), String(error.message ?? `HTTP ${response.status}`), details);
}

function kindOf(status, code) {
  if (status === 401 || status === 403) return "key";
  if (status === 429 || code === "queue_full") return "busy";
  if (code === "context_length_exceeded") return "too_long";
  if (status === 502 || status === 503) return "unavailable";
  return status < 500 ? "refused" : "server";
}
