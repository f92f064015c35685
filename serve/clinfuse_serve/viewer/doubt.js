// Uncertainty as colour: the scale, its legend, and the flag above a threshold.
import { millilitresAbove } from "./images.js";

const STOPS = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
const INDEX = [0, 51, 102, 153, 204, 255];
const CYAN = [0, 229, 255];

// Colours run from 0 to 1; below FAINT they fade out, so that sure tissue stays as it is.
const FAINT = 0.35;
const TRANSLUCENT_BELOW_MIN = 2; // NiiVue's COLORMAP_TYPE, which it does not export
export const DOUBT_LOOK = { colormap: "doubt", cal_min: FAINT, cal_max: 1 };
export function fadeBelow(image) { image.colormapType = TRANSLUCENT_BELOW_MIN; return image; }

export function addColours(nv) {
  const channel = (c) => STOPS.map((stop) => stop[c]);
  nv.addColormap("doubt", { R: channel(0), G: channel(1), B: channel(2), A: [0, 255, 255, 255, 255, 255], I: INDEX });
  const flat = (c) => [CYAN[c], CYAN[c], CYAN[c]]; // index 0 holds all that is below the threshold
  nv.addColormap("flag", { R: flat(0), G: flat(1), B: flat(2), A: [0, 255, 255], I: [0, 1, 255] });
}

export function drawLegend(canvas) {
  const context = canvas.getContext("2d");
  for (let i = 0; i < canvas.width; i += 1) {
    const at = (i / (canvas.width - 1)) * (STOPS.length - 1);
    const low = Math.min(STOPS.length - 2, Math.floor(at));
    const colour = [0, 1, 2].map((c) => STOPS[low][c] + (at - low) * (STOPS[low + 1][c] - STOPS[low][c]));
    context.fillStyle = `rgb(${colour.map(Math.round).join(",")})`;
    context.fillRect(i, 0, 1, canvas.height);
  }
}

// What the numbers of the legend mean, from the sidecar.
export function meaning(info) {
  const calibrated = String(info.units?.uncertainty || "").startsWith("calibrated");
  if (!calibrated) return "Not calibrated: an order of doubt, not a probability.";
  const tolerance = info.error_tolerance;
  return `Calibrated: probability that the fused value is wrong by more than ${Number(tolerance).toFixed(2)} of the grey scale.`;
}

export function flagText(image, threshold, assumed) {
  if (threshold >= 1 || !image) return "Nothing is flagged.";
  const volume = `${millilitresAbove(image, threshold).toFixed(1)} ml${assumed ? " (spacing assumed)" : ""}`;
  return `${volume} at ${threshold.toFixed(2)} or above, shown in cyan.`;
}
