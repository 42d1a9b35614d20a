// Server-sent events from text that arrives in pieces of any size.

const MAX_EVENT_CHARS = 16_000_000;

export class EventParser {
  #line = "";
  #data = [];
  #size = 0;
  #skipLineFeed = false;

  /** Takes in a piece of the stream and returns the `data` of every event that it completes. Comments are dropped. */
  push(piece) {
    const events = [];
    let start = 0;
    if (this.#skipLineFeed && piece.length) {
      this.#skipLineFeed = false;
      if (piece[0] === "\n") start = 1;
    }
    for (let i = start; i < piece.length; i++) {
      const character = piece[i];
      if (character !== "\n" && character !== "\r") continue;
      this.#endLine(this.#line + piece.slice(start, i), events);
      this.#line = "";
      if (character === "\r") {
        if (i + 1 === piece.length) this.#skipLineFeed = true;
        else if (piece[i + 1] === "\n") i++;
      }
      start = i + 1;
    }
    this.#line += piece.slice(start);
    if (this.#line.length + this.#size > MAX_EVENT_CHARS) throw new Error("an event of the stream is too large");
    return events;
  }

  #endLine(line, events) {
    if (line === "") {
      if (this.#data.length) events.push(this.#data.join("\n"));
      this.#data = [];
      this.#size = 0;
    } else if (line === "data" || line.startsWith("data:")) {
      const value = line.slice(5);
      this.#data.push(value.startsWith(" ") ? value.slice(1) : value);
      this.#size += value.length;
    }
  }
}
