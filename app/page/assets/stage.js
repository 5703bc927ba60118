// What is being made: progress, previews while it is drawn, and the pictures. A reload finds it again.
import {$, api, el, kept, tell, trying} from "./core.js";
import {actions} from "./picture.js";

let now = null; // {id, source, section, best}
const finished = [];
export const onFinished = (call) => finished.push(call);
export const last = () => kept.get("last");

const stage = () => document.querySelector(".ldm-stage");

export async function make(request, {best = 1, section = "create", before = null} = {}) {
  const job = await trying(() => api("/v1/jobs", {json: request}));
  if (job) watch(job, {best, section, before});
}

export function watch(job, more) {
  now?.source?.close();
  now = {id: job.id, count: job.count, ...more};
  kept.set("now", {id: job.id, ...more});
  $("ldm-welcome")?.remove();
  $("ldm-now").replaceChildren(...Array.from({length: job.count}, (_, place) => waiting(job, place)));
  for (const made of job.pictures) shown(made);
  progress({state: job.state, ahead: job.ahead, ...job.progress});
  const source = new EventSource(`/v1/jobs/${job.id}/events?previews=true`);
  now.source = source;
  const on = (kind, call) => source.addEventListener(kind, (event) => call(JSON.parse(event.data)));
  on("job", (told) => told.pictures.forEach(shown));
  on("progress", progress);
  on("preview", ({place, png}) => preview(place, `data:image/png;base64,${png}`));
  on("picture", shown);
  on("end", (told) => ended(job.id, told, source));
  document.body.classList.add("ldm-busy");
}

export function cancel() {
  if (now) trying(() => api(`/v1/jobs/${now.id}/cancel`, {method: "POST"}));
}

// What was under way, or made last, before the page was loaded again.
export async function again() {
  const was = kept.get("now");
  if (!was) return;
  try {
    const {id, ...more} = was;
    watch(await api(`/v1/jobs/${id}`), more);
  } catch {
    kept.set("now", null); // the server has forgotten it
  }
}

function waiting(job, place) {
  const side = job.request.width && job.request.height ? `${job.request.width} / ${job.request.height}` : "1";
  return el("figure", {class: "ldm-picture ldm-waiting", data: {place: String(place), picture: `${job.id}/${place}`}, style: `--side: ${side}`},
    el("div", {class: "ldm-frame"}, el("div", {class: "ldm-noise", "aria-hidden": "true"})));
}

const figure = (place) => document.querySelector(`#ldm-now [data-place="${place}"]`);

function preview(place, src) {
  const frame = figure(place)?.querySelector(".ldm-frame");
  if (!frame || figure(place).classList.contains("ldm-done")) return;
  let image = frame.querySelector("img");
  if (!image) frame.replaceChildren((image = el("img", {alt: "The picture as it is being drawn", class: "ldm-preview"})));
  image.src = src;
}

// A picture in its place, as soon as it can be seen; told twice, it is shown once.
function shown(made) {
  const one = figure(made.place);
  const kind = made.partial ? "partial" : "whole";
  if (!one || [kind, "whole"].includes(one.dataset.shown)) return one?.showing;
  one.dataset.shown = kind;
  return (one.showing = show(one, made, kind));
}

async function show(one, made, kind) {
  const {id} = now;
  const url = `/v1/jobs/${id}/pictures/${made.place}`;
  const image = el("img", {src: `${url}?${kind}`, alt: altOf(made), width: String(made.width),
    height: String(made.height)});
  await image.decode().catch(() => {}); // the preview stays until it can be shown
  if (now?.id !== id || one.dataset.shown !== kind) return;
  const frame = el("button", {class: "ldm-frame", "aria-label": `Look at picture ${made.place + 1}`}, image);
  const picture = {job: id, place: made.place, url, seed: made.seed, width: made.width, height: made.height};
  frame.addEventListener("click", () => import("./picture.js").then((open) => open.look(picture)));
  one.classList.remove("ldm-waiting");
  one.classList.toggle("ldm-partial", made.partial);
  one.classList.toggle("ldm-done", !made.partial);
  one.replaceChildren(frame, el("figcaption", {}, el("span", {}, `seed ${made.seed}${made.partial ? ", not finished" : ""}`),
    actions(picture)), ...(made.notes || []).map((note) => el("p", {class: "ldm-note"}, note)));
  kept.set("last", picture);
  if (now.before) import("./difference.js").then((more) => more.show(one, now.before, picture));
}

const altOf = (made) => `Picture ${made.place + 1}, seed ${made.seed}`;

function progress(told) {
  const bar = stage().querySelector(".ldm-progress");
  bar.hidden = false;
  const said = told.state === "queued" && told.ahead !== undefined
    ? (told.ahead ? `${told.ahead} before yours` : "it is next")
    : told.steps ? `${STAGES[told.stage] || told.stage || "drawing"}, step ${told.step + 1} of ${told.steps}` +
      (told.count > 1 ? `; ${told.made} of ${told.count} pictures` : "") : "beginning";
  bar.querySelector("[role=status]").textContent = said;
  const whole = told.steps ? (told.step + 1) / told.steps : 0;
  bar.querySelector("progress").value = whole;
}

const STAGES = {sample: "drawing", hires: "second pass", decode: "decoding"};

async function ended(id, told, source) {
  source.close();
  if (now?.id !== id) return;
  stage().querySelector(".ldm-progress").hidden = true;
  const job = await trying(() => api(`/v1/jobs/${id}`));
  if (now?.id !== id) return;
  if (!job) return document.body.classList.remove("ldm-busy");
  await Promise.all(job.pictures.map(shown));
  document.querySelectorAll("#ldm-now .ldm-waiting").forEach((one) => one.remove());
  if (told.state === "failed") tell(sentence(told.error || job.error), "error");
  if (told.state === "cancelled" && !job.pictures.length) tell("Cancelled before anything could be seen.");
  if (now.best > 1 && told.state === "done") await ranked(job);
  if (now?.id === id) document.body.classList.remove("ldm-busy");
  finished.forEach((call) => call(job));
}

const sentence = (error) => [error?.what, error?.why, error?.fix].filter(Boolean).join(" ") || "It failed.";

// The best of several first; the others stay, behind a fold.
async function ranked(job) {
  const told = await trying(() => api(`/v1/jobs/${job.id}/ranking`, {method: "POST"}));
  if (!told) return;
  const all = $("ldm-now");
  const wanted = Math.max(1, Math.round(job.count / now.best));
  const figures = told.scores.map(({place, score}) => {
    const one = figure(place);
    one?.querySelector("figcaption span")?.append(`, CLIP ${score.toFixed(3)}`);
    return one;
  }).filter(Boolean);
  const others = el("details", {class: "ldm-others"}, el("summary", {}, `${figures.length - wanted} others`),
    el("div", {class: "ldm-now"}, figures.slice(wanted)));
  all.replaceChildren(...figures.slice(0, wanted), others);
}

document.addEventListener("click", (event) => event.target.closest?.("[data-do=cancel]") && cancel());
