// Adapters of a request, each with a slider.
import {$, api, el, kept, trying} from "./core.js";

let here = []; // adapters that this server has
let uses = kept.get("adapters", []); // {name, weight}

export const chosen = () => uses.map((one) => ({...one}));
const listeners = [];
export const onChange = (call) => listeners.push(call);

export function choose(loras) {
  uses = loras.filter((one) => one.name).map((one) => ({weight: 1, ...one})); // with what else is said of it
  show();
}

export function add(name, weight = 1) {
  if (!uses.some((one) => one.name === name)) uses.push({name, weight});
  show();
}

export async function refresh() {
  const told = await trying(() => api("/v1/adapters"));
  here = told?.adapters || [];
  show();
}

function changed() {
  kept.set("adapters", uses);
  listeners.forEach((call) => call());
}

function show() {
  const rows = $("ldm-adapter-rows");
  const select = $("ldm-adapter-add");
  if (!rows || !select) return;
  changed();
  rows.replaceChildren(...uses.map(row));
  const others = here.filter((one) => one.kind === "lora" && !uses.some((use) => use.name === one.name));
  const labels = others.map((one) => el("option", {value: one.name}, one.model ? `${one.name} (${one.model})` : one.name));
  select.replaceChildren(el("option", {value: ""}, others.length ? "an adapter ..." : "none left"), ...labels);
  select.onchange = () => select.value && add(select.value);
}

function row(use) {
  const told = el("output", {}, use.weight.toFixed(2));
  const slider = el("input", {type: "range", min: "-1", max: "2", step: "0.05", "aria-label": `Weight of ${use.name}`});
  slider.value = use.weight;
  slider.addEventListener("input", () => {
    use.weight = Number(slider.value);
    told.textContent = use.weight.toFixed(2);
    changed();
  });
  const word = here.find((one) => one.name === use.name)?.word;
  return el("li", {}, el("span", {class: "ldm-name", title: word ? `say: ${word}` : use.name}, use.name), slider, told,
    el("button", {class: "ldm-icon", "aria-label": `Without ${use.name}`, onclick: () => {
      uses = uses.filter((one) => one !== use);
      show();
    }}, "×"), word ? el("small", {}, `say “${word}”`) : null);
}
