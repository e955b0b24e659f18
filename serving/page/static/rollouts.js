// Rollouts as they go: the traffic, the evidence against its limits, the counts, and what an admin may do.

import { call, hasKey } from "./api.js";
import { byId, count, element, percent, show, svg, wide } from "./dom.js";

const COMMANDS = { pause: "Pause", resume: "Resume", promote: "Promote now", abort: "Roll back" };

// How far evidence is on the way to a decision.
const way = (gone) => (gone >= 1 ? "reached" : percent(Math.max(0, gone)));
// A candidate may begin with a thousandth of the callers.
const share = (part) => `${Number((100 * part).toPrecision(3))} %`;
const worded = (phase) => phase.replace("_", " ");

function traffic(rollout) {
  const stable = wide(element("span", { class: "stable" }), 1 - rollout.share);
  const candidate = wide(element("span", { class: "candidate" }), rollout.share);
  const copied = rollout.shadow ? `; ${share(rollout.shadow)} copied to it` : "";
  return element(
    "div",
    {},
    element("div", { class: "traffic", "aria-hidden": "true" }, stable, candidate),
    element(
      "p",
      { class: "quiet number" },
      element("i", { class: "key stable" }),
      `version ${rollout.stable} answers ${share(1 - rollout.share)} `,
      element("i", { class: "key candidate" }),
      `version ${rollout.candidate} answers ${share(rollout.share)}${copied}`,
    ),
  );
}

function curve(name, points) {
  const last = points.at(-1)[1][name];
  const [from, to] = [points[0][0], Math.max(points.at(-1)[0], points[0][0] + 1)];
  const height = (value) => 90 - Math.max(-0.25, Math.min(1.15, value)) * 70;
  const line = (which) =>
    svg("polyline", {
      class: which,
      points: points.map(([at, evidence]) => `${(((at - from) / (to - from)) * 300).toFixed(1)},${height(evidence[name]?.[which] ?? 0).toFixed(1)}`).join(" "),
    });
  const words = { worse: way(last.worse), good: way(last.good) };
  const text = `${name}: shown to be worse: ${words.worse}; shown to be good enough: ${words.good}`;
  return element(
    "figure",
    {},
    element(
      "figcaption",
      { class: "number" },
      element("strong", {}, name),
      element("span", { class: "worse" }, ` worse ${words.worse}`),
      element("span", { class: "good" }, ` good ${words.good}`),
    ),
    svg(
      "svg",
      { class: "curve", viewBox: "0 0 300 110", preserveAspectRatio: "none", role: "img", "aria-label": text },
      svg("line", { class: "zero", x1: 0, x2: 300, y1: height(0), y2: height(0) }),
      svg("line", { class: "limit", x1: 0, x2: 300, y1: height(1), y2: height(1) }),
      line("worse"),
      line("good"),
    ),
  );
}

function counts(rollout) {
  const head = ["criterion", `bad by ${rollout.candidate}`, `bad by ${rollout.stable}`];
  const rows = rollout.counts.map((each) =>
    element(
      "tr",
      {},
      element("td", {}, each.criterion),
      element("td", { class: "number" }, `${count(each.candidate_bad)} of ${count(each.candidate_all)}`),
      element("td", { class: "number" }, `${count(each.stable_bad)} of ${count(each.stable_all)}`),
    ),
  );
  const table = element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows),
  );
  const agreement = rollout.compared ? `Of ${count(rollout.compared)} copies both versions agree on ${percent(rollout.agreed / rollout.compared, 1)}.` : null;
  return element("div", { class: "scroll" }, table, agreement ? element("p", { class: "quiet number" }, agreement) : null);
}

// What came of a command stays until the next one: the rollouts are drawn anew each second.
function tell(rollout, text, failed = false) {
  const told = byId("told");
  told.className = failed ? "error" : "quiet";
  told.textContent = `${rollout.model}: ${text}`;
}

function buttons(rollout) {
  if (rollout.finished || rollout.phase === "rolling_back" || !hasKey()) return null;
  const offered = rollout.phase === "promoting" ? ["abort"] : [rollout.phase === "paused" ? "resume" : "pause", "promote", "abort"];
  const made = offered.map((name) => {
    const style = name === "abort" ? "stop" : name === "promote" ? "main" : "";
    const button = element("button", { type: "button", class: style, "data-focus": `${rollout.model} ${name}` }, COMMANDS[name]);
    button.addEventListener("click", async () => {
      try {
        await call(`v1/rollouts/${encodeURIComponent(rollout.model)}/${name}`, { method: "POST" });
        tell(rollout, `“${COMMANDS[name]}” was obeyed.`);
      } catch (error) {
        tell(rollout, error.message, true);
      }
    });
    return button;
  });
  return element("div", { class: "buttons", role: "group", "aria-label": `Steer the rollout of ${rollout.model}` }, ...made);
}

function view(rollout) {
  const points = rollout.curve.map((point) => [point.clock_s, point.evidence]);
  const where = rollout.phase === "canary" ? `canary, step ${rollout.step + 1} of ${rollout.steps}` : worded(rollout.phase);
  return element(
    "article",
    { class: "rollout", "data-phase": rollout.phase, "aria-label": `Rollout of ${rollout.model}` },
    element("div", { class: "row" }, element("h3", {}, `${rollout.model} ${rollout.stable} → ${rollout.candidate}`), element("span", { class: `phase phase-${rollout.phase}` }, where)),
    element("p", { class: "quiet" }, rollout.reason),
    traffic(rollout),
    element("div", { class: "curves" }, ...rollout.counts.map((each) => curve(each.criterion, points))),
    counts(rollout),
    buttons(rollout),
  );
}

// `gap` says why the rollouts cannot be read; null if they can.
export function showRollouts(rollouts, gap) {
  byId("rollouts-card").hidden = rollouts.length === 0 && !gap;
  show(byId("rollouts"), [rollouts, gap, hasKey()], () => (gap ? [element("p", { class: "error" }, `The rollouts cannot be read: ${gap}`)] : rollouts.map(view)));
}
