// The reader study: the next picture of this reader's order, rated without knowing how it was made.
import { ask, askJson, onTokenWanted, sendJson, setToken } from "./api.js";
import { makeImage, sizeOf } from "./images.js";
import { Panels, VIEWS, webgl2 } from "./panels.js";
import { namesOf, placeText } from "./readout.js";

const $ = (id) => document.getElementById(id);
const state = { study: null, reader: "", item: null, assumed: false, shown: 0, busy: false };
const panels = new Panels($("images"), (mm) => panels.describe(placeText(mm, state.assumed)));
window.clinfuse = { state, panels }; // for the console and the tests

function say(text, kind = "") { $("status").textContent = text; $("status").className = kind; }

const pathOf = (item) => `/v1/study/readers/${encodeURIComponent(state.reader)}${item === undefined ? "" : `/${item}`}`;

async function begin() {
  state.reader = $("reader").value;
  await guarded(async () => {
    state.study = await askJson("/v1/study");
    $("title").textContent = state.study.title;
    $("scale").textContent = `1 is worst, ${state.study.scale} is best.`;
    await show(await askJson(pathOf()));
  });
}

async function show(next) {
  $("rating").hidden = true; // nothing is rated before it is seen
  state.item = next.item;
  $("progress").hidden = false;
  $("progress").value = next.done / next.items;
  $("simulated").hidden = !next.simulated;
  if (next.item === null) { finish(next); return; }
  state.assumed = next.spacing_assumed;
  say(`Picture ${next.done + 1} of ${next.items}: loading …`, "busy");
  const [anatomy, companion] = namesOf(next.modalities);
  const rows = {};
  for (const [key, title] of Object.entries({ anatomy, companion, fused: "Fused image" })) {
    const buffer = await picture(`${pathOf(next.item)}/${key}`);
    rows[key] = { title, layers: [await makeImage(buffer, key)] };
  }
  const deep = sizeOf(rows.fused.layers[0])[2] > 1;
  $("view").disabled = !deep;
  panels.view = deep ? $("view").value : "axial";
  await panels.show(rows);
  panels.goTo(panels.place());
  for (const id of ["rating", "look"]) $(id).hidden = false;
  $("begin").hidden = true;
  askQuestions();
  say(`Picture ${next.done + 1} of ${next.items}.`);
  state.shown = performance.now();
}

// One picture; a service that is full, or lacks a member, is asked again when it says.
async function picture(path) {
  for (;;) {
    try { return await (await ask(path)).arrayBuffer(); } catch (error) {
      if (!error.retryAfter) throw error;
      say(`Waiting: ${error.message}`, "busy");
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
    }
  }
}

function finish(next) {
  for (const id of ["rating", "look", "begin"]) $(id).hidden = true;
  $("images").hidden = true;
  say(`Thank you: all ${next.items} pictures are rated.`);
}

function askQuestions() {
  $("questions").replaceChildren(...state.study.questions.map((question, index) => {
    const set = document.createElement("fieldset");
    const row = Object.assign(document.createElement("div"), { className: "scale" });
    set.append(Object.assign(document.createElement("legend"), { textContent: question }), row);
    for (let value = 1; value <= state.study.scale; value += 1) {
      const label = document.createElement("label");
      label.append(Object.assign(document.createElement("input"), { type: "radio", name: `q${index}`, value, required: true }), String(value));
      row.append(label);
    }
    return set;
  }));
  $("questions").querySelector("input").focus();
}

async function send() {
  const seconds = (performance.now() - state.shown) / 1000;
  const ratings = state.study.questions.map((_, index) => Number(document.querySelector(`input[name=q${index}]:checked`).value));
  await guarded(async () => show(await sendJson(pathOf(state.item), "POST", { ratings, seconds })));
}

async function guarded(action) {
  if (state.busy) return;
  state.busy = true;
  $("send").disabled = true;
  try { await action(); } catch (error) { say(error.message, "bad"); $("begin").hidden = false; }
  $("send").disabled = false;
  state.busy = false;
}

for (const [name, { title }] of Object.entries(VIEWS)) $("view").append(new Option(title, name));
$("view").addEventListener("change", () => { panels.setView($("view").value); panels.describe(); });
$("token").addEventListener("change", () => setToken($("token").value));
$("begin").addEventListener("submit", (event) => { event.preventDefault(); begin(); });
$("rating").addEventListener("submit", (event) => { event.preventDefault(); send(); });
onTokenWanted(() => { $("token-row").hidden = false; $("token").focus(); });
if (!webgl2()) say("This browser offers no WebGL 2, which the pictures need.", "bad");
