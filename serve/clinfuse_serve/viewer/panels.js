// Linked panels: one NiiVue per image, the same place, plane and zoom in all; radiological display.
import { MULTIPLANAR_TYPE, Niivue, SHOW_RENDER, SLICE_TYPE } from "./vendor/niivue.js";
import { addColours } from "./doubt.js";

const LOOK = {
  isRadiologicalConvention: true, sagittalNoseLeft: true, dragAndDropEnabled: false, loadingText: "", logLevel: "error",
  backColor: [0, 0, 0, 1], crosshairColor: [0.5, 0.78, 1, 0.75], crosshairWidth: 0.8, crosshairWidthUnit: "mm", crosshairGap: 4,
  fontColor: [1, 0.84, 0.47, 1], fontMinPx: 15, viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "",
  show3Dcrosshair: true, multiplanarEqualSize: false, tileMargin: 2, isSliceMM: false,
};
export const VIEWS = {
  planes: { title: "Three planes", slice: SLICE_TYPE.MULTIPLANAR, layout: MULTIPLANAR_TYPE.COLUMN, render: SHOW_RENDER.NEVER },
  quad: { title: "Three planes and 3D", slice: SLICE_TYPE.MULTIPLANAR, layout: MULTIPLANAR_TYPE.GRID, render: SHOW_RENDER.ALWAYS },
  axial: { title: "Axial", slice: SLICE_TYPE.AXIAL },
  coronal: { title: "Coronal", slice: SLICE_TYPE.CORONAL },
  sagittal: { title: "Sagittal", slice: SLICE_TYPE.SAGITTAL },
  render: { title: "3D", slice: SLICE_TYPE.RENDER },
};
// Voxel steps on the RAS+ grid; the viewer's left is the patient's right.
const STEPS = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1], PageDown: [0, 0, -1], "+": [0, 0, 5], "-": [0, 0, -5] };

export function webgl2() { return Boolean(document.createElement("canvas").getContext("webgl2")); }

export class Panels {
  // onMove(mm, byKeyboard): the place has changed.
  constructor(box, onMove) { this.box = box; this.onMove = onMove; this.all = new Map(); this.view = "planes"; }

  get first() { return this.all.values().next().value; }

  // images: key → {title, layers: [NVImage, …]}; panels are made or removed as needed, the place stays.
  async show(images) {
    const place = this.place();
    for (const key of [...this.all.keys()]) if (!images[key]) this.remove(key);
    for (const [key, { title, layers }] of Object.entries(images)) {
      const panel = this.all.get(key) || await this.make(key);
      panel.figure.querySelector("figcaption").textContent = title;
      panel.title = title;
      if (layers.some((layer, index) => panel.nv.volumes[index] !== layer)) {
        for (const old of [...panel.nv.volumes]) panel.nv.removeVolume(old);
        for (const layer of layers) panel.nv.addVolume(layer);
      }
    }
    this.link();
    this.setView(this.view);
    if (place) this.goTo(place);
    this.describe();
  }

  async make(key) {
    const figure = document.createElement("figure");
    const stage = Object.assign(document.createElement("div"), { className: "stage" });
    const canvas = Object.assign(document.createElement("canvas"), { tabIndex: 0 });
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-describedby", "keys");
    canvas.dataset.key = key;
    stage.append(canvas);
    figure.append(document.createElement("figcaption"), stage);
    this.box.append(figure);
    const nv = new Niivue(LOOK);
    addColours(nv);
    await nv.attachToCanvas(canvas, false);
    const panel = { nv, figure, canvas, title: "" };
    nv.onLocationChange = ({ mm }) => this.onMove([mm[0], mm[1], mm[2]], false);
    canvas.addEventListener("keydown", (event) => this.onKey(panel, event), { capture: true });
    this.all.set(key, panel);
    return panel;
  }

  remove(key) {
    const { nv, figure } = this.all.get(key);
    const context = nv.gl.getExtension("WEBGL_lose_context");
    figure.remove();
    nv.cleanup();
    context?.loseContext();
    this.all.delete(key);
  }

  link() {
    const all = [...this.all.values()].map((panel) => panel.nv);
    for (const nv of all) nv.broadcastTo(all.filter((other) => other !== nv), { "2d": true, "3d": true });
  }

  setView(name) {
    this.view = name;
    const { slice, layout, render } = VIEWS[name];
    this.box.dataset.view = name;
    this.box.dataset.count = this.all.size;
    for (const { nv } of this.all.values()) {
      if (layout !== undefined) { nv.opts.multiplanarShowRender = render; nv.setMultiplanarLayout(layout); }
      nv.setSliceType(slice);
    }
  }

  place() {
    const nv = this.first?.nv;
    return nv?.volumes.length ? [...nv.frac2mm(nv.scene.crosshairPos, 0, true)].slice(0, 3) : null;
  }

  goTo(mm) {
    for (const { nv } of this.all.values()) if (nv.volumes.length) { nv.scene.crosshairPos = nv.mm2frac(mm, 0, true); nv.drawScene(); }
    this.onMove(mm, false);
  }

  // After voxels or colours changed.
  refresh(...keys) {
    for (const [key, { nv }] of this.all) if (!keys.length || keys.includes(key)) nv.updateGLVolume();
  }

  onKey(panel, event) {
    const step = STEPS[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    panel.nv.moveCrosshairInVox(...step);
    this.onMove(this.place(), true);
  }

  // What a screen reader says of each picture.
  describe(place = "") {
    for (const { canvas, title } of this.all.values()) canvas.setAttribute("aria-label", `${title}, ${VIEWS[this.view].title}${place ? `, cross at ${place}` : ""}`);
  }
}
