// Compare: a grid over any settings, with its bill before anything is made.
import {$, api, duration, el, kept, tell, trying} from "./core.js";
import {heard} from "./form.js";
import {look} from "./picture.js";
import {onOpen} from "./sections.js";

const FIELDS = {
  "guidance.scale": "Guidance", steps: "Steps", solver: "Solver", spacing: "Spacing of steps", seed: "Seed", model: "Model",
  prompt: "Prompt", negative: "Not in the picture", "loras.0.weight": "Weight of the first adapter", strength: "Change",
  "guidance.rescale": "Guidance rescale", clip_skip: "CLIP skip", width: "Width", height: "Height", eta: "Eta (DDIM)",
};
const SIDES = {x: "Across", y: "Down", z: "Below each other"};
const LOOK = 700; // milliseconds between two looks at a grid
let axes = {};
let watching = 0;

export function start() {
  const was = kept.get("axes", {x: {field: "guidance.scale", values: "1, 3, 6"}, y: {field: "seed", values: "1, 2"}});
  setAxes(was);
  const stale = () => $("ldm-compare-told").replaceChildren(); // the bill was about something else
  $("ldm-axes").addEventListener("input", stale);
  heard(stale);
  onOpen("compare", () => trying(earlier));
  const now = kept.get("grid");
  if (now) trying(() => watch(now));
  families();
}

const setAxes = (told) => $("ldm-axes").replaceChildren(...Object.keys(SIDES).map((side) => axis(side, told[side])));

function axis(side, was) {
  const known = {...FIELDS, ...(was?.field && {[was.field]: FIELDS[was.field] || was.field})}; // another program may compare more
  const field = el("select", {"aria-label": `${SIDES[side]}: setting`}, el("option", {value: ""}, "nothing"),
    ...Object.entries(known).map(([name, label]) => el("option", {value: name}, label)));
  const values = el("input", {type: "text", placeholder: "values, with commas between", "aria-label": `${SIDES[side]}: values`});
  const replace = el("input", {type: "text", placeholder: "replace in the prompt (else the whole prompt)",
    "aria-label": `${SIDES[side]}: words of the prompt to replace`, hidden: true});
  field.value = was?.field || "";
  values.value = was?.values || "";
  replace.value = was?.replace || "";
  const keep = () => {
    replace.hidden = field.value !== "prompt";
    axes[side] = {field: field.value, values: values.value, replace: replace.value};
    kept.set("axes", axes);
  };
  for (const one of [field, values, replace]) one.addEventListener("input", keep);
  keep();
  return el("div", {class: "ldm-axis"}, el("span", {}, SIDES[side]), field, values, replace);
}

function asked() {
  const told = {};
  for (const [side, {field, values, replace}] of Object.entries(axes)) {
    if (!field) continue;
    const texts = values.split(values.includes("|") ? "|" : ",").map((one) => one.trim()).filter(Boolean);
    if (!texts.length) throw new Error(`${SIDES[side]}: no values are given for ${FIELDS[field] || field}.`);
    told[side] = {field, values: texts.map((one) => value(field, one))};
    if (field === "prompt" && replace.trim()) told[side].replace = replace.trim();
  }
  if (!Object.keys(told).length) throw new Error("Choose a setting to compare: across, down, or below each other.");
  return told;
}

const TEXTS = ["prompt", "negative", "model", "solver", "spacing"];
// As it is typed: with bars between where a value has a comma itself.
const typed = (values) => (values.some((one) => String(one).includes(",")) ? `${values.join(" | ")} |` : values.join(", "));
const value = (field, text) => (TEXTS.includes(field) || Number.isNaN(Number(text)) ? text : Number(text));

// From the form: first the bill, and then, when that was seen, the pictures.
export async function make(request) {
  $("ldm-compare-told").replaceChildren();
  const {count, ...alone} = request; // one picture in each cell
  const given = {request: alone, ...asked()};
  const bill = await api("/v1/grids", {json: {...given, dry: true}});
  const seconds = bill.seconds === null ? "how long it takes is not known yet" : `about ${duration(bill.seconds)}`;
  const begin = el("button", {class: "ldm-quiet", onclick: () => trying(async () => {
    $("ldm-compare-told").replaceChildren("");
    const grid = await api("/v1/grids", {json: {...given, dry: false}});
    await watch(grid.id);
  })}, "Make them");
  $("ldm-compare-told").replaceChildren(`${bill.pictures} pictures, ${bill.steps.toLocaleString()} steps, ${seconds}. `, begin);
  begin.focus();
}

const going = (cell) => ["waiting", "queued", "running"].includes(cell.state);

async function watch(id) {
  const mine = ++watching;
  kept.set("grid", id);
  for (let failed = 0; ; ) {
    try {
      const grid = await api(`/v1/grids/${id}`);
      if (mine !== watching) return;
      show(grid);
      if (!grid.cells.some(going)) return;
      failed = 0;
    } catch (error) {
      if (error.told?.status === 404) return kept.set("grid", null); // the server has forgotten it
      if (!failed++) tell(error.message, "error"); // it may be there again
    }
    await new Promise((done) => setTimeout(done, LOOK));
    if (mine !== watching) return;
  }
}

function show(grid) {
  const place = $("ldm-compare-grid");
  if (place.dataset.grid !== grid.id) {
    place.dataset.grid = grid.id;
    lay(place, grid);
  }
  const count = (states) => grid.cells.filter((one) => states.includes(one.state)).length;
  const [done, stopped] = [count(["done"]), count(["cancelled", "failed"])];
  const head = place.querySelector(".ldm-fields");
  head.querySelector("[role=status]").textContent = `${done} of ${grid.cells.length} made${stopped ? `, ${stopped} not finished` : ""}`;
  const under = String(grid.cells.some(going));
  if (head.dataset.going !== under) {
    head.dataset.going = under;
    head.lastElementChild.replaceWith(under === "true"
      ? el("button", {class: "ldm-quiet", onclick: () => trying(() => api(`/v1/grids/${grid.id}/cancel`, {method: "POST"}))}, "Cancel")
      : el("a", {class: "ldm-quiet", href: `/v1/grids/${grid.id}/sheet`, download: `${grid.id.slice(0, 8)}.png`}, "Save the sheet"));
  }
  for (const one of grid.cells) {
    const box = place.querySelector(`[data-cell="${one.x} ${one.y} ${one.z}"]`);
    const key = `${one.state} ${one.url}`;
    if (!box || box.dataset.key === key) continue;
    box.dataset.key = key;
    box.replaceChildren(cell(one));
    box.classList.toggle("ldm-partial", one.state !== "done" && Boolean(one.url));
  }
}

// The empty table, once.
function lay(place, grid) {
  const labels = (side) => grid.axes[side]?.values ?? [null];
  const name = (side) => FIELDS[grid.axes[side]?.field] || grid.axes[side]?.field || "";
  const text = (side, value) => (value === null ? "" : `${name(side)} ${value}`);
  const tables = labels("z").map((deep, z) => el("table", {class: "ldm-sheet-table"}, el("caption", {}, text("z", deep)),
    el("thead", {}, el("tr", {}, el("td", {}), ...labels("x").map((one) => el("th", {scope: "col"}, text("x", one))))),
    el("tbody", {}, labels("y").map((one, y) => el("tr", {}, el("th", {scope: "row"}, text("y", one)),
      ...labels("x").map((_, x) => el("td", {data: {cell: `${x} ${y} ${z}`}})))))));
  place.replaceChildren(el("div", {class: "ldm-fields"}, el("span", {role: "status"}), el("span", {})),
    el("div", {class: "ldm-scroll", tabindex: "0", role: "region", "aria-label": "The grid"}, tables));
}

function cell(one) {
  if (!one.url) return el("div", {class: "ldm-cell"}, one.state);
  const [, job, place] = one.url.match(/jobs\/(\w+)\/pictures\/(\d+)/) || [];
  const picture = {job, place: Number(place), url: one.url, prompt: "", seed: "", width: 64, height: 64};
  return el("button", {class: "ldm-frame", "aria-label": "Look at it", onclick: () => look(picture)},
    el("img", {src: one.url, alt: "", loading: "lazy"}));
}

async function earlier() {
  const {grids} = await api("/v1/grids");
  const texts = grids.map((grid) => Object.values(grid.axes).filter(Boolean).map((one) => `${FIELDS[one.field] || one.field}: ${one.values.join(", ")}`).join("; "));
  const when = ({created}) => new Date(created * 1000).toLocaleString([], {dateStyle: "medium", timeStyle: "short"});
  $("ldm-compare-earlier").replaceChildren(...grids.map((grid, i) => el("li", {}, el("button", {class: "ldm-quiet",
    onclick: () => trying(() => again(grid.id))}, `${when(grid)}: ${texts[i]}`))));
}

// One that was made before: its settings are in the form, to be changed and made anew, and it is shown.
async function again(id) {
  const {axes: were} = await api(`/v1/grids/${id}`);
  setAxes(Object.fromEntries(Object.entries(were).map(([side, one]) => [side, one && {...one, values: typed(one.values)}])));
  $("ldm-compare-told").replaceChildren();
  await watch(id);
}

// What `ldm compare` found, where this machine has it.
async function families() {
  const place = document.querySelector("#ldm-families > div");
  try {
    const {families: told} = await api("/v1/families");
    if (!told.length) throw new Error();
    place.replaceChildren(...told.map((one) => el("section", {}, el("h2", {}, one.title), el("p", {class: "ldm-lead"}, one.about || ""), table(one))));
  } catch {
    place.replaceChildren(el("p", {class: "ldm-lead"}, "None yet: run ldm compare FOLDER on this machine, and it is shown here."));
  }
}

const table = ({columns, rows}) => el("div", {class: "ldm-scroll", tabindex: "0", role: "region", "aria-label": "Families"}, el("table", {class: "ldm-table"},
  el("thead", {}, el("tr", {}, columns.map((one) => el("th", {scope: "col"}, one)))),
  el("tbody", {}, rows.map((row) => el("tr", {}, row.map((one) => el("td", {}, one)))))));

