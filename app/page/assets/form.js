// The form: its values to a request, a request to its values, and what of it outlives a reload.
import {$, calm, el, kept, leaf, put, setLeaf, tell} from "./core.js";
import * as adapters from "./adapters.js";

// Where a section takes a field itself; `taking` is called with the request when a form is filled.
const SECTIONS_TAKE = ["image", "mask", "strength", "fill", "mask_blur", "only_masked", "pad", "controls"];
const CHOICES = ["model", "solver", "spacing"];
const EMPTY = {model: "emoji", solver: "auto", spacing: "auto", exact: false, prompt: "", negative: ""};
let last = {}; // name -> value, as they are now
let there = false; // before that, values are those that gradio begins with
let rest = {}; // fields of the request that filled the form, for which the page has no place
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
  for (const [name, value] of Object.entries(rest)) {
    request[name] = plain(value) && plain(request[name]) ? {...value, ...request[name]} : value;
  }
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
  rest = kept.get("rest", {});
  showRest();
  there = true;
  $("ldm-do-fill").click();
  $("ldm-do-refresh").click();
}

// Values as they are, for components that have just been given other choices.
export const again = (names) => names.map((name) => last[name] ?? null);

const plain = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

// Some fields; the others stay.
export function set(values) {
  next = {...last, ...values};
  $("ldm-do-fill").click();
}

// A request fills the form: what it does not say goes back to what suits the model, and what has no field here is kept
// and shown, so that it is the same request. `taken`: fields that a section of the page has taken.
export function fill(request, taken = []) {
  const {count, ...others} = request;
  if (count > 1) others.count = count; // one is what nobody has to say
  request = others;
  next = {...EMPTY};
  rest = structuredClone(request);
  for (const name of [...Object.keys({...EMPTY, ...last, ...FIELDS}), "loras", ...taken]) {
    const value = leaf(request, name);
    if (value !== undefined && typeof value !== "object" && !taken.includes(name)) next[name] = value;
    drop(rest, name.split("."));
  }
  if (next.seed !== undefined && !Number.isSafeInteger(next.seed)) {
    tell("The seed has more digits than a browser keeps: what is made will not be quite the same.", "error");
  }
  adapters.choose(request.loras || []);
  kept.set("rest", rest);
  showRest();
  $("ldm-do-fill").click();
}

export const takenBy = (section) => (section === "create" ? [] : SECTIONS_TAKE.filter((name) => (name === "controls") === (section === "control")));

function drop(told, [first, ...others]) {
  if (!others.length) delete told[first];
  else if (plain(told[first])) {
    drop(told[first], others);
    if (!Object.keys(told[first]).length) delete told[first];
  }
}

function showRest() {
  const chips = Object.entries(rest).map(([name, value]) => el("button", {class: "ldm-quiet", title: `Without ${name}: ${JSON.stringify(value).slice(0, 300)}`,
    onclick: () => {
      delete rest[name];
      kept.set("rest", rest);
      showRest();
    }}, `${name} ${["string", "number"].includes(typeof value) ? String(value).slice(0, 24) : "..."} ×`));
  put($("ldm-rest"), chips.length ? el("small", {}, "Also set: ") : null, ...chips);
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
