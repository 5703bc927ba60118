// Edit: a picture, what is painted on it, and how it is to be changed there.
import {$, calm, kept, tell, trying, upload} from "./core.js";
import {chooser, takes} from "./drop.js";
import {Painter} from "./painter.js";
import {receives} from "./picture.js";
import {last} from "./stage.js";

let painter = null;
let picture = null; // {id, url}
let mask = null; // {id, of}: an upload, and the strokes that it holds
let strokes = 0;

const remember = calm(0.4, () => kept.set("edit", picture && {...picture, strokes: painter.kept(), pad: painter.pad}));

export function start() {
  painter = new Painter($("ldm-edit-board"), {pads: true, onChange: () => (strokes++, remember())});
  painter.onPad = (pad) => {
    document.querySelectorAll("[data-pad]").forEach((one) => (one.value = String(pad[Number(one.dataset.pad)])));
    if (picture) remember();
  };
  const place = $("ldm-edit-bring");
  const [label, input] = chooser("Choose a file");
  const own = document.createElement("button");
  Object.assign(own, {className: "ldm-quiet", textContent: "Take the last picture"});
  own.addEventListener("click", takeLast);
  place.append(label, own);
  const bring = (files) => trying(async () => show(await upload(files[0]), URL.createObjectURL(files[0])));
  takes(place, input, bring);
  takes($("ldm-edit-board"), null, bring);
  receives("edit", (brought) => trying(() => show(brought, brought.url)));
  for (const name of ["strength", "soft"]) {
    const one = $(`ldm-edit-${name}`);
    one.addEventListener("input", () => (one.nextElementSibling.value = Number(one.value).toFixed(name === "soft" ? 0 : 2)));
  }
  document.querySelectorAll("[data-pad]").forEach((one) => one.addEventListener("change", () =>
    painter.setPad([...document.querySelectorAll("[data-pad]")].map((each) => Number(each.value) || 0))));
  $("ldm-edit-box").addEventListener("click", () => painter.box(...[...document.querySelectorAll("[data-box]")].map((one) => Number(one.value) || 0)));
  restore();
}

async function takeLast() {
  const made = last();
  if (!made) return tell("Nothing has been made yet.");
  const {sendTo} = await import("./picture.js");
  sendTo("edit", made);
}

async function show(brought, src) {
  picture = {id: brought.id};
  mask = null;
  await painter.load(src);
  opened();
  // What the browser can show again after a reload, without the server keeping addresses for uploads.
  picture.src = painter.base.toDataURL("image/png");
  if (picture.src.length > 3_000_000) picture.src = null;
  remember();
}

function opened() {
  $("ldm-edit-board").hidden = $("ldm-edit-fields").hidden = false;
  $("ldm-edit-bring").classList.add("ldm-small");
}

async function restore() {
  const was = kept.get("edit");
  if (!was?.src) return;
  try {
    picture = {id: was.id, src: was.src};
    await painter.load(was.src);
    opened();
    if (was.strokes) await painter.restore(was.strokes);
    painter.setPad(was.pad || [0, 0, 0, 0]);
  } catch {
    kept.set("edit", null);
  }
}

// What goes into the request besides the form.
export async function more() {
  if (!picture) return void tell("Bring a picture first: drop it above, or take the last one.", "error");
  const request = {image: picture.id, strength: Number($("ldm-edit-strength").value)};
  const padded = painter.pad.some(Boolean);
  if (padded) request.pad = painter.pad;
  if (painter.painted()) {
    if (mask?.of !== strokes) mask = {id: (await upload(await painter.mask())).id, of: strokes};
    request.mask = mask.id;
    if ($("ldm-edit-crop").checked) request.only_masked = true;
  }
  if (request.mask || padded) {
    if ($("ldm-edit-fill").value !== "original") request.fill = $("ldm-edit-fill").value;
    if (Number($("ldm-edit-soft").value)) request.mask_blur = Number($("ldm-edit-soft").value);
  }
  return {request, before: {src: picture.src || painter.base.toDataURL(), pad: painter.pad}};
}
