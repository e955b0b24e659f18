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

export async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options, headers });
  } catch {
    throw new Refused(0, "The gateway cannot be reached.");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, body.detail ?? body.error ?? response.statusText);
  return { body, headers: response.headers };
}

// "decode;dur=1.2, queue;dur=0.1" -> [["decode", 1.2], ["queue", 0.1]]
export function serverTiming(header) {
  return (header ?? "").split(",").flatMap((part) => {
    const found = /^\s*([\w-]+);dur=([\d.]+)/.exec(part);
    return found ? [[found[1], Number(found[2])]] : [];
  });
}
