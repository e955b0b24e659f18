// Calls to the gateway that served this page; no other host is ever asked.

let key = "";

export const useKey = (given) => {
  key = given.trim();
};
export const hasKey = () => key !== "";

export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// Longer than a gateway takes by default: who is silent for so long is gone.
const WAIT_MS = 60_000;

export async function call(path, { waitMs = WAIT_MS, ...options } = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  // A browser refuses to send what no header can hold, and does not say so.
  if (/[^!-~]/.test(key)) throw new Refused(401, "A key has only ASCII characters and no spaces.");
  let response;
  let text;
  try {
    response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(waitMs), ...options, headers });
    text = await response.text();
  } catch (error) {
    throw new Refused(0, error.name === "TimeoutError" ? "The gateway does not answer." : "The gateway cannot be reached.");
  }
  const body = object(text);
  if (!response.ok) throw new Refused(response.status, body?.detail ?? body?.error ?? `The gateway answered ${response.status}.`);
  if (!body) throw new Refused(response.status, "What answers here is not a Sluice gateway.");
  return { body, headers: response.headers };
}

// The object that a text is in JSON; null if it is none, as a proxy's page.
function object(text) {
  try {
    const found = JSON.parse(text);
    return typeof found === "object" ? found : null;
  } catch {
    return null;
  }
}

// "decode;dur=1.2, queue;dur=0.1" -> [["decode", 1.2], ["queue", 0.1]]
export function serverTiming(header) {
  return (header ?? "").split(",").flatMap((part) => {
    const found = /^\s*([\w-]+);dur=([\d.]+)/.exec(part);
    return found ? [[found[1], Number(found[2])]] : [];
  });
}
