// The form: its values to a request, a request to its values, and what of it outlives a reload.
import {$, calm, kept, leaf, setLeaf} from "./core.js";
import * as adapters from "./adapters.js";

const CHOICES = ["model", "solver", "spacing"];
const EMPTY = {model: "emoji", solver: "auto", spacing: "auto", exact: false, prompt: "", negative: ""};
let last = {}; // name -> value, as they are now
let there = false; // before that, values are those that gradio begins with
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
  if (!there) return;
  // A choice that is not among those that are known yet shows as none, and is meant all the same.
  last = Object.fromEntries(names.map((name, i) => [name, CHOICES.includes(name) ? given[i] || last[name] : given[i]]));
  kept.set("form", last);
  told();
}

// What was set before the page was loaded again.
export function restore() {
  next = {...EMPTY, ...kept.get("form", {})};
  there = true;
  $("ldm-do-fill").click();
  $("ldm-do-refresh").click();
}

// Values as they are, for components that have just been given other choices.
export const again = (names) => names.map((name) => last[name] ?? null);

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
  document.body.classList.add("ldm-restored");
  return again(names);
}

const FIELDS = Object.fromEntries(
  ["width", "height", "steps", "guidance.scale", "seed", "count", "variation_seed", "variation", "hires.scale",
   "hires.strength", "guidance.rescale", "clip_skip"].map((name) => [name, null]));
