// The form: its values to a request, a request to its values, and what of it outlives a reload.
import {$, calm, kept, leaf, setLeaf} from "./core.js";
import * as adapters from "./adapters.js";

const EMPTY = {model: "emoji", solver: "auto", spacing: "auto", exact: false, prompt: "", negative: ""};
let last = {}; // name -> value, as they are now
let next = null; // values that wait to be filled in

export function requestOf(names, given) {
  const values = Object.fromEntries(names.map((name, i) => [name, given[i]]));
  const request = {};
  for (const [name, value] of Object.entries(values)) {
    if (name === "best_of" || value === null || value === undefined || value === "") continue;
    if (value === false || (value === "auto" && (name === "solver" || name === "spacing"))) continue;
    setLeaf(request, name, value);
  }
  request.prompt = values.prompt || "";
  if (values["hires.scale"] === null || values["hires.scale"] === undefined) delete request.hires;
  if (!request.variation) delete request.variation_seed, delete request.variation;
  const loras = adapters.chosen();
  if (loras.length) request.loras = loras;
  return request;
}

export const bestOf = () => Math.max(1, Math.round(last.best_of || 1));
export const promptNow = () => last.prompt || "";
export const modelNow = () => last.model || EMPTY.model;
export const valueOf = (name) => last[name];

// Kept as they change; `then` hears of it.
const listeners = [];
export const heard = (call) => listeners.push(call);
const told = calm(0.15, () => listeners.forEach((call) => call(last)));
export function keep(names, given) {
  last = Object.fromEntries(names.map((name, i) => [name, given[i]]));
  kept.set("form", last);
  told();
}

export function restored(names) {
  last = {...EMPTY, ...kept.get("form", {})};
  told();
  return names.map((name) => (last[name] === undefined ? null : last[name]));
}

// A request fills the form: what it does not say goes back to what suits the model.
export function fill(request, {onlyPrompt = false} = {}) {
  next = onlyPrompt ? {...last, prompt: request.prompt} : {...EMPTY};
  if (!onlyPrompt) {
    for (const name of Object.keys({...EMPTY, ...last, ...FIELDS})) {
      const value = leaf(request, name);
      if (value !== undefined && typeof value !== "object") next[name] = value;
    }
    adapters.choose(request.loras || []);
  }
  $("ldm-do-fill").click();
}

// Called by gradio for the values to show.
export function filling(names) {
  last = {...last, ...Object.fromEntries(names.map((name) => [name, next?.[name] ?? null]))};
  kept.set("form", last);
  told();
  return names.map((name) => last[name]);
}

const FIELDS = Object.fromEntries(
  ["width", "height", "steps", "guidance.scale", "seed", "count", "variation_seed", "variation", "hires.scale",
   "hires.strength", "guidance.rescale", "clip_skip"].map((name) => [name, null]));
