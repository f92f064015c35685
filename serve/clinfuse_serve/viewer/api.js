// Talking to the service: token, problems as plain sentences, one bundle of files per fused pair.
import { partsOf } from "./parts.js";
import { unzip } from "./zip.js";

const access = { token: "", onRefused: () => {} };

export function setToken(token) { access.token = token; }
export function onTokenWanted(action) { access.onRefused = action; }

export async function ask(path, options = {}) {
  const headers = access.token ? { Authorization: `Bearer ${access.token}` } : {};
  const reply = await fetch(path, { ...options, headers: { ...headers, ...(options.headers || {}) } });
  if (reply.ok) return reply;
  const problem = await reply.json().catch(() => ({ title: reply.statusText }));
  if (reply.status === 401) access.onRefused();
  throw problemError(problem, reply.status, Number(reply.headers.get("Retry-After") || 0));
}

export async function askJson(path, options) { return (await ask(path, options)).json(); }

export function sendJson(path, method, body) {
  return askJson(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

export function problemError(problem, status, retryAfter = 0) {
  const words = [problem.title, problem.expected && `expected ${problem.expected}`,
    problem.found && `found ${problem.found}`, problem.todo];
  return Object.assign(new Error(words.filter(Boolean).join("; ")), { status, retryAfter });
}

// One pair to be fused as often as wanted: sends the images once, then the case's token, and again if it is gone.
export class Session {
  constructor(source) { this.source = source; this.token = null; }

  // Resolves to the reply of POST /v1/fuse; `more` are FuseParams.
  async post(more, signal) {
    const send = (form) => ask("/v1/fuse", { method: "POST", body: form, signal });
    if (this.token) {
      try { return await send(formOf({ ...more, case: this.token })); } catch (error) { if (error.status !== 410) throw error; }
    }
    const { example, files, kind } = this.source;
    return send(formOf({ ...more, ...(example && { example }), ...(kind && { companion_kind: kind }) }, files));
  }

  // Resolves to {info, maps: key → NIfTI buffer on the RAS+ grid, members, degraded, simulated}; tell(share) meanwhile.
  async fuse(more, signal, tell = () => {}) {
    const wanted = { ...more, output: "stream", format: "nifti", grid: "ras", compress: false };
    const reply = await this.post(wanted, signal);
    for await (const { headers, data } of partsOf(reply)) {
      const kind = headers.get("Content-Type");
      if (kind === "application/zip") {
        this.token = headers.get("X-Clinfuse-Case");
        return { ...openBundle(data), ...factsOf(headers) };
      }
      const facts = JSON.parse(new TextDecoder().decode(data));
      if (kind !== "application/json") throw problemError(facts, Number(headers.get("X-Status")), Number(headers.get("Retry-After") || 0));
      tell(facts.done / facts.all);
    }
    throw new Error("the reply ended early");
  }
}

function formOf(params, files = {}) {
  const form = new FormData();
  form.set("params", JSON.stringify(params));
  for (const [role, file] of Object.entries(files)) form.set(role, file, role);
  return form;
}

function factsOf(headers) {
  return {
    members: headers.get("X-Clinfuse-Members").replace("/", " of "),
    degraded: headers.get("X-Clinfuse-Degraded") === "true",
    simulated: headers.get("X-Clinfuse-Simulated") === "true",
  };
}

function openBundle(buffer) {
  const files = unzip(buffer);
  const sidecar = [...files.keys()].find((name) => name.endsWith(".json"));
  const info = JSON.parse(new TextDecoder().decode(files.get(sidecar)));
  const maps = {};
  for (const [key, name] of Object.entries(info.Files)) maps[key] = files.get(name);
  return { info, maps };
}
