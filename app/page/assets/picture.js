// What can be done with a picture that was made, and a closer look at it.
import {$, api, el, tell, trying, upload} from "./core.js";
import {fill, takenBy} from "./form.js";
import {open} from "./sections.js";

const removed = [];
export const onRemoved = (call) => removed.push(call);

export function actions(picture, {trashed = false} = {}) {
  const act = (label, call, title) => el("button", {class: "ldm-quiet", title: title || label, onclick: call}, label);
  if (trashed) return el("div", {class: "ldm-actions"}, act("Restore", () => restore(picture)));
  return el("div", {class: "ldm-actions"},
    act("Use settings", () => useSettings(picture), "Fill the form with the settings that made it"),
    act("Edit", () => sendTo("edit", picture), "Paint on it"),
    act("Control", () => sendTo("control", picture), "Let it guide another picture"),
    el("a", {class: "ldm-quiet", href: picture.url, download: `${picture.job.slice(0, 8)}-${picture.place}.png`}, "Save"),
    act("Delete", () => remove(picture), "To the trash"));
}

async function useSettings(picture) {
  const told = await trying(() => api(`${picture.url}/recipe`));
  if (!told) return;
  await use(told.asked);
  close();
  tell("The form has its settings.");
}

// A whole request: its pictures go to the section that works with them.
export async function use(request) {
  const section = request.controls?.length ? "control" : request.image ? "edit" : "create";
  if (section !== "create") await takers[section]?.(request);
  fill(request, takenBy(section));
  open(section);
}

const takers = {};
export const takes = (section, call) => (takers[section] = call);

const receivers = {};
export const receives = (section, call) => (receivers[section] = call);

// The picture becomes an upload, and the section takes it.
export async function sendTo(section, picture) {
  const brought = await trying(async () => upload(await api(picture.url)));
  if (!brought) return;
  close();
  open(section);
  receivers[section]?.({...brought, url: picture.url});
}

async function remove(picture) {
  const gone = await trying(async () => (await api(picture.url, {method: "DELETE"}), true));
  if (!gone) return;
  close();
  const shown = [...document.querySelectorAll(`[data-picture="${picture.job}/${picture.place}"]`)];
  shown.forEach((one) => (one.hidden = true));
  const toasts = $("ldm-toasts");
  const back = el("button", {class: "ldm-quiet", onclick: () => {
    restore(picture);
    shown.forEach((one) => (one.hidden = false));
    back.parentElement.remove();
  }}, "Undo");
  toasts.append(el("div", {class: "ldm-toast"}, el("p", {}, "It is in the trash."), back));
  setTimeout(() => back.parentElement?.remove(), 8000);
  removed.forEach((call) => call());
}

async function restore(picture) {
  await trying(() => api(`${picture.url}/restore`, {method: "POST"}));
  removed.forEach((call) => call());
}

// A closer look: arrows go to the neighbours; Escape and the browser's Back close, for it is a step of the history.
let around = [];
export function look(picture, neighbours = [picture]) {
  around = neighbours;
  let dialog = $("ldm-look");
  if (!dialog) {
    dialog = el("dialog", {id: "ldm-look", "aria-label": "A picture"});
    dialog.addEventListener("keydown", (event) => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (step && around.length > 1) go(step);
    });
    dialog.addEventListener("click", (event) => event.target === dialog && close());
    dialog.addEventListener("close", () => history.state?.look && history.back());
    window.addEventListener("popstate", close);
    dialog.append(el("div", {class: "ldm-look-bar"}, el("button", {class: "ldm-icon", "aria-label": "The one before", onclick: () => go(-1)}, "‹"),
      el("button", {class: "ldm-icon", "aria-label": "The next one", onclick: () => go(1)}, "›"),
      el("button", {class: "ldm-icon", "aria-label": "Close", onclick: close}, "×")),
      el("div", {class: "ldm-looked"}));
    document.body.append(dialog);
  }
  show(dialog, picture);
  for (const one of dialog.querySelectorAll('.ldm-look-bar [aria-label^="The"]')) one.hidden = around.length < 2;
  if (dialog.open) return;
  dialog.showModal();
  if (!history.state?.look) history.pushState({look: true}, ""); // it is still there after a reload
}

function go(step) {
  const dialog = $("ldm-look");
  const at = around.findIndex((one) => one.url === dialog.dataset.url) + step;
  show(dialog, around[(at + around.length) % around.length]);
}

async function show(dialog, picture) {
  dialog.dataset.url = picture.url;
  const told = el("div", {class: "ldm-recipe"}, "...");
  dialog.querySelector(".ldm-looked").replaceChildren(
    el("img", {src: picture.url, alt: picture.prompt || `seed ${picture.seed}`, class: picture.width <= 256 ? "ldm-pixels" : ""}),
    actions(picture), told);
  const recipe = await trying(() => api(`${picture.url}/recipe`));
  if (recipe && dialog.dataset.url === picture.url) told.replaceChildren(recipeTable(recipe.recipe, recipe.asked));
}

const SHOWN = ["prompt", "negative", "seed", "steps", "solver", "spacing", "width", "height"];
function recipeTable(recipe, asked) {
  const rows = SHOWN.filter((name) => recipe[name] !== null && recipe[name] !== undefined && recipe[name] !== "")
    .map((name) => el("tr", {}, el("th", {scope: "row"}, name), el("td", {}, String(recipe[name]))));
  const row = (name, text) => text && rows.push(el("tr", {}, el("th", {scope: "row"}, name), el("td", {}, text)));
  row("guidance", recipe.guidance?.scale !== undefined ? String(recipe.guidance.scale) : "");
  row("model", asked.model || "");
  row("adapters", (asked.loras || []).map(({name, weight = 1}) => `${name} ${weight}`).join(", "));
  row("controls", (asked.controls || []).map(({model, hint = "none", weight = 1}) => `${model} (${hint}) ${weight}`).join(", "));
  row("edited", asked.image ? (asked.mask ? "where it was painted" : "as a whole") : "");
  return el("div", {}, el("table", {}, el("tbody", {}, rows)),
    el("details", {}, el("summary", {}, "The whole recipe"), el("pre", {tabindex: "0"}, JSON.stringify(recipe, null, 1))));
}

function close() {
  $("ldm-look")?.close();
}
