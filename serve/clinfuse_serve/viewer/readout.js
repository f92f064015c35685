// The values under the cross, in raw units where they are known.
import { rawValue, valueAt } from "./images.js";

const $ = (id) => document.getElementById(id);
const number = (value, digits) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

export function placeText([x, y, z]) {
  const side = (value, plus, minus) => `${value < 0 ? minus : plus} ${Math.abs(value).toFixed(1)}`;
  return `${side(x, "R", "L")}, ${side(y, "A", "P")}, ${side(z, "S", "I")} mm`;
}

// Fills the table; returns one sentence for screen readers.
export function readOut(images, info, mm, titles) {
  const raw = (key) => rawValue((info.scaling || {})[key], valueAt(images[key], mm));
  const [mri, ct] = [raw("anatomy"), raw("companion")];
  const [fused, half, doubt] = ["fused", "interval", "uncertainty"].map((key) => valueAt(images[key], mm));
  const coverage = Number.isFinite(half) ? `${number(Math.max(0, fused - half), 2)} to ${number(Math.min(1, fused + half), 2)}` : "not calibrated";
  const rows = {
    place: placeText(mm),
    mri: mri ? `${number(mri.value, 0)} ${mri.unit}` : number(valueAt(images.anatomy, mm), 2),
    ct: ct ? `${number(ct.value, 0)} ${ct.unit}` : number(valueAt(images.companion, mm), 2),
    fused: number(fused, 2),
    interval: coverage,
    doubt: number(doubt, 2),
  };
  if (images.compared) rows.compared = number(valueAt(images.compared, mm), 2);
  $("read-compared").parentElement.hidden = !images.compared;
  for (const [key, text] of Object.entries(rows)) $(`read-${key}`).textContent = text;
  $("name-mri").textContent = titles.anatomy;
  $("name-ct").textContent = titles.companion;
  return `${rows.place}: ${titles.anatomy} ${rows.mri}, ${titles.companion} ${rows.ct}, fused ${rows.fused}, interval ${rows.interval}, uncertainty ${rows.doubt}`;
}
