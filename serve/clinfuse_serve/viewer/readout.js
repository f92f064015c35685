// The values under the cross, in raw units where they are known; what the images are called.
import { rawValue, valueAt } from "./images.js";

const $ = (id) => document.getElementById(id);
const number = (value, digits) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

const NAMES = { MR: "MRI", NM: "SPECT or PET" };

// Titles of anatomy and companion image from their modalities.
export function namesOf(modalities) { return modalities.map((modality) => NAMES[modality] || modality); }

// assumed: the images came as pictures, whose spacing nobody stated.
export function placeText([x, y, z], assumed) {
  const side = (value, plus, minus) => `${value < 0 ? minus : plus} ${Math.abs(value).toFixed(1)}`;
  return `${side(x, "R", "L")}, ${side(y, "A", "P")}, ${side(z, "S", "I")} mm${assumed ? " (spacing assumed)" : ""}`;
}

// Fills the table; returns one sentence for screen readers.
export function readOut(images, info, mm, titles) {
  const raw = (key) => rawValue((info.scaling || {})[key], valueAt(images[key], mm));
  const [mri, ct] = [raw("anatomy"), raw("companion")];
  const [fused, half, doubt] = ["fused", "interval", "uncertainty"].map((key) => valueAt(images[key], mm));
  const coverage = Number.isFinite(half) ? `${number(Math.max(0, fused - half), 2)} to ${number(Math.min(1, fused + half), 2)}` : "not calibrated";
  const rows = {
    place: placeText(mm, info.spacing_assumed),
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
