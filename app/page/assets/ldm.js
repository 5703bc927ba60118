// The page begins here: gradio has drawn the form, and each part of our own markup is told when it is there.
import {$, trying} from "./core.js";
import * as adapters from "./adapters.js";
import * as compare from "./compare.js";
import * as control from "./control.js";
import * as drop from "./drop.js";
import * as edit from "./edit.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import * as models from "./models.js";
import * as personalize from "./personalize.js";
import * as sections from "./sections.js";
import * as stage from "./stage.js";
import * as suits from "./suits.js";
import * as tokens from "./tokens.js";

const PARTS = ["header", "make", "adapters", ...sections.SECTIONS, "stage"];

// What gradio calls.
window.ldm = {
  make: (names, given) => {
    const request = form.requestOf(names, given);
    trying(() => making(request));
  },
  kept: form.keep,
  again: form.again,
  filling: form.filling,
};

async function making(request) {
  const best = form.bestOf();
  if (best > 1) request.count = (request.count || 1) * best;
  const section = sections.current();
  if (section === "compare") return compare.make(request);
  const more = section === "edit" ? await edit.more() : section === "control" ? await control.more() : {request: {}};
  if (!more) return;
  for (const name of more.without || []) delete request[name];
  await stage.make({...request, ...more.request}, {best, section, before: more.before || null});
}

function go() {
  $("ldm-do-make").click();
}

function keys(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (document.body.classList.contains("ldm-with-form")) go();
  }
}

function start() {
  sections.start();
  $("ldm-go").addEventListener("click", go);
  $("ldm-clear").addEventListener("click", () => form.fill({prompt: form.promptNow(), negative: form.valueOf("negative") || ""}));
  for (const one of document.querySelectorAll("[data-example]")) {
    one.addEventListener("click", () => form.set({prompt: one.dataset.example}));
  }
  window.addEventListener("keydown", keys, true);
  tokens.start();
  suits.start();
  drop.start();
  adapters.refresh();
  for (const part of [edit, control, compare, gallery, models, personalize]) part.start();
  sections.open(sections.current()); // now that each part hears when it is shown
  form.restore();
  stage.again();
  document.body.classList.add("ldm-ready");
}

// gradio draws its parts one after another.
const looking = setInterval(() => {
  const there = PARTS.every((name) => document.querySelector(`#ldm-${name} > *, #ldm-${name} .html-container > *, #ldm-${name} *`));
  if (!there || !$("ldm-do-make") || !$("ldm-theme")) return;
  clearInterval(looking);
  start();
}, 50);
