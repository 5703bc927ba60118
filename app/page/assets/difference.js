// Before and after: a slider between both, and every pixel that changed.
import {el, trying} from "./core.js";

export function show(figure, before, picture) {
  const frame = figure.querySelector(".ldm-frame");
  const after = frame.querySelector("img");
  const [left, top, right, bottom] = before.pad || [0, 0, 0, 0];
  const under = el("img", {src: before.src, alt: "Before", class: "ldm-before"});
  const [across, down] = [picture.width, picture.height];
  Object.assign(under.style, {left: `${(100 * left) / across}%`, top: `${(100 * top) / down}%`,
    width: `${(100 * (across - left - right)) / across}%`, height: `${(100 * (down - top - bottom)) / down}%`});
  const changed = el("canvas", {class: "ldm-changed", hidden: true});
  const holder = el("div", {class: "ldm-both"});
  frame.replaceWith(holder);
  holder.append(frame, under, changed);
  const slide = el("input", {type: "range", min: "0", max: "100", value: "100", "aria-label": "Before (left) and after (right)"});
  const set = () => under.style.setProperty("clip-path", clip(Number(slide.value), left, across, right));
  slide.addEventListener("input", set);
  set();
  const box = el("input", {type: "checkbox"});
  const told = el("span", {role: "status"});
  box.addEventListener("change", () => trying(async () => {
    changed.hidden = !box.checked;
    if (!box.checked) return void (told.textContent = "");
    const count = await differing(changed, before.src, after, [left, top, across - left - right, down - top - bottom]);
    told.textContent = `${count.toLocaleString()} of ${(across * down).toLocaleString()} pixels changed`;
  }));
  figure.querySelector(".ldm-compare")?.remove();
  holder.after(el("div", {class: "ldm-compare"}, el("label", {}, "Before", slide, "after"),
    el("label", {class: "ldm-check"}, box, "Show every changed pixel"), told));
}

// The part of the picture before that is seen: right of the slider is after.
function clip(value, left, across, right) {
  const own = across - left - right;
  const edge = ((100 - value) / 100) * across - left;
  return `inset(0 ${100 - (100 * Math.min(own, Math.max(0, edge))) / own}% 0 0)`;
}

async function differing(canvas, src, after, [left, top, width, height]) {
  const before = new Image();
  before.src = src;
  await Promise.all([before.decode(), after.decode()]);
  const [across, down] = [after.naturalWidth, after.naturalHeight];
  const pixels = (image, x, y) => {
    const sheet = el("canvas", {});
    Object.assign(sheet, {width: across, height: down});
    const pen = sheet.getContext("2d", {willReadFrequently: true});
    pen.drawImage(image, x, y);
    return pen.getImageData(0, 0, across, down).data;
  };
  const [a, b] = [pixels(before, left, top), pixels(after, 0, 0)];
  Object.assign(canvas, {width: across, height: down});
  const pen = canvas.getContext("2d");
  const told = pen.createImageData(across, down);
  let count = 0;
  for (let i = 0; i < a.length; i += 4) {
    if (a[i] === b[i] && a[i + 1] === b[i + 1] && a[i + 2] === b[i + 2] && a[i + 3] === b[i + 3]) continue;
    count += 1;
    told.data.set([255, 0, 160, 255], i);
  }
  pen.putImageData(told, 0, 0);
  return count;
}
