// Control: scribbles and pictures that guide what is made, each with its own detector, weight and span.
import {$, api, calm, el, kept, tell, trying, upload} from "./core.js";
import {brings, chooser, takes} from "./drop.js";
import {heard, modelNow, set, valueOf} from "./form.js";
import {Painter} from "./painter.js";
import {receives, takes as takesRequest} from "./picture.js";

const MOST = 4;
const INK = "#ffffff";
const at = (id) => `/v1/uploads/${id}`;
let models = {}; // model -> {side, controls}
let hints = {}; // detector -> what it does
let controls = []; // of the page

export function start() {
  $("ldm-control-add").addEventListener("click", () => add());
  receives("control", (brought) => trying(async () => (await free())?.bring(brought)));
  brings("control", async ([file]) => (await free())?.bring(await upload(file)));
  takesRequest("control", (request) => trying(async () => {
    for (const one of controls) one.place.remove();
    controls = [];
    for (const use of request.controls.slice(0, MOST)) await add(use);
  }));
  trying(async () => {
    await refresh();
    for (const was of kept.get("controls", [null])) await add(was);
    heard(() => controls.forEach((one) => one.offer()));
  });
}

// Which models and detectors there are: again after something was brought.
export async function refresh() {
  models = Object.fromEntries((await api("/v1/models")).data.map((one) => [one.id, one]));
  hints = (await trying(() => api("/v1/options")))?.hints || {};
  controls.forEach((one) => one.offer(true));
}

const remember = calm(0.4, () => kept.set("controls", controls.map((one) => one.told())));

// A control that has nothing yet, or another one.
const free = async () => controls.find((one) => !one.painter.painted() && !one.image) || add();

async function add(was = null) {
  if (controls.length >= MOST) return void tell(`${MOST} controls are the most.`);
  const one = new Control(was);
  controls.push(one);
  $("ldm-control-list").append(one.place);
  if (was) await trying(() => one.restore(was));
  remember();
  return one;
}

class Control {
  constructor(was) {
    this.image = null; // an upload; else the sheet is drawn on
    const [label, input] = chooser("Bring a picture");
    this.model = el("select", {onchange: remember});
    this.hint = el("select", {onchange: () => (this.explain(), remember())});
    this.about = el("small", {});
    this.weight = el("input", {type: "range", min: "0", max: "2", step: "0.05"});
    this.weight.value = was?.weight ?? 1;
    this.from = el("input", {type: "number", min: "0", max: "1", step: "0.05", value: String(was?.start ?? 0)});
    this.to = el("input", {type: "number", min: "0", max: "1", step: "0.05", value: String(was?.end ?? 1)});
    this.seen = el("div", {class: "ldm-seen", "aria-live": "polite"});
    const weight = el("output", {}, Number(this.weight.value).toFixed(2));
    this.weight.addEventListener("input", () => ((weight.textContent = Number(this.weight.value).toFixed(2)), remember()));
    for (const one of [this.from, this.to]) one.addEventListener("change", remember);
    const act = (text, call) => el("button", {class: "ldm-quiet", onclick: call}, text);
    const board = el("div", {});
    this.place = el("article", {class: "ldm-control", "aria-label": "A control"},
      el("div", {class: "ldm-control-sheet"}, board),
      el("div", {class: "ldm-fields"},
        el("label", {}, "Control", this.model), el("label", {}, "Made of it", this.hint), this.about,
        el("label", {}, "Weight", this.weight, weight),
        el("label", {class: "ldm-pair"}, "From", this.from), el("label", {class: "ldm-pair"}, "to", this.to),
        el("div", {class: "ldm-actions"}, label, act("Empty sheet", () => this.sheet()), act("Preview", () => trying(() => this.preview())),
          act("Remove", () => this.remove())), this.seen));
    this.painter = new Painter(board, {ink: INK, onChange: () => this.changed()});
    takes(this.place, input, (files) => trying(async () => this.bring(await upload(files[0]))));
    this.was = was;
    this.offer();
    this.sheet();
  }

  // Those controls that fit the model of the form.
  offer(again = false) {
    const {controls: names = [], side = 64} = models[modelNow()] || {};
    if (this.offered === modelNow() && !again) return;
    this.offered = modelNow();
    this.side = side;
    const before = this.model.value || this.was?.model;
    const hint = this.hint.value || this.was?.hint || "none";
    this.model.replaceChildren(...names.map((name) => el("option", {value: name}, name)));
    if (names.includes(before)) this.model.value = before;
    if (!names.length) this.model.replaceChildren(el("option", {value: ""}, "none fits this model"));
    this.hint.replaceChildren(el("option", {value: "none"}, "nothing: as it is"),
      ...Object.keys(hints).filter((name) => name !== "none").map((name) => el("option", {value: name}, name)));
    this.hint.value = hint in hints ? hint : "none";
    this.explain();
    if (!this.image && !this.painter?.painted()) this.painter?.blank(side, side); // an empty sheet has the model's size
  }

  explain() {
    this.about.textContent = this.hint.value === "none" ? "What you draw or bring is used as it is." : hints[this.hint.value] || "";
    this.changed();
  }

  // What was previewed is no longer so.
  changed() {
    this.seen.replaceChildren();
    remember();
  }

  sheet() {
    this.image = null;
    this.painter.blank(this.side, this.side);
    this.painter.setSize(Math.max(1, this.side / 32));
    this.hint.value = "none";
    this.explain();
    remember();
  }

  async bring({id}) {
    this.image = id;
    await this.painter.load(at(id));
    if (this.hint.value === "none") this.hint.value = Object.keys(hints).includes("canny") ? "canny" : "none";
    this.explain();
    this.shape();
  }

  // A picture of another shape than what is made is squeezed into it: that is said, and can be mended.
  shape() {
    const [width, height] = [this.painter.width, this.painter.height];
    const [across, down] = [valueOf("width") || this.side, valueOf("height") || this.side];
    if (Math.abs(width / height / (across / down) - 1) < 0.05) return;
    const scale = Math.sqrt((this.side * this.side) / (width * height));
    const sides = [width, height].map((one) => Math.max(8, Math.round((one * scale) / 8) * 8));
    this.seen.replaceChildren(el("p", {class: "ldm-note"}, `It is ${width} x ${height}, and is squeezed into ${across} x ${down}. `,
      el("button", {class: "ldm-quiet", onclick: () => (set({width: sides[0], height: sides[1]}), this.changed())}, `Make ${sides[0]} x ${sides[1]}`)));
  }

  // The upload that stands for it: what was brought with what was drawn over it.
  async picture() {
    const drawn = this.painter.painted();
    if (this.image && !drawn) return this.image;
    if (!drawn) return null;
    const made = el("canvas", {});
    Object.assign(made, {width: this.painter.width, height: this.painter.height});
    const pen = made.getContext("2d");
    pen.drawImage(this.painter.base, 0, 0);
    pen.drawImage(this.painter.layer, 0, 0);
    return (await upload(await new Promise((done) => made.toBlob(done, "image/png")))).id;
  }

  async use() {
    const image = await this.picture();
    if (!image || !this.model.value) return null;
    const part = (field, other) => (field.value === "" ? other : Math.min(1, Math.max(0, Number(field.value))));
    const [start, end] = [part(this.from, 0), part(this.to, 1)];
    [this.from.value, this.to.value] = [String(start), String(end)]; // what is meant is what is seen
    const use = {model: this.model.value, image, hint: this.hint.value, weight: Number(this.weight.value)};
    if (start > 0) use.start = start;
    if (end < 1) use.end = end;
    return use;
  }

  async preview() {
    const image = await this.picture();
    if (!image) return tell("Draw something, or bring a picture first.");
    const shown = await api("/v1/hints", {json: {image, hint: this.hint.value, model: modelNow(),
      width: valueOf("width") || this.side, height: valueOf("height") || this.side}});
    const url = URL.createObjectURL(shown);
    this.seen.replaceChildren(el("img", {src: url, alt: "What the control sees", class: "ldm-pixels", onload: () => URL.revokeObjectURL(url)}));
  }

  told() {
    return {model: this.model.value, hint: this.hint.value, weight: Number(this.weight.value), start: Number(this.from.value),
      end: Number(this.to.value), image: this.image, strokes: this.painter.kept()};
  }

  async restore(was) {
    if (was.image) {
      await this.painter.load(at(was.image));
      this.image = was.image;
    }
    if (was.strokes) await this.painter.restore(was.strokes);
    this.hint.value = was.hint || "none";
    this.explain();
  }

  remove() {
    controls = controls.filter((one) => one !== this);
    this.place.remove();
    if (!controls.length) add();
    remember();
  }
}

export async function more() {
  const uses = (await Promise.all(controls.map((one) => one.use()))).filter(Boolean);
  if (!uses.length) {
    const lacking = controls.some((one) => one.painter.painted() || one.image);
    tell(lacking ? "This model has no control: choose another model." : "Draw a few lines first, or bring a picture.", "error");
    return null;
  }
  return {request: {controls: uses}};
}
