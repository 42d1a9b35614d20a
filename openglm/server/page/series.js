// Figures over time from counters: differences between readings become rates. Nothing here knows a browser.

export const KEPT_S = 180;

/** One point of the plots from two readings of /page/figures, or null where they cannot be compared (a restart, no engine). */
export function pointBetween(before, after) {
  const [a, b] = [before?.stats, after?.stats];
  if (!b) return null;
  const elapsed = a ? after.time - before.time : 0;
  const grew = (name) => b[name] - a[name];
  const comparable = elapsed > 0 && grew("num_steps") >= 0 && grew("num_generated_tokens") >= 0;
  const pages = b.pages_total || 1;
  const point = { time: after.time, running: b.num_running, waiting: b.num_waiting, kv: b.pages_held / pages, kvCached: b.pages_cached / pages };
  if (!comparable) return point;
  point.generated = grew("num_generated_tokens") / elapsed;
  point.prefill = grew("num_prefill_tokens") / elapsed;
  const steps = grew("num_steps");
  point.batch = steps ? grew("num_scheduled_tokens") / steps : 0;
  const looked = grew("prompt_tokens_looked_up");
  if (looked > 0) point.cache = grew("prompt_tokens_cached") / looked;
  return point;
}

/** Shares of right drafts at position 1, 2, ... since the engine started: [{ share, drafted }]. */
export function acceptance(stats) {
  return (stats?.drafted_by_position ?? []).map((drafted, i) => ({ drafted, share: drafted ? stats.accepted_by_position[i] / drafted : 0 })).filter((each) => each.drafted);
}

/** Readings of the last minutes. */
export class Series {
  points = [];
  latest = null;

  add(reading) {
    if (this.latest && reading.stats && reading.time <= this.latest.time) return;
    const point = pointBetween(this.latest, reading);
    this.latest = reading;
    if (point === null) return;
    this.points.push(point);
    const oldest = reading.time - KEPT_S;
    while (this.points[0].time < oldest) this.points.shift();
  }
}

/** The smallest of 1, 2, 5 times a power of ten that is at least `value`: the top of an axis. */
export function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const found = [1, 2, 5, 10].find((each) => each * power >= value * 0.999999);
  return Number((found * power).toPrecision(3));
}
