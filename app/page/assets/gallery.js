// Gallery: everything that was made, the newest first; search, filter, a closer look, the trash.
import {$, api, calm, el, trying} from "./core.js";
import {actions, look, onRemoved} from "./picture.js";
import {current, onOpen} from "./sections.js";
import {onFinished} from "./stage.js";

const PAGE = 60;
let pictures = [];
let asked = 0; // the newest question: answers to older ones are not shown

export function start() {
  const again = () => trying(() => load(false));
  onOpen("gallery", again);
  onFinished(() => current() === "gallery" && again());
  onRemoved(() => current() === "gallery" && again());
  $("ldm-gallery-search").addEventListener("submit", (event) => event.preventDefault());
  $("ldm-gallery-query").addEventListener("input", calm(0.2, again));
  for (const name of ["model", "partial", "trash"]) $(`ldm-gallery-${name}`).addEventListener("change", again);
  $("ldm-gallery-more").addEventListener("click", () => trying(() => load(true)));
  $("ldm-gallery-empty").addEventListener("click", () => trying(empty));
  $("ldm-gallery-grid").addEventListener("keydown", arrows);
}

async function load(more) {
  const trash = $("ldm-gallery-trash").checked;
  const query = new URLSearchParams({query: $("ldm-gallery-query").value, limit: String(PAGE), trash: String(trash)});
  if ($("ldm-gallery-model").value) query.set("model", $("ldm-gallery-model").value);
  if ($("ldm-gallery-partial").checked) query.set("partial", "true");
  const last = pictures.at(-1);
  if (more && last) query.set("before", `${last.job}/${last.place}`);
  const mine = ++asked;
  const told = await api(`/v1/pictures?${query}`);
  if (mine !== asked) return;
  pictures = more ? [...pictures, ...told.pictures] : told.pictures;
  const cards = told.pictures.map((picture) => card(picture, trash));
  if (more) $("ldm-gallery-grid").append(...cards);
  else $("ldm-gallery-grid").replaceChildren(...cards);
  const searched = query.get("query") || query.get("model") || trash || query.get("partial");
  if (!told.total) $("ldm-gallery-grid").replaceChildren(el("p", {class: "ldm-lead"}, searched ? "Nothing matches." : "Nothing has been made yet."));
  $("ldm-gallery-total").textContent = told.total === 1 ? "1 picture" : `${told.total.toLocaleString()} pictures`;
  $("ldm-gallery-more").hidden = pictures.length >= told.total || !told.pictures.length;
  $("ldm-gallery-empty").hidden = !trash || !told.total;
  models(told.models);
}

function models(names) {
  const select = $("ldm-gallery-model");
  const now = select.value;
  const all = [...new Set([...names, ...(now ? [now] : [])])];
  select.replaceChildren(el("option", {value: ""}, "any"), ...all.map((name) => el("option", {value: name}, name)));
  select.value = now;
}

function card(picture, trashed) {
  const image = el("img", {src: picture.url, alt: picture.prompt || "No prompt", loading: "lazy", width: String(picture.width),
    height: String(picture.height)});
  const frame = el("button", {class: "ldm-frame", "aria-label": `Look at: ${picture.prompt || "no prompt"}, seed ${picture.seed}`,
    onclick: () => look(picture, pictures)}, image);
  return el("figure", {class: `ldm-picture${picture.partial ? " ldm-partial" : ""}`, data: {picture: `${picture.job}/${picture.place}`}},
    frame, el("figcaption", {}, el("span", {class: "ldm-name", title: picture.prompt}, picture.prompt || "no prompt"),
      el("span", {}, `seed ${picture.seed}, ${picture.model}`)), trashed ? actions(picture, {trashed}) : null);
}

async function empty() {
  if (!confirm("Remove what is in the trash for good?")) return;
  await api("/v1/trash", {method: "DELETE"});
  await load(false);
}

// Arrows go from picture to picture.
function arrows(event) {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!step || !event.target.classList.contains("ldm-frame")) return;
  const frames = [...$("ldm-gallery-grid").querySelectorAll(".ldm-frame")];
  frames[frames.indexOf(event.target) + step]?.focus();
  event.preventDefault();
}
