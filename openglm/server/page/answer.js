// An answer while it arrives: chunks of the chat-completions stream become one assistant turn, with its figures.
//
// Times are seconds, handed in by the caller.

const SHORTEST_S = 0.2;

export function newAnswer() {
  return { role: "assistant", content: "", reasoning: "", calls: [] };
}

export class AnswerReader {
  /** Fills `turn`, which belongs to the conversation; `now` is when the request was sent. */
  constructor(turn, now) {
    this.turn = turn;
    this.id = null;
    /** What the model is doing: "waiting", "thinking", "answering", "calling". */
    this.phase = "waiting";
    /** One entry per generated token when probabilities were asked for: { token, logprob, top: [{ token, logprob }] }. */
    this.tokens = [];
    this.done = false;
    this.numTokens = 0;
    this.thinkingSince = null;
    this.thinkingS = 0;
    this.#sentAt = now;
  }

  #sentAt;
  #firstAt = null;
  #firstTokens = 0;
  #lastAt = null;
  #usage = null;

  /** Takes in one chunk; throws nothing for fields it does not know. Returns whether anything visible changed. */
  read(chunk, now) {
    this.id ??= typeof chunk.id === "string" ? chunk.id : null;
    if (chunk.usage) this.#usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return false;
    const entries = choice.logprobs?.content ?? [];
    for (const entry of entries) this.tokens.push(readToken(entry));
    const visible = this.#delta(choice.delta ?? {}, now);
    if (visible || entries.length) {
      this.numTokens += entries.length || 1;
      if (this.#firstAt === null) {
        this.#firstAt = now;
        this.#firstTokens = this.numTokens;
      }
      this.#lastAt = now;
    }
    if (choice.finish_reason) this.turn.finish = choice.finish_reason;
    return visible || Boolean(choice.finish_reason);
  }

  /** Ends the answer, however it ended. */
  end(now) {
    this.#stopThinkingClock(now);
    this.phase = "done";
    this.done = true;
    this.turn.figures = this.figures(now);
  }

  /** What is known so far, in seconds, tokens, and tokens per second; unknown figures are missing. */
  figures(now) {
    const figures = { totalS: now - this.#sentAt };
    if (this.#firstAt !== null) figures.firstTokenS = this.#firstAt - this.#sentAt;
    const thinkingS = this.thinkingS + (this.thinkingSince === null ? 0 : now - this.thinkingSince);
    if (this.turn.reasoning) figures.thinkingS = thinkingS;
    const usage = this.#usage;
    const completion = usage?.completion_tokens ?? this.numTokens;
    figures.completionTokens = completion;
    const end = this.done || this.#lastAt === null ? this.#lastAt : now;
    if (this.#firstAt !== null && end - this.#firstAt > SHORTEST_S && completion > this.#firstTokens) {
      figures.tokensPerS = (completion - this.#firstTokens) / (end - this.#firstAt);
    } else if (this.done && this.#firstAt !== null) {
      figures.tokensPerS = completion / (end - this.#sentAt); // it came in one piece, so when its tokens were made cannot be seen
    }
    if (usage) {
      figures.promptTokens = usage.prompt_tokens;
      figures.cachedTokens = usage.prompt_tokens_details?.cached_tokens ?? 0;
      figures.reasoningTokens = usage.completion_tokens_details?.reasoning_tokens ?? 0;
      figures.draftTokens = usage.completion_tokens_details?.draft_tokens ?? 0;
      figures.acceptedTokens = usage.completion_tokens_details?.accepted_draft_tokens ?? 0;
    }
    return figures;
  }

  #delta(delta, now) {
    let visible = false;
    const reasoning = delta.reasoning_content ?? delta.reasoning;
    if (reasoning) {
      this.turn.reasoning += reasoning;
      this.thinkingSince ??= now;
      this.phase = "thinking";
      visible = true;
    }
    if (delta.content) {
      this.turn.content += delta.content;
      this.#stopThinkingClock(now);
      this.phase = "answering";
      visible = true;
    }
    for (const piece of delta.tool_calls ?? []) {
      this.#call(piece);
      this.#stopThinkingClock(now);
      this.phase = "calling";
      visible = true;
    }
    return visible;
  }

  #call(piece) {
    const index = piece.index ?? this.turn.calls.length;
    const call = (this.turn.calls[index] ??= { id: "", name: "", arguments: "" });
    if (piece.id) call.id = piece.id;
    if (piece.function?.name) call.name = piece.function.name;
    call.arguments += piece.function?.arguments ?? "";
  }

  #stopThinkingClock(now) {
    if (this.thinkingSince === null) return;
    this.thinkingS += now - this.thinkingSince;
    this.thinkingSince = null;
  }
}

/** Tokens as they are shown: bytes that are no whole text by themselves stay visible as such. */
function readToken(entry) {
  return {
    token: tokenText(entry),
    logprob: entry.logprob,
    top: (entry.top_logprobs ?? []).map((each) => ({ token: tokenText(each), logprob: each.logprob })),
  };
}

function tokenText(entry) {
  if (!entry.bytes || !entry.token.includes("\ufffd")) return entry.token;
  return entry.bytes.map((byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`).join("");
}
