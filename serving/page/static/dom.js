// Builds elements from text only: nothing that came from elsewhere is ever parsed as HTML.

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// The Content-Security-Policy forbids style attributes in markup; this way is allowed.
export function wide(made, share) {
  made.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return made;
}

export const percent = (share, digits = 0) => `${(share * 100).toFixed(digits)} %`;
export const count = (number) => number.toLocaleString("en");
export const milliseconds = (number) => `${number < 10 ? number.toFixed(1) : number.toFixed(0)} ms`;

// Replaces what `place` holds only if it is to show something else, so that focus and selections stay.
export function show(place, signature, build) {
  const now = JSON.stringify(signature);
  if (place.dataset.shown === now) return;
  place.dataset.shown = now;
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  place.replaceChildren(...build());
  if (focused) place.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
}
