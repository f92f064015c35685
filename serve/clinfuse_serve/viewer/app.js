// The page: choose a pair and a priority, see MRI, CT, fused and uncertainty, download.
"use strict";

const $ = (id) => document.getElementById(id);
const COLUMNS = [["anatomy", "MRI"], ["companion", "CT"], ["fused", "Fused"], ["uncertainty", "Fused + uncertainty"]];
const GREEK = [["alpha", "α brain like MRI"], ["beta", "β bone like CT"], ["gamma", "γ lesion border"],
  ["lambda_dice", "λ₁ Dice"], ["lambda_nsd", "λ₂ surface"], ["lambda_hd", "λ₃ HD95"], ["tau_mm", "τ tolerance, mm"],
  ["eta", "η ROI guidance"], ["eta_u", "η_u uncertainty guidance"], ["kappa", "κ modulation"]];
const ROLES = ["anatomy", "companion", "brain", "bone", "lesion"];
const state = { presets: [], volumes: {}, cross: [0, 0, 0], token: null, source: null, info: null, abort: null, timer: 0, busy: false };

function say(text, kind = "") {
  $("status").textContent = text;
  $("status").className = kind;
}

async function ask(path, options = {}) {
  const headers = $("token").value ? { Authorization: `Bearer ${$("token").value}` } : {};
  const reply = await fetch(path, { ...options, headers: { ...headers, ...(options.headers || {}) } });
  if (reply.ok) return reply;
  const problem = await reply.json().catch(() => ({ title: reply.statusText }));
  const error = new Error([problem.title, problem.expected && `expected ${problem.expected}`,
    problem.found && `found ${problem.found}`, problem.todo].filter(Boolean).join("; "));
  error.status = reply.status;
  error.retryAfter = Number(reply.headers.get("Retry-After") || 0);
  if (reply.status === 401) { $("token-row").hidden = false; $("token").focus(); }
  throw error;
}

function currentPreset() { return state.presets.find((row) => row.name === $("preset").value); }

// The main slider multiplies β and divides α, by up to four either way.
function weights() {
  const preset = currentPreset();
  const tilt = 4 ** ($("priority").value / 100);
  const values = {};
  for (const [key] of GREEK) {
    const field = $(`greek-${key}`);
    if (field.dataset.changed) values[key] = Number(field.value);
  }
  if (tilt !== 1) {
    values.alpha = Math.min(10, (values.alpha ?? preset.alpha) / tilt);
    values.beta = Math.min(10, (values.beta ?? preset.beta) * tilt);
  }
  return values;
}

function showPreset() {
  const preset = currentPreset();
  const shown = { ...preset, ...weights() };
  const name = { "-1": "towards soft tissue", 0: "as the preset has it", 1: "towards bone" }[Math.sign($("priority").value)];
  $("sentence").textContent = preset.description;
  $("weights").textContent = `${name}: α ${shown.alpha.toFixed(2)}, β ${shown.beta.toFixed(2)}, γ ${shown.gamma.toFixed(2)}`;
  $("priority").setAttribute("aria-valuetext", name);
  for (const [key] of GREEK) {
    const field = $(`greek-${key}`);
    if (!field.dataset.changed) field.value = preset[key];
  }
}

// slab: [start, stop) fuses only these axial slices and puts them into the volumes that are shown.
async function fuse(source, slab = null) {
  if (source) { state.source = source; state.token = null; }
  if (!state.source) { say("Choose a pair first.", "warn"); return; }
  if (state.abort) state.abort.abort();
  state.abort = new AbortController();
  const { signal } = state.abort;
  const started = performance.now();
  say(slab ? "Fusing this slice …" : "Fusing …", "busy");
  state.busy = true;
  try {
    const reply = await post({ inputs: !state.token, compress: false, format: "nifti", ...(slab && { slab }) }, signal);
    const buffer = await reply.arrayBuffer();
    if (signal.aborted) return;
    if (slab) receiveSlab(buffer, slab[0]); else receive(reply, buffer);
    await compare(slab, signal);
    state.busy = false;
    const seconds = ((performance.now() - started) / 1000).toFixed(2);
    const members = reply.headers.get("X-Clinfuse-Members").replace("/", " of ");
    const degraded = reply.headers.get("X-Clinfuse-Degraded") === "true";
    say(`Fused in ${seconds} s with preset ${state.info.preset}; ${members} members answered${degraded ? ": degraded, doubt more" : ""}; seed ${state.info.seed}.${slab ? " This slice first; the whole follows." : ""}`, degraded ? "warn" : "");
    if (slab) state.timer = setTimeout(() => fuse(), 1500);
  } catch (error) {
    if (error.name === "AbortError") return;
    state.busy = false;
    say(error.message, "bad");
    if (error.status === 429 || error.status === 503) state.timer = setTimeout(() => fuse(), 1000 * (error.retryAfter || 1));
  }
}

// Send the case's token if the service has the case; else, or if it is gone there, the images themselves.
async function post(more, signal) {
  const params = { preset: $("preset").value, weights: weights(), output: "bundle", ...more };
  const send = (form) => ask("/v1/fuse", { method: "POST", body: form, signal });
  if (state.token) {
    const form = new FormData();
    form.set("params", JSON.stringify({ ...params, case: state.token }));
    try { return await send(form); } catch (error) { if (error.status !== 410) throw error; }
  }
  const form = new FormData();
  if (state.source.example) params.example = state.source.example;
  form.set("params", JSON.stringify(params));
  for (const [role, file] of Object.entries(state.source.files || {})) form.set(role, file, role);
  return send(form);
}

// The same case and seed by another preset, as a fifth column under the same cross.
async function compare(slab, signal) {
  const name = $("compare").value;
  if (!name) { delete state.volumes.compared; layOut(); draw(); return; }
  const reply = await post({ preset: name, weights: {}, compress: false, format: "nifti", ...(slab && { slab }) }, signal);
  const files = unzip(await reply.arrayBuffer());
  const part = parseNifti(files.get([...files.keys()].find((file) => file.includes("_desc-fused_") && file.endsWith(".nii"))));
  if (slab && state.volumes.compared) state.volumes.compared.data.set(part.data, slab[0] * part.size[0] * part.size[1]);
  else if (!slab) state.volumes.compared = part;
  layOut();
  draw();
}

function columns() {
  if (!state.volumes.compared) return COLUMNS;
  return [...COLUMNS, ["compared", `Fused: ${$("compare").selectedOptions[0].textContent}`]];
}

function receive(reply, buffer) {
  const files = unzip(buffer);
  const sidecar = [...files.keys()].find((name) => name.endsWith(".json"));
  state.info = JSON.parse(new TextDecoder().decode(files.get(sidecar)));
  if (state.info.Files.anatomy) state.volumes = {};
  for (const [key, name] of Object.entries(state.info.Files)) state.volumes[key] = parseNifti(files.get(name));
  const first = state.volumes.fused.size;
  if (!state.token) state.cross = first.map((count) => Math.floor(count / 2));
  state.token = reply.headers.get("X-Clinfuse-Case");
  $("simulated").hidden = reply.headers.get("X-Clinfuse-Simulated") !== "true";
  $("calibrated").textContent = state.info.units && String(state.info.units.uncertainty).startsWith("calibrated") ? "1 unsure (calibrated)" : "1 unsure (not calibrated)";
  $("download").disabled = false;
  layOut();
  draw();
}

function receiveSlab(buffer, start) {
  const files = unzip(buffer);
  state.info = JSON.parse(new TextDecoder().decode(files.get([...files.keys()].find((name) => name.endsWith(".json")))));
  for (const [key, name] of Object.entries(state.info.Files)) {
    const part = parseNifti(files.get(name));
    if (state.volumes[key]) state.volumes[key].data.set(part.data, start * part.size[0] * part.size[1]);
  }
  draw();
}

function layOut() {
  const planes = state.volumes.fused.size[2] > 1 ? Object.keys(PLANES) : ["axial"];
  const box = $("images");
  const [mri, other] = state.info.modalities || [];
  COLUMNS[0][1] = mri && mri !== "MR" ? mri : "MRI";
  COLUMNS[1][1] = `${state.info.Simulated ? "Simulated " : ""}${other || "CT"}`;
  const shown = `${planes} ${columns()}`;
  if (box.dataset.shown === shown) return;
  box.dataset.shown = shown;
  box.textContent = "";
  box.classList.toggle("single", planes.length === 1);
  box.classList.toggle("five", columns().length === 5);
  for (const [, title] of columns()) box.append(Object.assign(document.createElement("h2"), { textContent: title }));
  for (const plane of planes) for (const [key, title] of columns()) box.append(makeFigure(plane, key, title));
}

function makeFigure(plane, key, title) {
  const figure = document.createElement("figure");
  const canvas = Object.assign(document.createElement("canvas"), { tabIndex: 0 });
  canvas.dataset.plane = plane;
  canvas.dataset.key = key;
  canvas.dataset.title = title;
  canvas.setAttribute("role", "img");
  figure.append(canvas, document.createElement("figcaption"));
  canvas.addEventListener("pointerdown", (event) => moveCross(canvas, event));
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) moveCross(canvas, event); });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); scroll(plane, -Math.sign(event.deltaY)); }, { passive: false });
  canvas.addEventListener("keydown", (event) => onKey(event, plane, figure));
  return figure;
}

function moveCross(canvas, event) {
  const box = canvas.getBoundingClientRect();
  state.cross = voxelAt(canvas.dataset.plane, (event.clientX - box.left) / box.width,
    (event.clientY - box.top) / box.height, state.cross, state.volumes.fused.size);
  draw();
}

function scroll(plane, steps) {
  const { through } = PLANES[plane];
  const count = state.volumes.fused.size[through];
  state.cross[through] = Math.min(count - 1, Math.max(0, state.cross[through] + steps));
  draw();
}

function onKey(event, plane, figure) {
  const steps = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -1e6, End: 1e6 }[event.key];
  if (steps) { event.preventDefault(); scroll(plane, steps); }
  if (event.key === "f") figure.classList.toggle("large");
}

function draw() {
  const { volumes, cross } = state;
  if (!volumes.fused) return;
  const options = { opacity: $("opacity").value / 100, threshold: $("threshold").value / 100 };
  for (const canvas of document.querySelectorAll("#images canvas")) {
    const { plane, key, title } = canvas.dataset;
    const { through } = PLANES[plane];
    const doubt = key === "uncertainty";
    drawSlice(canvas, plane, cross, doubt ? volumes.fused : volumes[key], doubt ? volumes.uncertainty : null, options);
    const place = `${plane} slice ${cross[through] + 1} of ${volumes.fused.size[through]}`;
    canvas.setAttribute("aria-label", `${title}, ${place}`);
    canvas.nextSibling.textContent = volumes.fused.size[2] > 1 ? place : canvas.dataset.title;
  }
  readOut();
}

function readOut() {
  const { volumes, cross } = state;
  const number = (value, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits) : "none");
  const raw = (key, value) => {
    const scaling = (state.info.scaling || {})[key];
    return scaling && scaling.unit === "HU" ? ` (${Math.round(scaling.low + value * (scaling.high - scaling.low))} HU)` : "";
  };
  const [mri, ct] = [valueAt(volumes.anatomy, cross), valueAt(volumes.companion, cross)];
  const place = worldOf(volumes.fused, cross).map((v) => v.toFixed(1)).join(", ");
  const doubt = valueAt(volumes.interval, cross);
  $("readout").textContent = `At ${place} mm: ${COLUMNS[0][1]} ${number(mri)}, ${COLUMNS[1][1]} ${number(ct)}${raw("companion", ct)}, fused ${number(valueAt(volumes.fused, cross))}${Number.isFinite(doubt) ? ` ± ${number(doubt)}` : ""}, uncertainty ${number(valueAt(volumes.uncertainty, cross))}`;
  showFlagged();
}

function showFlagged() {
  const threshold = $("threshold").value / 100;
  const { uncertainty } = state.volumes;
  if (threshold >= 1 || !uncertainty) { $("flagged").textContent = "nothing flagged"; return; }
  let count = 0;
  for (const value of uncertainty.data) if (value >= threshold) count += 1;
  const millilitres = (count * uncertainty.spacing.reduce((a, b) => a * b, 1)) / 1000;
  $("flagged").textContent = `${millilitres.toFixed(1)} ml at ${threshold.toFixed(2)} or above, shown in cyan`;
}

async function download() {
  try {
    say("Preparing the download …", "busy");
    const reply = await post({ inputs: true }, undefined);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await reply.blob());
    link.download = (/filename="([^"]+)"/.exec(reply.headers.get("Content-Disposition") || "") || [])[1] || "fused.zip";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    say("Bundle downloaded. Research use only.");
  } catch (error) { say(error.message, "bad"); }
}

function chosenSource() {
  if ($("example").value) return { example: $("example").value };
  const files = {};
  for (const role of ROLES) if ($(role).files.length) [files[role]] = $(role).files;
  return files.anatomy && files.companion ? { files } : null;
}

function later() {
  showPreset();
  clearTimeout(state.timer);
  if (!state.source) return;
  const volume = state.token && state.volumes.fused.size[2] > 1;
  const slice = state.cross[2];
  state.timer = setTimeout(() => fuse(null, volume ? [slice, slice + 1] : null), volume ? 80 : 150);
}

function buildGreek() {
  for (const [key, title] of GREEK) {
    const field = Object.assign(document.createElement("input"), { type: "number", id: `greek-${key}`, step: "0.05", min: "0" });
    const label = Object.assign(document.createElement("label"), { htmlFor: field.id, textContent: title });
    field.addEventListener("change", () => { field.dataset.changed = "1"; later(); });
    $("greek").append(label, field);
  }
}

function resetWeights() {
  $("priority").value = 0;
  for (const [key] of GREEK) delete $(`greek-${key}`).dataset.changed;
  later();
}

// Two dropped files: a name with "ct" in it is the CT, else the order of dropping decides.
function onDrop(event) {
  event.preventDefault();
  $("file-row").classList.remove("over");
  const files = [...event.dataTransfer.files].slice(0, 2);
  if (files.length === 2 && /(^|[^a-z])ct([^a-z]|$)/i.test(files[0].name)) files.reverse();
  ["anatomy", "companion"].forEach((role, index) => {
    if (!files[index]) return;
    const list = new DataTransfer();
    list.items.add(files[index]);
    $(role).files = list.files;
  });
  $("example").value = "";
}

function connect() {
  $("load").addEventListener("click", () => {
    const source = chosenSource();
    if (source) fuse(source); else say("Choose both images of the pair first.", "warn");
  });
  $("example").addEventListener("change", () => {
    $("file-row").hidden = Boolean($("example").value);
    if ($("example").value) fuse(chosenSource());
  });
  $("preset").addEventListener("change", resetWeights);
  $("compare").addEventListener("change", () => { if (state.source) fuse(); });
  $("priority").addEventListener("input", later);
  $("reset").addEventListener("click", resetWeights);
  for (const id of ["opacity", "threshold"]) $(id).addEventListener("input", draw);
  $("download").addEventListener("click", download);
  $("token").addEventListener("change", begin);
  for (const kind of ["dragover", "dragleave"]) {
    $("file-row").addEventListener(kind, (event) => { event.preventDefault(); $("file-row").classList.toggle("over", kind === "dragover"); });
  }
  $("file-row").addEventListener("drop", onDrop);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "u" || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
    $("opacity").value = Number($("opacity").value) ? 0 : 70;
    draw();
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
}

async function begin() {
  try {
    state.presets = await (await ask("/v1/presets")).json();
    $("preset").replaceChildren(...state.presets.map((row) => new Option(row.name.replaceAll("_", " "), row.name)));
    $("compare").replaceChildren(new Option("nothing", ""), ...state.presets.map((row) => new Option(row.name.replaceAll("_", " "), row.name)));
    if (state.presets.some((row) => row.name === "balanced")) $("preset").value = "balanced";
    showPreset();
    const examples = await (await ask("/v1/examples")).json();
    $("example-row").hidden = examples.length === 0;
    $("example").replaceChildren(new Option("own files…", ""),
      ...examples.map((row) => new Option(`${row.id}${row.simulated ? " (simulated CT)" : ""}`, row.id)));
    say("Choose a pair to begin.");
  } catch (error) { say(error.message, "bad"); }
}

buildGreek();
drawLegend($("legend"));
connect();
begin();
