// Models with their versions, and the requests that were not answered.

import { byId, count, element, percent, show } from "./dom.js";

function versionRow(each, serving) {
  return element(
    "tr",
    {},
    element("td", { class: "number" }, String(each.version), each.version === serving ? element("span", { class: "quiet" }, " serves") : null),
    element("td", { class: `state-${each.state}` }, each.state.toLowerCase()),
    element("td", { class: "number" }, String(each.available_on)),
    element("td", { class: "number" }, each.accuracy === null ? "" : percent(each.accuracy, 1)),
  );
}

const errorRow = (each) => element("tr", {}, element("td", { class: "error", colspan: 4 }, `${each.version}: ${each.error}`));

export const answers = (model) => model.versions.some((each) => each.state === "AVAILABLE");

function about(model) {
  if (!answers(model)) return "no version available";
  const { input, classes } = model;
  return input ? `${input.width} × ${input.height}, ${input.channels === 1 ? "grey" : "colour"}, ${count(classes)} classes` : "takes no images";
}

function modelRows(model) {
  return element(
    "tbody",
    {},
    element("tr", {}, element("th", { colspan: 4, scope: "rowgroup" }, `${model.name} `, element("span", { class: "quiet" }, about(model)))),
    ...model.versions.flatMap((each) => [versionRow(each, model.serving), ...(each.error ? [errorRow(each)] : [])]),
  );
}

export function showModels(models) {
  const head = ["version", "state", "replicas", "accuracy"].map((text) => element("th", { scope: "col" }, text));
  show(byId("models"), models, () => [
    element("table", { "aria-labelledby": "models-title" }, element("thead", {}, element("tr", {}, ...head)), ...models.map(modelRows)),
  ]);
}

function refusal(each) {
  const time = new Date(each.at * 1000);
  return element(
    "li",
    {},
    element("strong", {}, each.outcome),
    element("span", { class: "quiet" }, ` ${each.model} `, element("time", { datetime: time.toISOString() }, time.toLocaleTimeString())),
    element("div", { class: "quiet" }, each.text),
  );
}

export function showRefusals(refusals) {
  show(byId("refusals"), refusals, () =>
    refusals.length
      ? [element("ul", { class: "refusals", tabindex: "0", "aria-label": "Requests that were not answered" }, ...refusals.map(refusal))]
      : [element("p", { class: "quiet" }, "Every request so far was answered.")],
  );
}
