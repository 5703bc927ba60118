// What all scripts of the page share: the API, elements, messages, and what the browser keeps.
// Texts that came from anybody are only ever set as text: no markup is made of them.

class Refused extends Error {
  constructor(told) {
    super(sentence(told.title, told.detail, told.fix));
    this.told = told;
  }
}

// Fields as they are called on the page.
const LABELS = {
  "guidance.scale": "Guidance", "guidance.rescale": "Guidance rescale", "hires.scale": "Second pass: enlarge by", "hires.strength": "Second pass: strength",
  clip_skip: "CLIP skip", variation_seed: "Variation seed", variation: "Variation", width: "Width", height: "Height", steps: "Steps", seed: "Seed",
  count: "Pictures x Best of", strength: "Change", mask_blur: "Soft edge", prompt: "Prompt", negative: "Not in the picture", token: "Word and kind",
};

// What, why and fix as one text: what is said twice is said once, and fields have their labels.
export function sentence(what = "", why = "", fix = "") {
  const end = (text) => (/[.!?]$/.test(text) || !text ? text : `${text}.`);
  const plain = what.replace(/ \((?:in|at) the (?:call|request)\)/g, "");
  const [name, ...after] = plain.split(": ");
  const field = name.replace(/^controls\.(\d+)\.(\w+)$/, (_, place, key) => `Control ${Number(place) + 1}, ${key}`);
  const said = after.length && (LABELS[name] || field !== name) ? `${LABELS[name] || field}: ${after.join(": ")}` : plain;
  const reason = why.replace(/ \((?:in|at) the (?:call|request)\)/g, "");
  const again = plain.includes(reason.split(": ").slice(1).join(": ") || "\0") || plain.includes(reason);
  const mend = /^change [\w.]+ so that it fits$/.test(fix) ? "" : fix;
  const text = [said, again ? "" : reason, mend].filter(Boolean).map((one) => end(one[0].toUpperCase() + one.slice(1)));
  return text.join(" ");
}

export async function api(path, {method, json, body, headers} = {}) {
  const options = {method: method || (json !== undefined || body !== undefined ? "POST" : "GET"), headers: headers || {}};
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers["content-type"] = "application/json";
  } else if (body !== undefined) options.body = body;
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused({title: "The server does not answer.", fix: "Look whether ldm serve still runs."});
  }
  const kind = answer.headers.get("content-type") || "";
  if (!answer.ok) {
    const told = kind.includes("json") ? await answer.json() : {title: `The server says ${answer.status}.`};
    throw new Refused(told);
  }
  if (kind.includes("json")) return answer.json();
  return answer.status === 204 ? null : answer.blob();
}

// An upload of a picture: its id, width and height.
export function upload(blob) {
  return api("/v1/uploads", {body: blob, headers: {"content-type": blob.type || "application/octet-stream"}});
}

export function el(tag, told = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(told)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...inside.flat().filter((one) => one !== null && one !== undefined));
  return made;
}

// What a place shows from now on; what is null is left out.
export const put = (place, ...inside) => place.replaceChildren(...inside.flat().filter((one) => one !== null && one !== undefined));

export const $ = (id) => document.getElementById(id);

// A message that goes away by itself, or when it is pressed.
export function tell(text, kind = "note") {
  const toasts = $("ldm-toasts");
  if (!toasts) return;
  const one = el("div", {class: `ldm-toast ldm-${kind}`}, el("p", {}, text), el("button", {
    class: "ldm-icon", "aria-label": "Close", onclick: () => one.remove()}, "×"));
  toasts.append(one);
  setTimeout(() => one.remove(), kind === "error" ? 20000 : 6000);
}

// Runs something; what goes wrong is told.
export async function trying(doing) {
  try {
    return await doing();
  } catch (error) {
    if (!(error instanceof Refused)) console.error(error);
    tell(error.message || String(error), "error");
    return undefined;
  }
}

// Each tab of the browser keeps its own; a new one begins with what was kept last.
export const kept = {
  get(name, other = null) {
    try {
      return JSON.parse(sessionStorage.getItem(`ldm-${name}`) ?? localStorage.getItem(`ldm-${name}`)) ?? other;
    } catch {
      return other;
    }
  },
  set(name, value) {
    for (const place of ["sessionStorage", "localStorage"]) {
      try {
        window[place].setItem(`ldm-${name}`, JSON.stringify(value));
      } catch { // full, or a browser that keeps nothing: better nothing than what was before
        try {
          window[place].removeItem(`ldm-${name}`);
        } catch { /* the page works all the same */ }
      }
    }
  },
};

// Calls a function once things have been quiet for a while.
export function calm(seconds, call) {
  let waiting;
  return (...given) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => call(...given), seconds * 1000);
  };
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown time";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  let at = 0;
  while (count >= 1000 && at < 3) [count, at] = [count / 1000, at + 1];
  return `${count.toPrecision(3).replace(/\.?0+$/, "")} ${units[at]}`;
}

export function leaf(told, path) {
  return path.split(".").reduce((at, key) => (at === null || at === undefined ? undefined : at[key]), told);
}

export function setLeaf(told, path, value) {
  const keys = path.split(".");
  const last = keys.pop();
  let at = told;
  for (const key of keys) at = at[key] ??= {};
  at[last] = value;
}
