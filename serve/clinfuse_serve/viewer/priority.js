// The clinical priority: preset with its sentence, the main slider, the expert values.
export const GREEK = [["alpha", "α", "brain like MRI"], ["beta", "β", "bone like CT"], ["gamma", "γ", "lesion border"],
  ["lambda_dice", "λ₁", "lesion overlap (Dice)"], ["lambda_nsd", "λ₂", "lesion surface (NSD)"], ["lambda_hd", "λ₃", "lesion outliers (HD95)"],
  ["tau_mm", "τ", "border tolerance, mm"], ["eta", "η", "ROI guidance"], ["eta_u", "ηᵤ", "uncertainty guidance"],
  ["kappa", "κ", "modulation by doubt"]];
const LIMIT = 10;
const $ = (id) => document.getElementById(id);

export class Priority {
  // onChange(): the wanted picture is another one now.
  constructor(onChange) {
    this.onChange = onChange;
    this.presets = [];
    for (const [key, letter, title] of GREEK) this.addField(key, letter, title);
    $("preset").addEventListener("change", () => this.reset());
    $("reset").addEventListener("click", () => this.reset());
    $("priority").addEventListener("input", () => this.changed());
  }

  addField(key, letter, title) {
    const field = Object.assign(document.createElement("input"), { type: "number", id: `greek-${key}`, step: "any", min: "0" });
    const label = Object.assign(document.createElement("label"), { htmlFor: field.id });
    label.append(Object.assign(document.createElement("i"), { textContent: letter }), ` ${title}`);
    field.addEventListener("change", () => { field.dataset.changed = "1"; this.changed(); });
    $("greek").append(label, field);
  }

  setPresets(rows) {
    const chosen = $("preset").value || "balanced";
    this.presets = rows;
    const options = () => rows.map((row) => new Option(row.name.replaceAll("_", " "), row.name));
    $("preset").replaceChildren(...options());
    $("compare").replaceChildren(new Option("nothing", ""), ...options());
    if (rows.some((row) => row.name === chosen)) $("preset").value = chosen;
    this.show();
  }

  get preset() { return this.presets.find((row) => row.name === $("preset").value); }

  // What differs from the preset. The slider multiplies β and divides α, by up to four either way.
  get weights() {
    const tilt = 4 ** ($("priority").value / 100);
    const values = {};
    for (const [key] of GREEK) if ($(`greek-${key}`).dataset.changed) values[key] = Number($(`greek-${key}`).value);
    if (tilt !== 1) {
      values.alpha = Math.min(LIMIT, (values.alpha ?? this.preset.alpha) / tilt);
      values.beta = Math.min(LIMIT, (values.beta ?? this.preset.beta) * tilt);
    }
    return values;
  }

  get params() { return { preset: this.preset.name, weights: this.weights }; }

  reset() {
    $("priority").value = 0;
    for (const [key] of GREEK) delete $(`greek-${key}`).dataset.changed;
    this.changed();
  }

  changed() { this.show(); this.onChange(); }

  show() {
    const shown = { ...this.preset, ...this.weights };
    const way = { "-1": "towards soft tissue", 0: "as the preset has it", 1: "towards bone" }[Math.sign($("priority").value)];
    $("sentence").textContent = this.preset.description;
    $("weights").textContent = `${way}: α ${shown.alpha.toFixed(2)}, β ${shown.beta.toFixed(2)}, γ ${shown.gamma.toFixed(2)}`;
    $("priority").setAttribute("aria-valuetext", way);
    for (const [key] of GREEK) {
      const field = $(`greek-${key}`);
      if (!field.dataset.changed) field.value = this.preset[key];
    }
  }
}
