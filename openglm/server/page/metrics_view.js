// The view of the server's figures: small plots of the last minutes, and totals.

import { h } from "./dom.js";
import { barPlot, linePlot } from "./plot.js";
import { acceptance } from "./series.js";
import { count, percent, t } from "./texts.js";

export class MetricsView {
  constructor({ about, series }) {
    this.about = about;
    this.series = series;
    const rate = (value) => (value < 10 ? value.toFixed(1) : count(value));
    this.#plots = [
      linePlot(t("plotGenerated"), { lines: [{ value: (point) => point.generated }], format: rate, unit: t("tokensPerS") }),
      linePlot(t("plotPrefill"), { lines: [{ value: (point) => point.prefill }], format: rate, unit: t("tokensPerS") }),
      linePlot(t("plotRequests"), {
        lines: [
          { label: t("running"), value: (point) => point.running },
          { label: t("queued"), value: (point) => point.waiting },
        ],
        format: count,
        unit: `${t("running")} / ${t("queued")}`,
      }),
      linePlot(t("plotKv"), {
        lines: [
          { label: t("inUse"), value: (point) => point.kv },
          { label: t("figCached"), value: (point) => point.kvCached },
        ],
        format: percent,
        top: 1,
      }),
      linePlot(t("plotCache"), { lines: [{ value: (point) => point.cache }], format: percent, top: 1 }),
      linePlot(t("plotBatch"), { lines: [{ value: (point) => point.batch }], format: rate }),
    ];
    this.#acceptance = barPlot(t("plotAcceptance"), { none: t("noDrafts"), format: percent });
    this.#totals = h("dl.facts");
    this.#facts = h("dl.facts");
    this.node = h(
      "section.metrics",
      { "aria-label": t("metricsTitle"), hidden: true },
      h("header.metrics-head", {}, h("h1", {}, t("metricsTitle")), h("p", {}, t("metricsWhy"))),
      h(
        "div.plots",
        {},
        ...this.#plots.map((plot) => plot.node),
        this.#acceptance.node,
        h("section.plot", {}, h("h3", {}, t("total")), this.#totals),
        h("section.plot", {}, h("h3", {}, t("serverFacts")), this.#facts),
      ),
    );
  }

  #plots;
  #acceptance;
  #totals;
  #facts;

  update() {
    const { points, latest } = this.series;
    for (const plot of this.#plots) plot.update(points);
    const stats = latest?.stats;
    this.#acceptance.update(
      acceptance(stats).map(({ share, drafted }, i) => ({ label: t("position", { n: i + 1 }), share, note: count(drafted) })),
    );
    const finished = Object.values(stats?.num_finished ?? {}).reduce((sum, each) => sum + each, 0);
    const totals = stats && [
      ["totalGenerated", stats.num_generated_tokens],
      ["totalPrefill", stats.num_prefill_tokens],
      ["totalCached", stats.prompt_tokens_cached],
      ["totalFinished", finished],
      ["totalPreempted", stats.num_preemptions],
      ["totalSteps", stats.num_steps],
    ];
    this.#totals.replaceChildren(...(totals ?? []).flatMap(([name, value]) => [h("dt", {}, t(name)), h("dd", {}, count(value))]));
    this.#facts.replaceChildren(...this.#serverFacts(latest).flatMap(([name, value]) => [h("dt", {}, t(name)), h("dd", {}, value)]));
  }

  #serverFacts(latest) {
    const about = this.about();
    const facts = [];
    if (about.model) facts.push(["factModel", about.model], ["factContext", count(about.max_model_len)]);
    if (about.engine) facts.push(["factDevice", `${about.engine.device}, ${about.engine.dtype}`], ["factDrafts", String(about.engine.num_speculative_tokens)]);
    if (about.version) facts.push(["factVersion", about.version]);
    if (latest) facts.push(["factState", latest.state === "ready" ? t("ready") : latest.state]);
    return facts;
  }
}
