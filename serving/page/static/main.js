// Ties the page together: what a person does becomes a request, and every second the state is looked at.

import { showAnswer, showDone, showProblem, showWaiting } from "./answer.js";
import { call, hasKey, serverTiming, useKey } from "./api.js";
import { byId, element, show } from "./dom.js";
import { Drawing } from "./draw.js";
import { answers, showModels, showRefusals } from "./models.js";
import { showRollouts } from "./rollouts.js";

const LOOK_EVERY_MS = 1000;
const LOOK_WAIT_MS = 5000;
let models = null; // until the gateway tells
let picture = null; // the file that was chosen, as long as it is shown
let shownPicture = "";
let latest = 0;

const chosen = () => models?.find((model) => model.name === byId("model").value);

// What is still being asked is not to be answered any more.
function refuse(text) {
  latest += 1;
  showDone();
  showProblem(text);
}

async function classify(image) {
  const model = chosen();
  if (!model) {
    refuse(models ? "There is no model that takes images yet." : byId("health").textContent);
    return;
  }
  latest += 1;
  const mine = latest;
  showWaiting();
  const began = performance.now();
  try {
    if (!(await readable(image))) throw new Error("This cannot be read. Is it a folder, or was it moved?");
    if (image.size === 0) throw new Error("This file is empty.");
    // What a browser takes a file for hangs on the file's name; the gateway looks at what is in it.
    const { body, headers } = await call(`v1/models/${encodeURIComponent(model.name)}:classify`, {
      method: "POST",
      headers: { "content-type": "application/octet-stream" },
      body: image,
    });
    // Of two pictures in quick succession the first answer may come last.
    if (mine === latest) showAnswer(body, serverTiming(headers.get("server-timing")), performance.now() - began);
  } catch (error) {
    if (mine === latest) showProblem(error.message);
    if (error.status === 401) askForKey();
  }
  if (mine === latest) showDone();
  look();
}

// Asked beforehand: to send what cannot be read fails as if the gateway were away.
const readable = (image) => image.slice(0, 1).arrayBuffer().then(() => true, () => false);

function take(files) {
  if (files.length !== 1) {
    hidePreview();
    refuse(files.length ? `These are ${files.length} files; one picture at a time.` : "No file came with that. Save the picture, and choose it here.");
    return;
  }
  const preview = byId("preview");
  [picture] = files;
  URL.revokeObjectURL(shownPicture);
  shownPicture = URL.createObjectURL(picture);
  preview.onload = () => preview.classList.toggle("small", preview.naturalWidth < 64);
  preview.onerror = hidePreview;
  preview.src = shownPicture;
  preview.alt = "The picture that was sent; choose another";
  preview.hidden = false;
  byId("invite").hidden = true;
  classify(picture);
}

function hidePreview() {
  picture = null;
  byId("preview").hidden = true;
  byId("invite").hidden = false;
}

function listen() {
  const choose = byId("choose");
  byId("file").addEventListener("change", (event) => {
    if (event.target.files.length) take([...event.target.files]);
    event.target.value = "";
  });
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      choose.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) choose.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    choose.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const pictures = [...event.clipboardData.files].filter((each) => each.type.startsWith("image/"));
    if (pictures.length) take(pictures);
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key").value);
    byId("key-box").open = false;
    byId("key-box").querySelector("summary").focus(); // the button that had it is gone
    asked = false;
    look();
  });
  byId("model").addEventListener("change", () => {
    fitDrawing();
    if (picture) classify(picture);
  });
}

const drawing = new Drawing(byId("canvas"), (drawn) => {
  hidePreview();
  classify(drawn);
});
byId("clear").addEventListener("click", () => drawing.clear());
for (const name of ["pointerdown", "keydown"]) {
  byId("canvas").addEventListener(name, (event) => {
    if (event.key !== "Tab") byId("draw-invite").hidden = true;
  });
}

function fitDrawing() {
  const input = chosen()?.input;
  byId("draw").hidden = input?.channels !== 1;
  if (input) drawing.fit(input);
}

function tellHealth(text, isGood) {
  byId("health").textContent = text;
  byId("health").dataset.state = isGood ? "good" : "bad";
}

let asked = false;

// The box is opened once: who closes it again has seen it.
function askForKey() {
  tellHealth(hasKey() ? "The gateway does not accept this key." : "This gateway requires a key.", false);
  if (!asked) byId("key-box").open = true;
  asked = true;
}

function showChoice(state) {
  models = state.models.filter((model) => model.input);
  const before = byId("model").value;
  const names = models.map((model) => model.name);
  byId("model-choice").hidden = names.length < 2;
  show(byId("model"), names, () => names.map((name) => element("option", { value: name }, name)));
  const fallback = models.find((model) => model.default) ?? models[0];
  if (names.includes(before)) byId("model").value = before;
  else if (fallback) byId("model").value = fallback.name;
  fitDrawing();
}

function showHealth(state) {
  const missing = state.models.filter((model) => !answers(model));
  const words = missing.length ? `${missing.map((model) => model.name).join(", ")}: no version available` : "All models answer";
  const load = `${state.in_flight} of ${state.in_flight_limit} requests in flight`;
  tellHealth(`${state.draining ? "Shutting down" : words} · ${load}`, !state.draining && !missing.length);
  byId("release").textContent = `Sluice ${state.release}`;
}

let looking = false;

async function look() {
  if (looking) return;
  looking = true;
  try {
    const { body } = await call("page/state", { waitMs: LOOK_WAIT_MS });
    asked = false;
    showHealth(body);
    showChoice(body);
    showModels(body.models);
    showRefusals(body.refusals);
    showRollouts(body.rollouts, body.rollouts_gap);
  } catch (error) {
    if (error.status === 401) askForKey();
    else tellHealth(error.message, false);
  } finally {
    looking = false;
  }
}

listen();
look();
setInterval(() => {
  if (!document.hidden) look();
}, LOOK_EVERY_MS);
