// As much of a browser's document as the pages need when nothing is drawn: elements by id, events, and fetch with paths.
class Element extends EventTarget {
  constructor() {
    super();
    Object.assign(this, { value: "", textContent: "", hidden: false, files: [], dataset: {}, children: [], selectedOptions: [{}], className: "" });
    this.classList = { add() {}, remove() {} };
  }
  get parentElement() { return new Element(); }
  append(...more) { this.children.push(...more); }
  replaceChildren(...more) { this.children = more; }
  querySelector() { return new Element(); }
  setAttribute() {}
  focus() {}
  getContext() { return { fillRect() {} }; }
}

const elements = new Map();
export function $(id) {
  if (!elements.has(id)) elements.set(id, new Element());
  return elements.get(id);
}

export function happens(id, kind, value) {
  if (value !== undefined) $(id).value = value;
  $(id).dispatchEvent(new Event(kind, { cancelable: true }));
}

// Waits until condition() is true; at most half a minute.
export async function until(condition) {
  const end = Date.now() + 30_000;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`in vain: ${condition}; status: ${$("status").textContent}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

// Loads a page's script against the service at `url`; its panels keep what they would show instead of drawing it.
export async function open(script, url) {
  const ask = globalThis.fetch;
  globalThis.window = globalThis;
  globalThis.fetch = (path, options) => ask(url + path, options);
  globalThis.Option = class extends Element { constructor(text, value) { super(); Object.assign(this, { text, value }); } };
  globalThis.document = Object.assign(new EventTarget(), { getElementById: $, createElement: () => new Element(), querySelector: () => null });
  await import(script);
  const { panels } = globalThis.clinfuse;
  panels.shown = {};
  Object.assign(panels, {
    show: async (rows) => { panels.shown = rows; },
    refresh() {},
    place() {
      const [image] = Object.values(panels.shown)[0].layers;
      return [...image.vox2mm([2, 2, 0], image.matRAS)];
    },
    goTo(mm) { panels.onMove(mm, false); },
  });
  return globalThis.clinfuse;
}
