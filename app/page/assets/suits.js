// What a model would take where nothing is set, shown as the hint of each empty field.
import {$, api} from "./core.js";
import * as adapters from "./adapters.js";
import {heard, modelNow} from "./form.js";

let options = null;

export async function start() {
  heard(show);
  adapters.onChange(show);
  await refresh();
}

// Again after something was brought.
export async function refresh() {
  try {
    options = await api("/v1/options");
    show();
  } catch { /* only hints */ }
}

function show() {
  const own = options?.defaults?.[modelNow()];
  if (!own) return;
  const used = adapters.chosen().filter(({weight}) => weight).map(({name}) => options.adapters?.[name]).filter(Boolean);
  const told = {...own, ...Object.assign({}, ...used)}; // the last adapter has the last word, as when it is made
  const hints = {width: own.side, height: own.side, steps: told.steps, "guidance-scale": told.guidance_scale};
  for (const [name, value] of Object.entries(hints)) {
    const field = $(`ldm-f-${name}`)?.querySelector("input");
    if (field && value !== undefined && value !== null) field.placeholder = String(value);
  }
}
