// Edit: a picture, what is painted on it, and how it is to be changed there.
import {$, calm, el, kept, tell, trying, upload} from "./core.js";
import {brings, chooser, takes} from "./drop.js";
import {Painter} from "./painter.js";
import {receives, sendTo, takes as takesRequest} from "./picture.js";
import {last} from "./stage.js";

const FIELDS = {strength: 0.8, soft: 0, fill: "original", crop: false, fit: false}; // and what they begin with
const at = (id) => `/v1/uploads/${id}`;

let painter = null;
let picture = null; // the id of an upload
let mask = null; // {id, of}: an upload, and the strokes that it holds
let strokes = 0;

const remember = calm(0.4, () => kept.set("edit", picture && {id: picture, strokes: painter.kept(), pad: painter.pad, fields: fields()}));

export function start() {
  painter = new Painter($("ldm-edit-board"), {pads: true, onChange: () => (strokes++, remember())});
  painter.onPad = (pad) => {
    document.querySelectorAll("[data-pad]").forEach((one) => (one.value = String(pad[Number(one.dataset.pad)])));
    remember();
  };
  const place = $("ldm-edit-bring");
  const [label, input] = chooser("Choose a file");
  place.append(label, el("button", {class: "ldm-quiet", onclick: () => trying(takeLast)}, "Take the last picture"));
  const bring = (files) => trying(async () => show(await upload(files[0])));
  brings("edit", bring);
  takes(place, input, bring);
  takes($("ldm-edit-board"), null, bring);
  receives("edit", (brought) => trying(() => show(brought)));
  takesRequest("edit", (request) => trying(() => take(request)));
  for (const name of Object.keys(FIELDS)) $(`ldm-edit-${name}`).addEventListener("input", () => (told(), remember()));
  document.querySelectorAll("[data-pad]").forEach((one) => one.addEventListener("change", () =>
    painter.setPad([...document.querySelectorAll("[data-pad]")].map((each) => Number(each.value) || 0))));
  $("ldm-edit-box").addEventListener("click", () => box());
  restore();
}

const fields = () => ({strength: Number($("ldm-edit-strength").value), soft: Number($("ldm-edit-soft").value), fill: $("ldm-edit-fill").value,
  crop: $("ldm-edit-crop").checked, fit: $("ldm-edit-fit").checked});

function setFields(values) {
  const all = {...FIELDS, ...values};
  for (const name of ["strength", "soft", "fill"]) $(`ldm-edit-${name}`).value = String(all[name]);
  for (const name of ["crop", "fit"]) $(`ldm-edit-${name}`).checked = all[name];
  told();
}

function told() {
  $("ldm-edit-strength").nextElementSibling.value = Number($("ldm-edit-strength").value).toFixed(2);
  $("ldm-edit-soft").nextElementSibling.value = $("ldm-edit-soft").value;
}

function box() {
  const [left, top, width, height] = [...document.querySelectorAll("[data-box]")].map((one) => Number(one.value) || 0);
  const inside = width > 0 && height > 0 && left < painter.width && top < painter.height && left + width > 0 && top + height > 0;
  if (inside) painter.box(left, top, width, height);
  else tell(`The box lies outside of the picture, which is ${painter.width} x ${painter.height} pixels.`, "error");
}

async function takeLast() {
  const made = last();
  if (!made) return tell("Nothing has been made yet.");
  await sendTo("edit", made);
}

async function show({id}) {
  picture = id;
  mask = null;
  await painter.load(at(id));
  opened();
  remember();
}

function opened() {
  $("ldm-edit-board").hidden = $("ldm-edit-fields").hidden = false;
  $("ldm-edit-bring").classList.add("ldm-small");
}

// A request that was made before: its picture, what was painted, and how it was changed.
async function take(request) {
  await show({id: request.image});
  if (request.mask) await painter.paint(at(request.mask));
  strokes += 1;
  painter.setPad(request.pad || [0, 0, 0, 0]);
  setFields({strength: request.strength ?? FIELDS.strength, soft: request.mask_blur ?? 0, fill: request.fill ?? FIELDS.fill, crop: request.only_masked ?? false,
    fit: Boolean(request.width || request.height)});
  remember();
}

async function restore() {
  const was = kept.get("edit");
  if (!was?.id) return;
  try {
    await show(was);
    if (was.strokes) await painter.restore(was.strokes);
    painter.setPad(was.pad || [0, 0, 0, 0]);
    setFields(was.fields || {});
    remember();
  } catch {
    picture = null;
    kept.set("edit", null);
  }
}

// What goes into the request besides the form.
export async function more() {
  if (!picture) return void tell("Bring a picture first: drop it above, or take the last one.", "error");
  const {strength, soft, fill, crop, fit} = fields();
  const request = {image: picture, strength};
  const padded = painter.pad.some(Boolean);
  if (padded) request.pad = painter.pad;
  if (painter.painted()) {
    if (mask?.of !== strokes) mask = {id: (await upload(await painter.mask())).id, of: strokes};
    request.mask = mask.id;
    if (crop) request.only_masked = true;
  }
  if (request.mask || padded) {
    if (fill !== FIELDS.fill) request.fill = fill;
    if (soft) request.mask_blur = soft;
  }
  // Else a size that was meant for other pictures would cut this one.
  return {request, without: fit ? [] : ["width", "height"], before: {src: at(picture), pad: painter.pad}};
}
