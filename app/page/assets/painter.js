// A picture (or an empty sheet) that is painted on: brush, eraser, box, undo; in the picture's own pixels, however large it
// is shown. What is painted lies in a layer of its own, in one ink.
import {el, tell} from "./core.js";

const MOST_PAD = 1024; // pixels
const UNDO_BYTES = 128e6;
const TOOLS = {brush: ["Brush", "b"], eraser: ["Eraser", "e"], box: ["Box", "x"]};

export class Painter {
  // `ink` is how strokes look; `pads`: whether the edges can be dragged outwards.
  constructor(place, {ink = "#0aa5f5", pads = false, onChange = () => {}} = {}) {
    Object.assign(this, {place, ink, onChange, tool: "brush", size: 16, pad: [0, 0, 0, 0], undos: [], redos: [], touched: false});
    this.base = el("canvas", {class: "ldm-base"});
    this.layer = el("canvas", {class: "ldm-layer", tabindex: "0", role: "img",
      "aria-label": "What is painted. B: brush, E: eraser, X: box, brackets: size, Ctrl Z: undo, Ctrl Shift Z: redo"});
    this.pen = this.layer.getContext("2d", {willReadFrequently: true});
    this.hint = el("div", {class: "ldm-brush", "aria-hidden": "true", hidden: true});
    this.sheet = el("div", {class: "ldm-sheet"}, this.base, this.layer, this.hint);
    this.frame = el("div", {class: "ldm-board"}, this.sheet);
    this.tools = el("div", {class: "ldm-tools", role: "toolbar", "aria-label": "Tools"}, this.#toolbar());
    place.append(this.tools, this.frame);
    if (pads) this.#handles();
    this.#listen();
    new ResizeObserver(() => this.#fit()).observe(this.frame);
  }

  get width() {
    return this.base.width;
  }

  get height() {
    return this.base.height;
  }

  // Shows a picture; what was painted before is gone.
  async load(src) {
    const image = new Image();
    image.src = src;
    await image.decode();
    this.blank(image.naturalWidth, image.naturalHeight, null);
    this.base.getContext("2d").drawImage(image, 0, 0);
  }

  blank(width, height, colour = "#000") {
    for (const canvas of [this.base, this.layer]) Object.assign(canvas, {width, height});
    if (colour) {
      const pen = this.base.getContext("2d");
      pen.fillStyle = colour;
      pen.fillRect(0, 0, width, height);
    }
    this.undos = [];
    this.redos = [];
    this.touched = false;
    this.setPad([0, 0, 0, 0]);
    this.setSize(Math.max(1, Math.round(Math.min(width, height) / 10)));
    this.#fit();
  }

  clear() {
    this.#keep();
    this.pen.clearRect(0, 0, this.width, this.height);
    this.#changed();
  }

  undo() {
    this.#swap(this.undos, this.redos);
  }

  redo() {
    this.#swap(this.redos, this.undos);
  }

  #swap(from, to) {
    const was = from.pop();
    if (!was) return;
    to.push(this.pen.getImageData(0, 0, this.width, this.height));
    this.pen.putImageData(was, 0, 0);
    this.#changed();
  }

  box(left, top, width, height) {
    this.#keep();
    this.#rectangle(left, top, width, height);
    this.#changed();
  }

  setTool(tool) {
    this.tool = tool;
    for (const one of this.tools.querySelectorAll("[data-tool]")) {
      one.setAttribute("aria-pressed", String(one.dataset.tool === tool));
    }
  }

  setSize(size) {
    this.size = Math.max(1, Math.min(Math.round(size), Math.max(this.width, this.height)));
    this.slider.max = String(Math.max(8, Math.round(Math.min(this.width, this.height) / 2)));
    this.slider.value = String(this.size);
  }

  // Whether anything is painted now.
  painted() {
    if (!this.touched || !this.width) return false;
    const {data} = this.pen.getImageData(0, 0, this.width, this.height);
    for (let i = 3; i < data.length; i += 4) if (data[i]) return true;
    return false;
  }

  // What is painted, white on black, in the picture's own pixels.
  mask() {
    const made = el("canvas", {});
    Object.assign(made, {width: this.width, height: this.height});
    const pen = made.getContext("2d");
    const {data} = this.pen.getImageData(0, 0, this.width, this.height);
    const told = pen.createImageData(this.width, this.height);
    for (let i = 0; i < data.length; i += 4) {
      told.data.fill(data[i + 3] > 127 ? 255 : 0, i, i + 3);
      told.data[i + 3] = 255;
    }
    pen.putImageData(told, 0, 0);
    return new Promise((done) => made.toBlob(done, "image/png"));
  }

  // Kept over a reload: what is painted, as a data URL.
  kept() {
    return this.painted() ? this.layer.toDataURL("image/png") : null;
  }

  async restore(url) {
    const image = new Image();
    image.src = url;
    await image.decode();
    this.pen.drawImage(image, 0, 0);
    this.touched = true;
  }

  // What a mask paints: white is painted, and half of it where it is grey is taken for painted.
  async paint(url) {
    await this.restore(url);
    const told = this.pen.getImageData(0, 0, this.width, this.height);
    for (let i = 0; i < told.data.length; i += 4) told.data[i + 3] = told.data[i] > 127 ? 255 : 0;
    this.pen.putImageData(told, 0, 0);
    this.pen.globalCompositeOperation = "source-in";
    this.pen.fillStyle = this.ink;
    this.pen.fillRect(0, 0, this.width, this.height);
    this.pen.globalCompositeOperation = "source-over";
  }

  setPad(pad) {
    this.pad = pad.map((one) => Math.min(MOST_PAD, Math.max(0, Math.round(one / 8) * 8))); // the network works in eights
    this.#fit();
    this.onPad?.(this.pad);
  }

  #toolbar() {
    const tools = Object.entries(TOOLS).map(([name, [label, key]]) => el("button", {class: "ldm-quiet", data: {tool: name},
      "aria-pressed": String(name === "brush"), title: `${label} (${key.toUpperCase()})`, onclick: () => this.setTool(name)}, label));
    this.slider = el("input", {type: "range", min: "1", max: "64", "aria-label": "Size of the brush, in pixels"});
    this.slider.addEventListener("input", () => (this.size = Number(this.slider.value)));
    return [...tools, el("label", {class: "ldm-inline"}, "Size", this.slider),
      el("button", {class: "ldm-quiet", title: "Undo (Ctrl Z)", onclick: () => this.undo()}, "Undo"),
      el("button", {class: "ldm-quiet", onclick: () => this.clear()}, "Clear")];
  }

  #listen() {
    let last = null;
    let corner = null;
    let before = null;
    this.layer.addEventListener("pointerdown", (event) => {
      if (event.button || !this.width) return;
      event.preventDefault();
      this.layer.focus({preventScroll: true});
      this.layer.setPointerCapture(event.pointerId);
      this.#keep();
      last = corner = this.#at(event);
      before = this.tool === "box" ? this.pen.getImageData(0, 0, this.width, this.height) : null;
      if (!before) this.#stroke(last, last);
    });
    this.layer.addEventListener("pointermove", (event) => {
      this.#hint(event);
      if (!last) return;
      const at = this.#at(event);
      if (before) {
        this.pen.putImageData(before, 0, 0);
        this.#rectangle(Math.min(corner[0], at[0]), Math.min(corner[1], at[1]), Math.abs(at[0] - corner[0]), Math.abs(at[1] - corner[1]));
      } else for (const one of event.getCoalescedEvents?.().map((each) => this.#at(each)) || [at]) [last] = [one, this.#stroke(last, one)];
      last = at;
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      this.layer.addEventListener(kind, () => {
        if (last) this.#changed();
        last = corner = before = null;
      });
    }
    this.layer.addEventListener("pointerleave", () => (this.hint.hidden = true));
    this.layer.addEventListener("keydown", (event) => {
      const tool = Object.keys(TOOLS).find((name) => TOOLS[name][1] === event.key.toLowerCase());
      if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) event.shiftKey ? this.redo() : this.undo();
      else if (event.ctrlKey || event.metaKey) return;
      else if (tool) this.setTool(tool);
      else if (event.key === "[") this.setSize(this.size * 0.8 - 0.5);
      else if (event.key === "]") this.setSize(this.size * 1.25 + 0.5);
      else return;
      event.preventDefault();
    });
  }

  #stroke([x0, y0], [x1, y1]) {
    const {pen} = this;
    pen.save();
    pen.globalCompositeOperation = this.tool === "eraser" ? "destination-out" : "source-over";
    pen.strokeStyle = this.ink;
    pen.lineWidth = this.size;
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.lineTo(x1 + (x0 === x1 && y0 === y1 ? 0.01 : 0), y1);
    pen.stroke();
    pen.restore();
  }

  #rectangle(left, top, width, height) {
    const {pen} = this;
    pen.fillStyle = this.ink;
    pen.fillRect(Math.floor(left), Math.floor(top), Math.ceil(width), Math.ceil(height));
  }

  #keep() {
    if (!this.width) return;
    this.undos.push(this.pen.getImageData(0, 0, this.width, this.height));
    const most = Math.max(2, Math.floor(UNDO_BYTES / (4 * this.width * this.height)));
    while (this.undos.length > most) this.undos.shift();
    this.redos = [];
  }

  #changed() {
    this.touched = true;
    this.onChange();
  }

  #at(event) {
    const box = this.layer.getBoundingClientRect();
    return [((event.clientX - box.left) * this.width) / box.width, ((event.clientY - box.top) * this.height) / box.height];
  }

  #hint(event) {
    const box = this.layer.getBoundingClientRect();
    const side = (this.size * box.width) / this.width;
    this.hint.hidden = this.tool === "box" || event.pointerType === "touch";
    Object.assign(this.hint.style, {width: `${side}px`, height: `${side}px`, left: `${event.clientX - box.left}px`,
      top: `${event.clientY - box.top}px`});
  }

  // As large as there is room for, margins included.
  #fit() {
    if (!this.width) return;
    const [left, top, right, bottom] = this.pad;
    const across = this.width + left + right;
    const down = this.height + top + bottom;
    const room = Math.max(120, this.frame.clientWidth - 48);
    const scale = Math.min(room / across, 560 / down, Math.max(1, 512 / Math.max(this.width, this.height)));
    this.scale = scale;
    Object.assign(this.sheet.style, {width: `${this.width * scale}px`, height: `${this.height * scale}px`,
      borderWidth: [top, right, bottom, left].map((one) => `${one * scale}px`).join(" ")});
    ["left", "top", "right", "bottom"].forEach((name, side) => this.sheet.style.setProperty(`--${name}`, `${this.pad[side] * scale}px`));
    this.sheet.classList.toggle("ldm-pixels", scale >= 2);
  }

  // Each edge can be dragged outwards: that much is painted around the picture.
  #handles() {
    const sides = ["left", "top", "right", "bottom"];
    sides.forEach((name, side) => {
      const handle = el("button", {class: `ldm-edge ldm-${name}`, role: "slider", "aria-label": `Margin at the ${name}, in pixels`,
        "aria-valuemin": "0", "aria-valuemax": "1024", "aria-valuenow": "0", title: `Drag outwards to paint beyond the ${name}`});
      const set = (value) => {
        const pad = [...this.pad];
        pad[side] = value;
        this.setPad(pad);
        handle.setAttribute("aria-valuenow", String(this.pad[side]));
      };
      handle.addEventListener("keydown", (event) => {
        const step = {ArrowUp: 8, ArrowRight: 8, ArrowDown: -8, ArrowLeft: -8}[event.key];
        if (!step) return;
        event.preventDefault();
        set(this.pad[side] + step);
      });
      handle.addEventListener("pointerdown", (event) => {
        if (!this.width) return tell("Bring a picture first.");
        event.preventDefault();
        handle.setPointerCapture(event.pointerId);
        const [from, was, scale] = [[event.clientX, event.clientY], this.pad[side], this.scale];
        const move = (now) => {
          const across = side % 2 ? now.clientY - from[1] : now.clientX - from[0];
          set(was + ((side < 2 ? -across : across) / scale));
        };
        handle.addEventListener("pointermove", move);
        const stop = () => handle.removeEventListener("pointermove", move);
        handle.addEventListener("pointerup", stop, {once: true});
        handle.addEventListener("pointercancel", stop, {once: true});
      });
      this.sheet.append(handle);
    });
  }
}
