// Models: what is here, what each thing is, bringing a file, another form of a model. Nothing is fetched.
import {$, api, bytes, el, tell, trying} from "./core.js";
import * as adapters from "./adapters.js";
import * as control from "./control.js";
import {files} from "./drop.js";
import {onOpen} from "./sections.js";
import * as suits from "./suits.js";

const LOOK = 700; // milliseconds between two looks at a conversion
const KINDS = {models: "model", adapters: "adapter", controls: "control"};
const SOURCES = {shipped: "comes with ldm", pulled: "fetched by you", folder: "from your folder", own: "brought or trained here", imported: "brought or trained here"};

export function start() {
  onOpen("models", () => trying(show));
  const place = $("ldm-models-bring");
  const input = el("input", {type: "file", accept: ".safetensors", class: "ldm-file"});
  place.append(el("label", {class: "ldm-quiet ldm-choose"}, "Choose a file", input));
  files(place, input, ([file]) => trying(() => brought(file)));
}

async function brought(file) {
  if (!/\.safetensors$/i.test(file.name)) throw new Error(`${file.name} is no .safetensors file: models and adapters are brought as such.`);
  $("ldm-models-told").textContent = `${file.name} (${bytes(file.size)}) is on its way ...`;
  try {
    const name = file.name.replace(/\.safetensors$/i, "");
    const told = await api(`/v1/imports?name=${encodeURIComponent(name)}`, {body: file, headers: {"content-type": "application/octet-stream"}});
    const fits = told.fits?.length ? `; it fits ${told.fits.join(", ")}` : "";
    $("ldm-models-told").textContent = `${told.name} is here: ${told.kind}${fits}.`;
  } catch (error) {
    $("ldm-models-told").textContent = "";
    throw error;
  }
  await changed();
}

async function changed() {
  await show();
  await Promise.all([adapters.refresh(), suits.refresh(), control.refresh()]);
  $("ldm-do-refresh").click();
}

async function show() {
  const [models, others, controls] = await Promise.all([api("/v1/models"), api("/v1/adapters"), api("/v1/controls")]);
  const lists = {Models: ["models", models.data.map((one) => ({...one, name: one.id}))],
    "Adapters and embeddings": ["adapters", others.adapters], Controls: ["controls", controls.controls]};
  $("ldm-models-list").replaceChildren(...Object.entries(lists).map(([title, [what, all]]) =>
    el("section", {}, el("h2", {}, title), all.length ? el("ul", {class: "ldm-cards"}, all.map((one) => card(what, one)))
      : el("p", {class: "ldm-lead"}, "None."))));
}

function card(what, one) {
  const removable = !["shipped", "pulled", "folder"].includes(one.source);
  const details = el("details", {}, el("summary", {}, "What it is"), el("div", {class: "ldm-recipe"}));
  details.addEventListener("toggle", () => details.open && trying(() => about(what, one.name, details.lastElementChild)));
  const act = (label, call) => el("button", {class: "ldm-quiet", onclick: () => trying(call)}, label);
  const facts = [one.kind, one.family === "own" ? "" : one.family, one.size ? bytes(one.size) : "", one.side ? `${one.side} px` : "", one.model ? `for ${one.model}` : "",
    one.word ? `say “${one.word}”` : "", SOURCES[one.source] || one.source].filter(Boolean);
  const actions = el("div", {class: "ldm-actions"});
  if (what === "adapters" && one.kind === "lora") actions.append(act("Use it", () => (adapters.add(one.name), tell(`${one.name} is in the form.`))));
  if (what === "models" && one.source !== "shipped") {
    const to = one.kind === "model folder" ? "file" : "folder";
    actions.append(act(to === "file" ? "Make one file of it" : "Make a folder of it", () => convert(one.name, to)));
  }
  if (removable) actions.append(act("Remove", () => remove(what, one.name)));
  return el("li", {class: "ldm-card", data: {name: one.name}}, el("strong", {}, one.name), el("span", {class: "ldm-lead"}, facts.join(" · ")), actions, details);
}

// What whoever chooses wants to know comes first, in plain words; what its maker wants to know is folded away.
const PLAIN = {kind: "what it is", family: "family", model: "made for", word: "its word", words: "its words", fits: "fits", side: "draws best at", controls: "its controls",
  size: "size of the file", parameters: "numbers it learned", licence: "licence", problem: "problem"};
const KNOWN = ["name", "source"]; // the card shows them

async function about(what, name, place) {
  const told = await api(`/v1/about?${KINDS[what]}=${encodeURIComponent(name)}`);
  const row = (label, key) => el("tr", {}, el("th", {scope: "row"}, label), el("td", {}, text(key, told[key])));
  const table = (rows) => el("table", {}, el("tbody", {}, rows));
  const there = Object.keys(told).filter((key) => !empty(told[key]) && !KNOWN.includes(key));
  const rest = there.filter((key) => !(key in PLAIN));
  place.replaceChildren(table(Object.entries(PLAIN).filter(([key]) => there.includes(key)).map(([key, label]) => row(label, key))),
    el("details", {}, el("summary", {}, "Details of the file"), table(rest.map((key) => row(key.replaceAll("_", " "), key)))));
}

const empty = (value) => value === null || value === "" || value === false || (typeof value === "object" && !Object.keys(value).length);

function text(key, value) {
  if (key === "size") return bytes(value);
  if (key === "side") return `${value} px`;
  if (key === "family" && value === "own") return "made with ldm";
  if (key === "fits") return value.map((one) => (typeof one === "string" ? one : `${one.model}: ${one.fits ? "yes" : one.why || "no"}`)).join("; ");
  if (typeof value === "number") return value.toLocaleString();
  if (Array.isArray(value)) return value.map((one) => (typeof one === "object" ? JSON.stringify(one) : one)).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([name, one]) => `${name}: ${typeof one === "number" ? one.toLocaleString() : one}`).join("\n");
  return String(value);
}

async function convert(name, to) {
  const begun = await api("/v1/conversions", {json: {model: name, to}});
  $("ldm-models-told").textContent = `${name} is being made into a ${to} ...`;
  for (;;) {
    await new Promise((done) => setTimeout(done, LOOK));
    const told = await api("/v1/conversions").catch(() => null); // the server may be there again
    if (!told) continue;
    const one = told.conversions.find((each) => each.id === begun.id);
    if (!one || one.state !== "running") {
      $("ldm-models-told").textContent = one?.state === "done" ? `${one.name} is there.` : "";
      if (one?.error) throw new Error([one.error.what, one.error.why, one.error.fix].join(" "));
      return changed();
    }
  }
}

async function remove(what, name) {
  if (!confirm(`Move ${name} to the server's trash folder?`)) return;
  await api(`/v1/${what}/${what === "models" ? name : encodeURIComponent(name)}`, {method: "DELETE"});
  await changed();
}
