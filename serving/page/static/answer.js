// The answer to one picture: classes with bars, the version, and where the time went.

import { byId, element, milliseconds, percent, wide } from "./dom.js";

// Some models give logits, which are shares of nothing: their bars go by the highest.
function scaleOf(scores) {
  if (scores.every((score) => score >= 0 && score <= 1)) return { part: (score) => score, worded: (score) => percent(score, 1), name: "" };
  const highest = Math.max(...scores);
  return { part: (score) => (highest > 0 ? score / highest : 0), worded: (score) => String(Number(score.toPrecision(4))), name: "score " };
}

function classRow(each, scale) {
  const fill = wide(element("span"), scale.part(each.score));
  return element(
    "li",
    {},
    element("span", { title: each.label }, each.label),
    element("span", { class: "bar", "aria-hidden": "true" }, fill),
    element("span", { class: "number" }, scale.worded(each.score)),
  );
}

function stages(timing, elapsed) {
  const total = timing.find(([name]) => name === "total")?.[1] ?? 0;
  const parts = timing.filter(([name]) => name !== "total");
  const spent = parts.reduce((sum, [, duration]) => sum + duration, 0);
  const bar = element("div", { class: "stages", "aria-hidden": "true" });
  const legend = element("ul", { class: "legend" });
  parts.forEach(([name, duration], index) => {
    bar.append(wide(element("span", { class: `s${index % 6}` }), duration / Math.max(total, spent)));
    legend.append(
      element("li", {}, element("i", { class: `s${index % 6}` }), `${name} `, element("span", { class: "number" }, milliseconds(duration))),
    );
  });
  const text = `${milliseconds(total)} in the gateway, ${milliseconds(elapsed)} from here`;
  return element("div", {}, bar, legend, element("p", { class: "quiet number" }, text));
}

export function showAnswer(prediction, timing, elapsed) {
  const result = prediction.results[0];
  const [first] = result.classes;
  const scale = scaleOf(result.classes.map((each) => each.score));
  // A screen reader says the verdict by itself; the rest is there to be read.
  byId("verdict").replaceChildren(
    element("p", { class: first.label.length > 24 ? "first long" : "first", title: first.label }, first.label),
    element("p", { class: "quiet" }, `${scale.name}${scale.worded(first.score)}, says ${prediction.model} version `, element("span", { id: "by-version" }, String(prediction.version))),
  );
  byId("details").replaceChildren(element("ol", { class: "classes" }, ...result.classes.map((each) => classRow(each, scale))), stages(timing, elapsed));
}

export function showProblem(text) {
  byId("verdict").replaceChildren(element("p", { class: "error" }, text));
  byId("details").replaceChildren();
}

export const showWaiting = () => byId("answer").setAttribute("aria-busy", "true");
export const showDone = () => byId("answer").removeAttribute("aria-busy");
