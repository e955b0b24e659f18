// Models with their versions, and the requests that were not answered.

import { byId, element, percent, show } from "./dom.js";

function versionRow(each, serving) {
  return element(
    "tr",
    {},
    element("td", { class: "number" }, String(each.version), each.version === serving ? element("span", { class: "quiet" }, " serves") : null),
    element("td", { class: `state-${each.state}` }, each.state.toLowerCase()),
    element("td", { class: "number" }, String(each.available_on)),
    element("td", { class: each.error ? "error" : "number" }, each.error || (each.accuracy === null ? "" : percent(each.accuracy, 1))),
  );
}

function modelTable(model) {
  const input = model.input ? `${model.input.width} × ${model.input.height}, ${model.input.channels === 1 ? "grey" : "colour"}, ${model.classes} classes` : "takes no images";
  const head = ["version", "state", "replicas", "accuracy"].map((text) => element("th", { scope: "col" }, text));
  return element(
    "div",
    { class: "scroll" },
    element(
      "table",
      {},
      element("caption", {}, `${model.name} `, element("span", { class: "quiet" }, input)),
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...model.versions.map((each) => versionRow(each, model.serving))),
    ),
  );
}

export function showModels(models) {
  show(byId("models"), models, () => models.map(modelTable));
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
