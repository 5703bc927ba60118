// Personalize: photos, what the doctor finds, what it costs, how it goes, what it brought.
import {$, api, bytes, duration, el, kept, put, tell, trying, upload} from "./core.js";
import * as adapters from "./adapters.js";
import {chart} from "./chart.js";
import {chooser, takes} from "./drop.js";
import {fill} from "./form.js";
import {current, onOpen, open} from "./sections.js";

const ENDED = ["done", "failed", "cancelled"];
const LOOK = 1200; // milliseconds between two looks at a training
let photos = []; // {id, src}

export function start() {
  const [label, input] = chooser("Choose files", {several: true});
  $("ldm-photos-bring").append(label);
  takes($("ldm-photos-bring"), input, (files) => trying(() => bring(files)));
  $("ldm-learn").addEventListener("submit", (event) => {
    event.preventDefault();
    trying(plan);
  });
  const was = kept.get("learn", {});
  photos = was.photos || [];
  for (const name of ["token", "steps", "name"]) $(`ldm-learn-${name}`).value = was[name] || "";
  $("ldm-learn").addEventListener("input", () => {
    remember();
    $("ldm-plan").replaceChildren(); // it was about something else
  });
  show();
  onOpen("personalize", () => trying(refresh));
}

const remember = () => kept.set("learn", {photos, model: $("ldm-learn-model").value, ...Object.fromEntries(["token", "steps", "name"].map((name) => [name, $(`ldm-learn-${name}`).value]))});

async function bring(files) {
  for (const file of files) {
    const {id} = await upload(file);
    if (!photos.some((one) => one.id === id)) photos.push({id, name: file.name, src: await small(file)});
  }
  $("ldm-plan").replaceChildren();
  show();
  remember();
}

// A small copy to be shown, also after a reload.
async function small(file) {
  const image = await createImageBitmap(file);
  const scale = Math.min(1, 96 / Math.max(image.width, image.height));
  const sheet = el("canvas", {});
  Object.assign(sheet, {width: Math.max(1, image.width * scale), height: Math.max(1, image.height * scale)});
  sheet.getContext("2d").drawImage(image, 0, 0, sheet.width, sheet.height);
  return sheet.toDataURL("image/png");
}

function show() {
  $("ldm-photos").replaceChildren(...photos.map((one, i) => el("li", {}, el("img", {src: one.src, alt: `Picture ${i + 1}: ${one.name}`}),
    el("button", {class: "ldm-icon", "aria-label": `Without ${one.name}`, onclick: () => {
      photos = photos.filter((other) => other !== one);
      $("ldm-plan").replaceChildren();
      show();
      remember();
    }}, "×"))));
}

function asked() {
  const steps = Number($("ldm-learn-steps").value);
  const name = $("ldm-learn-name").value.trim();
  return {photos: photos.map((one) => one.id), token: $("ldm-learn-token").value, model: $("ldm-learn-model").value || "emoji",
    ...(steps ? {steps} : {}), ...(name ? {name} : {})};
}

async function plan() {
  if (!photos.length) return tell("Bring a few pictures first: drop them above, or choose files.", "error");
  const place = $("ldm-plan");
  place.replaceChildren(el("p", {class: "ldm-lead"}, "Looking at them, and measuring how fast this machine is ..."));
  const wish = asked(); // what is begun is what was billed
  let told;
  try {
    told = await api("/v1/trainings", {json: {...wish, dry: true}});
  } catch (error) {
    place.replaceChildren();
    throw error;
  }
  if (JSON.stringify(asked()) !== JSON.stringify(wish)) return place.replaceChildren(); // changed meanwhile
  const begin = el("button", {class: "ldm-primary", onclick: () => trying(async () => {
    begin.disabled = true;
    try {
      const begun = await api("/v1/trainings", {json: wish});
      place.replaceChildren();
      $("ldm-trainings").prepend(card(begun));
      draw(begun);
      trying(look);
    } finally {
      begin.disabled = false;
    }
  })}, "Begin");
  const cost = told.cost || {};
  const time = cost.total ? `at most about ${duration(cost.total)}` : "how long it takes could not be measured";
  place.replaceChildren(el("div", {class: "ldm-card"}, el("strong", {}, `${told.steps.toLocaleString()} steps, ${time}`),
    el("span", {class: "ldm-lead"}, cost.memory ? `memory ${bytes(cost.memory)} of ${bytes(cost.free)}, disk ${bytes(cost.disk)}` : ""),
    cost.fits === false ? el("p", {class: "ldm-bad"}, "It may not fit into memory.") : null,
    el("ul", {class: "ldm-findings"}, (told.notes || []).map((one) => el("li", {}, one)), (told.findings || []).map(finding)), begin));
}

// What the doctor found, with the pictures that it means.
const finding = ({level, what, cases = [], fix}) => el("li", {class: level === "stop" ? "ldm-bad" : ""}, el("b", {}, `${level}: `), what,
  fix ? `; ${fix}` : "", el("div", {class: "ldm-row"}, cases.slice(0, 8).flatMap(one)));

function one({photos: ids = [], detail}) {
  const seen = ids.map((id) => photos.find((each) => each.id === id)).filter(Boolean);
  return [...seen.map(({src, name}) => el("img", {src, alt: name})), detail ? el("span", {}, detail) : null];
}

async function refresh() {
  const {data} = await api("/v1/models");
  const select = $("ldm-learn-model");
  const now = select.value || kept.get("learn", {}).model || kept.get("form", {}).model;
  select.replaceChildren(...data.map(({id}) => el("option", {value: id}, id)));
  if (data.some(({id}) => id === now)) select.value = now;
  $("ldm-trainings").replaceChildren();
  await look(true);
}

// How the trainings go on, as long as somebody looks: one question at a time, so that no connection is held.
let looking = 0;
async function look(first = false) {
  const mine = ++looking;
  for (;;) {
    let all = [];
    try {
      all = (await api("/v1/trainings")).trainings;
      if (mine !== looking) return;
      $("ldm-trainings").append(...all.filter((one) => !$(`ldm-training-${one.id}`)).map(card));
      for (const one of all) {
        const going = !ENDED.includes(one.state);
        if (going || first || states.get(one.id) !== one.state) draw(await api(`/v1/trainings/${one.id}`));
        if (states.has(one.id) && states.get(one.id) !== one.state && one.state === "done") adapters.refresh();
        states.set(one.id, one.state);
      }
    } catch (error) {
      if (first) throw error; // later the server may be there again
    }
    first = false;
    if (all.length && all.every((one) => ENDED.includes(one.state))) return;
    await new Promise((done) => setTimeout(done, LOOK));
    if (mine !== looking || current() !== "personalize") return;
  }
}

const states = new Map(); // training -> its state when it was looked at last
const card = (one) => el("article", {id: `ldm-training-${one.id}`, class: "ldm-card"});

function draw(one) {
  const place = $(`ldm-training-${one.id}`);
  if (!place) return;
  const going = !ENDED.includes(one.state);
  const doing = one.doing?.what ? `${one.doing.what} ${one.doing.done ?? ""} of ${one.doing.total ?? ""}; ` : "";
  const said = one.cancelling ? "saving, and ending"
    : {queued: "waits for its turn", planning: "looking at the pictures", done: "done", failed: "failed", cancelled: "stopped"}[one.state]
    || (one.step && one.step === one.steps && !doing ? "looking at what it draws now" : "")
    || `${doing}step ${one.step} of ${one.steps}${one.eta ? `, about ${duration(one.eta)} left` : ""}`;
  const key = `${one.state} ${one.cancelling} ${one.report} ${one.adapter}`;
  if (place.dataset.key !== key) { // else what can be pressed stays where it is
    place.dataset.key = key;
    put(place, el("strong", {}, `${one.request?.token || ""} on ${one.request?.model || "emoji"}`), el("span", {role: "status", class: "ldm-lead"}),
      going ? el("progress", {max: "1", value: "0", "aria-label": "How far it is"}) : null,
      one.verdict ? el("p", {class: one.verdict.flags?.length ? "ldm-bad" : "ldm-good"}, one.verdict.verdict) : null,
      one.error ? el("p", {class: "ldm-bad"}, [one.error.what, one.error.why, one.error.fix].filter(Boolean).join(" ")) : null,
      actions(one, going, place), el("div", {class: "ldm-told"}));
  }
  place.querySelector("[role=status]").textContent = said;
  if (going) place.querySelector("progress").value = one.steps ? one.step / one.steps : 0;
  const seen = `${one.curves?.loss?.length} ${one.samples?.length}`;
  const told = place.querySelector(".ldm-told");
  if (told.dataset.seen === seen) return;
  told.dataset.seen = seen;
  const shown = told.querySelector("details")?.open;
  put(told, one.curves ? curves(one.curves) : null, one.samples?.length ? samples(one.samples, shown) : null);
}

function actions(one, going, place) {
  const act = (label, call) => el("button", {class: "ldm-quiet", onclick: () => trying(call)}, label);
  const post = (what) => async () => {
    draw(await api(`/v1/trainings/${one.id}/${what}`, {method: "POST"}));
    trying(look);
  };
  const row = el("div", {class: "ldm-actions"});
  if (going && !one.cancelling) row.append(act("Stop, and keep what was learned", post("cancel")));
  if (["failed", "cancelled"].includes(one.state)) row.append(act("Go on", post("resume")));
  if (one.adapter) row.append(act("Use it", () => use(one)));
  if (one.report) row.append(el("a", {class: "ldm-quiet", href: one.report, target: "_blank", rel: "noopener"}, "Report"));
  if (!going) row.append(act("Forget", async () => confirm("Forget this training? Its adapter stays; its report goes to the trash of the server.") && (await api(`/v1/trainings/${one.id}`, {method: "DELETE"}), place.remove())));
  return row;
}

const curves = (told) => el("div", {class: "ldm-curves"},
  told.loss?.length > 1 ? chart("How far off it is (lower is better)", {"in the pictures it learns from": smooth(told.loss),
    "at each look, at the same noise": told.validation || []}) : null,
  told.subject?.length ? chart("What its pictures are like", {"subject: like your pictures (more is better)": told.subject,
    "prompts: do what the words say (more)": told.prompt || [], "drift: other pictures change (less)": told.drift || [],
    "near copies of your pictures (less)": told.copies || []}) : null);

// The mean of the last steps: single losses say little.
function smooth(points) {
  let mean = points[0][1];
  return points.map(([step, value]) => [step, (mean = 0.95 * mean + 0.05 * value)]);
}

const samples = (steps, shown) => el("details", {open: shown !== false}, el("summary", {}, "The same prompts at each look"), ...steps.map(({step, pictures}) => el("div", {class: "ldm-row"},
  el("small", {}, `step ${step}`), pictures.slice(0, 8).map((url) => el("img", {src: url, alt: `At step ${step}`, loading: "lazy"})))));

async function use(one) {
  await adapters.refresh();
  fill({prompt: one.request.token, model: one.request.model || "emoji", loras: [{name: one.adapter, weight: 1}]});
  open("create");
}
