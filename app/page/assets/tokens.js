// The token meter under the prompt: how much of it the model reads, and which words it does not.
import {$, api, calm, el} from "./core.js";
import {heard} from "./form.js";

let asked = "";

const meter = calm(0.25, async ({prompt = "", negative = "", model}) => {
  const wanted = JSON.stringify([prompt, negative, model]);
  if (wanted === asked) return;
  asked = wanted;
  const place = $("ldm-tokens");
  if (!prompt) return place.replaceChildren();
  let told;
  try {
    told = await api("/v1/tokens", {json: {model, prompt, negative}});
  } catch (error) {
    place.replaceChildren(el("span", {class: "ldm-bad"}, error.message));
    return;
  }
  if (wanted !== asked) return;
  place.replaceChildren(...line(told.prompt, ""), ...(told.negative.outside.length ? line(told.negative, "not in it: ") : []));
});

function line({count, limit, windows, outside}, lead) {
  const room = limit * windows;
  const bar = el("span", {class: "ldm-bar", "aria-hidden": "true"}, el("span", {style: `width: ${Math.min(100, (100 * count) / room)}%`}));
  const said = `${lead}${count} of ${room} tokens${windows > 1 ? ` in ${windows} windows` : ""}`;
  const parts = [bar, el("span", {}, said)];
  if (outside.length) parts.push(el("span", {class: "ldm-bad"}, `not read: ${outside.join(" ")}`));
  return parts;
}

export const start = () => heard(meter);
