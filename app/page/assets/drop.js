// A picture that is dropped or pasted anywhere: its recipe fills the form. Places that take pictures take it themselves.
import {$, api, el, tell, trying} from "./core.js";
import {use} from "./picture.js";
import {current} from "./sections.js";

const filesOf = (event) => [...(event.dataTransfer?.files || [])];
const within = (event) => event.target.closest?.("[data-takes]");

export function start() {
  let deep = 0;
  const shade = $("ldm-drop");
  const show = (on) => (shade.hidden = !on);
  window.addEventListener("dragenter", (event) => {
    if (![...(event.dataTransfer?.types || [])].includes("Files")) return;
    deep += 1;
    show(!within(event));
  });
  window.addEventListener("dragleave", () => (deep = Math.max(0, deep - 1)) || show(false));
  window.addEventListener("dragover", (event) => {
    event.preventDefault();
    show(!within(event));
  });
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    deep = 0;
    show(false);
    if (!within(event) && filesOf(event).length) read(filesOf(event)[0]);
  });
  window.addEventListener("paste", pasted);
}

// The recipe of a picture; one without a recipe is a picture to work on.
export async function read(file) {
  if (!file.type.startsWith("image/")) return tell(`${file.name} is no picture.`, "error");
  let told;
  try {
    told = await api("/v1/recipes", {body: file, headers: {"content-type": file.type}});
  } catch (error) {
    const bring = bringers[current()];
    if (error.told?.status === 422 && bring) return bring([file]);
    return tell(error.message, "error");
  }
  await trying(() => use(told.request));
  tell(`The form has the settings of ${file.name} (${FROM[told.source] || told.source}).`);
  for (const note of told.notes) tell(note);
}

// What a section does with pictures that come from anywhere on the page.
const bringers = {};
export const brings = (section, call) => (bringers[section] = call);

function pasted(event) {
  const files = [...(event.clipboardData?.files || [])];
  if (!files.length || within(event)) return; // such a place takes them itself
  event.preventDefault();
  const bring = bringers[current()];
  if (bring && files.every((file) => file.type.startsWith("image/"))) trying(() => bring(files));
  else read(files[0]);
}

const FROM = {ldm: "made here", a1111: "from A1111", comfyui: "from ComfyUI"};

// A place that takes pictures.
export function takes(place, input, call) {
  files(place, input, (all) => {
    const pictures = all.filter((file) => file.type.startsWith("image/"));
    if (pictures.length) call(pictures);
    else tell(`${all[0].name} is no picture.`, "error");
  });
}

// A place that takes files: by dropping, by pasting while it has the focus, and by choosing them.
export function files(place, input, call) {
  place.dataset.takes = "files";
  const chosen = (all) => all.length && call(all);
  place.addEventListener("dragover", () => place.classList.add("ldm-over"));
  for (const kind of ["dragleave", "drop"]) place.addEventListener(kind, () => place.classList.remove("ldm-over"));
  place.addEventListener("drop", (event) => chosen(filesOf(event)));
  place.addEventListener("paste", (event) => chosen([...(event.clipboardData?.files || [])]));
  input?.addEventListener("change", () => {
    chosen([...input.files]);
    input.value = "";
  });
}

export const chooser = (label, {several = false} = {}) => {
  const input = el("input", {type: "file", accept: "image/*", multiple: several, class: "ldm-file"});
  return [el("label", {class: "ldm-quiet ldm-choose"}, label, input), input];
};
