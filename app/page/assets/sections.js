// One section at a time, chosen by tabs, by arrows, and by the address; light and dark.
import {$, kept} from "./core.js";

export const SECTIONS = ["create", "edit", "control", "personalize", "compare", "models", "gallery"];
const WITH_FORM = ["create", "edit", "control", "compare"];
let fresh = true; // nothing has been opened yet
const opened = {}; // section -> what is called when it is shown

export const onOpen = (name, call) => (opened[name] = call);
export const current = () => document.body.dataset.section || "create";

export function open(name, {focus = false} = {}) {
  if (!SECTIONS.includes(name)) name = "create";
  document.body.dataset.section = name;
  document.body.classList.toggle("ldm-with-form", WITH_FORM.includes(name));
  kept.set("section", name);
  const go = $("ldm-go");
  if (go) go.textContent = name === "compare" ? "What will it cost?" : "Make it";
  const instead = fresh || history.state?.look; // of a closer look, which has closed
  if (location.hash !== `#${name}`) history[instead ? "replaceState" : "pushState"](null, "", `#${name}`);
  fresh = false;
  for (const tab of document.querySelectorAll("[role=tab][data-section]")) {
    const now = tab.dataset.section === name;
    tab.setAttribute("aria-selected", String(now));
    tab.tabIndex = now ? 0 : -1;
    if (now && focus) tab.focus();
    if (now) tab.scrollIntoView({block: "nearest", inline: "nearest"});
  }
  opened[name]?.();
}

export function start() {
  for (const tab of document.querySelectorAll("[role=tab][data-section]")) {
    tab.addEventListener("click", () => open(tab.dataset.section));
    tab.addEventListener("keydown", (event) => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      event.preventDefault();
      const at = SECTIONS.indexOf(current()) + step;
      open(SECTIONS[(at + SECTIONS.length) % SECTIONS.length], {focus: true});
    });
  }
  window.addEventListener("popstate", () => location.hash !== `#${current()}` && open(location.hash.slice(1)));
  open(location.hash.slice(1) || kept.get("section", "create"));
  const chosen = kept.get("theme");
  if (chosen) document.body.classList.toggle("dark", chosen === "dark");
  $("ldm-theme").addEventListener("click", () => {
    const dark = document.body.classList.toggle("dark");
    kept.set("theme", dark ? "dark" : "light");
  });
}
