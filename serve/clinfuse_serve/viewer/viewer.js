// The viewer: choose a pair and a priority, see MRI, CT, fused image and uncertainty, download.
import { Session, askJson, onTokenWanted, setToken } from "./api.js";
import { DOUBT_LOOK, drawLegend, fadeBelow, flagText, meaning } from "./doubt.js";
import { tellFindings } from "./findings.js";
import { makeImage, replaceSlices, sizeOf } from "./images.js";
import { Panels, VIEWS, webgl2 } from "./panels.js";
import { Priority } from "./priority.js";
import { namesOf, placeText, readOut } from "./readout.js";
import { Source } from "./source.js";

const $ = (id) => document.getElementById(id);
const SLICE_WAIT_MS = 80;
const WHOLE_WAIT_MS = 900;
const FLAG_OPACITY = 0.6;
const WINDOWS = { whole: null, bone: [-770, 1730], brain: [0, 80], blood: [-20, 180] };
const state = { session: null, images: {}, info: null, simulated: false, abort: null, timer: 0, mm: null, busy: false };

function say(text, kind = "") { $("status").textContent = text; $("status").className = kind; }

const panels = new Panels($("images"), (mm, byKeyboard) => {
  state.mm = mm;
  if (!state.info) return;
  const sentence = readOut(state.images, state.info, mm, titles());
  panels.describe(placeText(mm, state.info.spacing_assumed));
  if (byKeyboard) { clearTimeout(state.spoken); state.spoken = setTimeout(() => { $("spoken").textContent = sentence; }, 400); }
});
window.clinfuse = { state, panels }; // for the console and the tests
const priority = new Priority(() => later());
const source = new Source((chosen) => begin(chosen), () => say("Choose both images of the pair first.", "warn"));

function titles() {
  const [mri, other] = namesOf(state.info.modalities);
  const made = state.simulated ? "Simulated " : "";
  return {
    anatomy: `${made}${mri}`, companion: `${made}${other}`, fused: `Fused: ${state.info.preset.replaceAll("_", " ")}`,
    uncertainty: "Fused with uncertainty", compared: $("compare").value ? `Fused: ${$("compare").selectedOptions[0].textContent}` : "",
  };
}

function begin(chosen) {
  state.session = new Session(chosen);
  state.images = {};
  tellFindings($("findings"));
  run(null);
}

// slab: [start, stop) fuses only these axial slices and puts them into the volumes that are shown.
async function run(slab) {
  clearTimeout(state.timer);
  if (!state.session) return;
  state.abort?.abort();
  const abort = new AbortController();
  state.abort = abort;
  const started = performance.now();
  const fresh = !state.images.fused;
  say(slab ? "Fusing this slice …" : fresh ? "Preparing and fusing …" : "Fusing …", "busy");
  state.busy = true;
  const onShare = (share) => { $("progress").hidden = Boolean(slab); $("progress").value = share; };
  try {
    const reply = await state.session.fuse({ ...priority.params, inputs: fresh, ...(slab && { slab }) }, abort.signal, onShare);
    const other = $("compare").value
      ? await state.session.fuse({ preset: $("compare").value, ...(slab && { slab }) }, abort.signal, onShare) : null;
    if (abort.signal.aborted) return;
    await receive(reply, other, slab);
    tell(reply, (performance.now() - started) / 1000, slab);
    state.busy = false;
    if (slab) state.timer = setTimeout(() => run(null), WHOLE_WAIT_MS);
    $("progress").hidden = true;
  } catch (error) {
    $("progress").hidden = true;
    if (error.name === "AbortError" || abort.signal.aborted) return;
    state.busy = false;
    say(error.message, "bad");
    if (error.status === 429 || error.status === 503) state.timer = setTimeout(() => run(slab), 1000 * (error.retryAfter || 1));
  }
}

async function receive(reply, other, slab) {
  const { images } = state;
  state.info = reply.info;
  state.simulated = reply.simulated;
  if (!images.fused) await makeAll(reply);
  else for (const key of ["fused", "uncertainty", "interval"]) if (reply.maps[key]) put(key, reply.maps[key], slab);
  if (!other) delete images.compared;
  else if (images.compared) put("compared", other.maps.fused, slab);
  else if (!slab) images.compared = await makeImage(other.maps.fused, "compared");
  await show();
}

async function makeAll(reply) {
  tellFindings($("findings"), reply.info.findings);
  for (const key of Object.keys(reply.maps)) state.images[key] = await makeImage(reply.maps[key], key);
  state.images.under = await makeImage(reply.maps.fused, "under");
  state.images.doubt = fadeBelow(await makeImage(reply.maps.uncertainty, "doubt", DOUBT_LOOK));
  state.images.flag = await makeImage(reply.maps.uncertainty, "flag", { colormap: "flag", cal_min: threshold(), opacity: 0 });
  const deep = sizeOf(state.images.fused)[2] > 1;
  $("view").disabled = !deep;
  panels.view = deep ? $("view").value : "axial";
}

// The copies that the uncertainty panel shows change with their originals.
const COPIES = { fused: ["under"], uncertainty: ["doubt", "flag"] };
function put(key, buffer, slab) {
  for (const name of [key, ...(COPIES[key] || [])]) replaceSlices(state.images[name], buffer, slab ? slab[0] : 0);
}

async function show() {
  const { images } = state;
  const named = titles();
  const rows = { anatomy: [images.anatomy], companion: [images.companion], fused: [images.fused], uncertainty: [images.under, images.doubt, images.flag] };
  if (images.compared) rows.compared = [images.compared];
  $("empty").hidden = true;
  $("simulated").hidden = !state.simulated;
  setWindow();
  setThreshold();
  await panels.show(Object.fromEntries(Object.entries(rows).map(([key, layers]) => [key, { title: named[key], layers }])));
  panels.refresh("fused", "uncertainty", "compared");
  $("meaning").textContent = meaning(state.info);
  for (const id of ["download-nifti", "download-dicom"]) $(id).disabled = false;
  panels.goTo(state.mm && panels.place() ? state.mm : panels.place());
}

function tell(reply, seconds, slab) {
  const doubt = reply.degraded ? "; degraded: fewer members than asked, the doubt is larger" : "";
  const rest = slab ? " This slice first; the whole follows." : "";
  say(`Fused in ${seconds.toFixed(2)} s, preset ${reply.info.preset.replaceAll("_", " ")}, ${reply.members} members${doubt}.${rest}`, reply.degraded ? "warn" : "");
}

// A changed preset: first the axial slice in view, then all.
function later() {
  clearTimeout(state.timer);
  if (!state.session) return;
  const volume = state.images.fused && sizeOf(state.images.fused)[2] > 1;
  const slice = volume ? state.images.fused.mm2vox([...state.mm])[2] : 0;
  state.timer = setTimeout(() => run(volume ? [slice, slice + 1] : null), SLICE_WAIT_MS);
}

function setWindow() {
  const { companion } = state.images;
  const scaling = state.info.scaling?.companion;
  const hounsfield = scaling?.unit === "HU";
  $("window").disabled = !hounsfield;
  const wanted = hounsfield ? WINDOWS[$("window").value] : null;
  const share = (value) => (value - scaling.low) / (scaling.high - scaling.low);
  [companion.cal_min, companion.cal_max] = wanted ? [Math.max(0, share(wanted[0])), Math.min(1, share(wanted[1]))] : [0, 1];
}

function threshold() { return $("threshold").value / 100; }

function setThreshold() {
  const { flag, doubt, uncertainty } = state.images;
  $("flagged").textContent = flagText(uncertainty, threshold(), state.info?.spacing_assumed);
  if (!flag) return;
  flag.cal_min = threshold();
  flag.opacity = threshold() < 1 ? FLAG_OPACITY : 0;
  doubt.opacity = $("opacity").value / 100;
}

async function download(format) {
  try {
    say("Preparing the download …", "busy");
    const reply = await state.session.post({ ...priority.params, output: "bundle", inputs: format === "nifti", format });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await reply.blob());
    link.download = (/filename="([^"]+)"/.exec(reply.headers.get("Content-Disposition") || "") || [])[1] || "fused.zip";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    say("Downloaded. Research use only.");
  } catch (error) { say(error.message, "bad"); }
}

function connect() {
  for (const [name, { title }] of Object.entries(VIEWS)) $("view").append(new Option(title, name));
  $("view").addEventListener("change", () => { panels.setView($("view").value); panels.describe(); });
  $("compare").addEventListener("change", () => { if (state.images.fused) run(null); });
  $("window").addEventListener("change", () => { if (state.images.companion) { setWindow(); panels.refresh("companion"); } });
  for (const id of ["opacity", "threshold"]) $(id).addEventListener("input", () => { setThreshold(); panels.refresh("uncertainty"); });
  $("download-nifti").addEventListener("click", () => download("nifti"));
  $("download-dicom").addEventListener("click", () => download("dicom"));
  $("token").addEventListener("change", () => { setToken($("token").value); load(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  onTokenWanted(() => { $("token-row").hidden = false; $("token").focus(); });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "u" || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
    $("opacity").value = Number($("opacity").value) ? 0 : 70;
    $("opacity").dispatchEvent(new Event("input"));
  });
}

async function load() {
  try {
    priority.setPresets(await askJson("/v1/presets"));
    source.setExamples(await askJson("/v1/examples"));
    say("Choose a demo case, or drop an MRI and a CT on the page.");
  } catch (error) { say(error.message, "bad"); }
}

drawLegend($("legend"));
connect();
if (webgl2()) load();
else say("This browser offers no WebGL 2, which the pictures need. Turn on hardware acceleration or use a current Firefox, Chrome, Edge or Safari. Fusing by `clinfuse fuse --url` works without it.", "bad");
