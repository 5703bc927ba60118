// What is being made: progress, previews while it is drawn, and the pictures. A reload finds it again.
import {$, api, el, kept, sentence, tell, trying} from "./core.js";
import * as difference from "./difference.js";
import {actions, look} from "./picture.js";

const AT_ONCE = 4; // jobs that are watched: each holds a connection, and a browser has six
let runs = []; // the newest first
const finished = [];
export const onFinished = (call) => finished.push(call);
export const last = () => kept.get("last");

export async function make(request, more) {
  if (runs.filter((one) => one.going).length >= AT_ONCE) return tell(`${AT_ONCE} are under way: wait for one, or cancel it.`, "error");
  const job = await trying(() => api("/v1/jobs", {json: request}));
  if (!job) return;
  runs.filter((one) => !one.going).forEach((one) => one.leave());
  const run = new Run(job, more);
  runs = [run, ...runs.filter((one) => one.going)];
  remember();
  if (more.section !== "create") run.place.scrollIntoView({block: "nearest", behavior: "smooth"});
}

// What was under way, or made last, before the page was loaded again.
export async function again() {
  for (const {id, ...more} of kept.get("runs", [])) {
    const job = await api(`/v1/jobs/${id}`).catch(() => null); // the server may have forgotten it
    if (job) runs.push(new Run(job, more, false));
  }
  remember();
}

function remember() {
  kept.set("runs", runs.map(({job, more}) => ({id: job, ...more})));
  document.body.classList.toggle("ldm-busy", runs.some((one) => one.going));
  if (runs.length) $("ldm-welcome")?.remove();
}

// A job: its line under the form, and its pictures.
class Run {
  constructor(job, more, first = true) {
    Object.assign(this, {job: job.id, count: job.count, more, going: true});
    this.bar = el("progress", {max: "1", value: "0", "aria-label": "How far it is"});
    this.said = el("span", {role: "status"});
    this.line = el("div", {class: "ldm-progress"}, this.bar, this.said,
      el("button", {class: "ldm-quiet", onclick: () => this.cancel()}, "Cancel, keep what is there"));
    this.figures = Array.from({length: job.count}, (_, place) => this.#waiting(job, place));
    this.place = el("div", {class: "ldm-now"}, this.figures);
    $("ldm-going")[first ? "prepend" : "append"](this.line);
    $("ldm-runs")[first ? "prepend" : "append"](this.place);
    for (const made of job.pictures) this.#shown(made);
    this.#progress({state: job.state, ahead: job.ahead, ...job.progress});
    this.#listen();
  }

  cancel() {
    trying(() => api(`/v1/jobs/${this.job}/cancel`, {method: "POST"}));
  }

  leave() {
    this.source?.close();
    this.line.remove();
    this.place.remove();
  }

  #listen() {
    const source = (this.source = new EventSource(`/v1/jobs/${this.job}/events?previews=true`));
    const on = (kind, call) => source.addEventListener(kind, (event) => call(JSON.parse(event.data)));
    on("job", (told) => told.pictures.forEach((made) => this.#shown(made)));
    on("progress", (told) => this.#progress(told));
    on("preview", ({place, png}) => this.#preview(place, `data:image/png;base64,${png}`));
    on("picture", (made) => this.#shown(made));
    on("end", (told) => this.#ended(told));
    source.onerror = () => (this.said.textContent = "waiting for the server ...");
  }

  #waiting(job, place) {
    const side = job.request.width && job.request.height ? `${job.request.width} / ${job.request.height}` : "1";
    return el("figure", {class: "ldm-picture ldm-waiting", data: {place: String(place), picture: `${job.id}/${place}`}, style: `--side: ${side}`},
      el("div", {class: "ldm-frame"}, el("div", {class: "ldm-noise", "aria-hidden": "true"})));
  }

  #preview(place, src) {
    const one = this.figures[place];
    const frame = one?.querySelector(".ldm-frame");
    if (!frame || one.classList.contains("ldm-done")) return;
    let image = frame.querySelector("img");
    if (!image) frame.replaceChildren((image = el("img", {alt: "The picture as it is being drawn", class: "ldm-preview"})));
    image.src = src;
  }

  // A picture in its place, as soon as it can be seen; told twice, it is shown once.
  #shown(made) {
    const one = this.figures[made.place];
    const kind = made.partial ? "partial" : "whole";
    if (!one || [kind, "whole"].includes(one.dataset.shown)) return one?.showing;
    one.dataset.shown = kind;
    return (one.showing = this.#show(one, made, kind));
  }

  async #show(one, made, kind) {
    const url = `/v1/jobs/${this.job}/pictures/${made.place}`;
    const image = el("img", {src: `${url}?${kind}`, alt: `Picture ${made.place + 1}, seed ${made.seed}`, width: String(made.width),
      height: String(made.height)});
    await image.decode().catch(() => {}); // the preview stays until it can be shown
    if (one.dataset.shown !== kind) return;
    const picture = {job: this.job, place: made.place, url, seed: made.seed, width: made.width, height: made.height};
    const frame = el("button", {class: "ldm-frame", "aria-label": `Look at picture ${made.place + 1}`, onclick: () => look(picture)}, image);
    one.style.setProperty("--side", `${made.width} / ${made.height}`);
    one.classList.remove("ldm-waiting");
    one.classList.toggle("ldm-partial", made.partial);
    one.classList.toggle("ldm-done", !made.partial);
    one.replaceChildren(frame, el("figcaption", {}, el("span", {}, `seed ${made.seed}${made.partial ? ", not finished" : ""}`),
      actions(picture)), ...(made.notes || []).map((note) => el("p", {class: "ldm-note"}, note)));
    kept.set("last", picture);
    if (this.more.before) difference.show(one, this.more.before, picture);
  }

  #progress(told) {
    this.said.textContent = told.state === "queued" && told.ahead !== undefined
      ? (told.ahead ? `${told.ahead} before yours` : "it is next")
      : told.steps ? `${STAGES[told.stage] || told.stage || "drawing"}, step ${told.step + 1} of ${told.steps}` +
        (told.count > 1 ? `; ${told.made} of ${told.count} pictures` : "") : "beginning";
    this.bar.value = told.steps ? (told.step + 1) / told.steps : 0;
  }

  async #ended(told) {
    this.source.close();
    this.line.remove();
    const job = await trying(() => api(`/v1/jobs/${this.job}`));
    if (job) {
      await Promise.all(job.pictures.map((made) => this.#shown(made)));
      this.figures.filter((one) => one.classList.contains("ldm-waiting")).forEach((one) => one.remove());
      const error = told.error || job.error;
      if (told.state === "failed") tell(sentence(error?.what || "It failed.", error?.why, error?.fix), "error");
      if (told.state === "cancelled" && !job.pictures.length) tell("Cancelled before anything could be seen.");
      if (this.more.best > 1 && told.state === "done") await this.#ranked(job);
    }
    this.going = false;
    remember();
    if (job) finished.forEach((call) => call(job));
  }

  // The best of several first; the others stay, behind a fold.
  async #ranked(job) {
    const told = await trying(() => api(`/v1/jobs/${this.job}/ranking`, {method: "POST"}));
    if (!told) return;
    const wanted = Math.max(1, Math.round(job.count / this.more.best));
    const figures = told.scores.map(({place, score}) => {
      const one = this.figures[place];
      one?.querySelector("figcaption span")?.append(el("span", {title: "How much the picture is like the prompt, as a CLIP sees it: 1 is most"},
        `, CLIP ${score.toFixed(3)}`));
      return one;
    }).filter(Boolean);
    const others = el("details", {class: "ldm-others"}, el("summary", {}, `${figures.length - wanted} others`),
      el("div", {class: "ldm-now"}, figures.slice(wanted)));
    this.place.replaceChildren(...figures.slice(0, wanted), others);
  }
}

const STAGES = {sample: "drawing", hires: "second pass", decode: "decoding"};
