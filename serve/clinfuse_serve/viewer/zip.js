// Zip files with stored entries, as this service writes them: name → ArrayBuffer.
export function unzip(buffer) {
  const view = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end -= 1;
  if (end < 0) throw new Error("the reply is not a zip file");
  const files = new Map();
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left -= 1) {
    const method = view.getUint16(at + 10, true);
    const size = view.getUint32(at + 20, true);
    const [name, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const local = view.getUint32(at + 42, true);
    const label = new TextDecoder().decode(new Uint8Array(buffer, at + 46, name));
    if (method !== 0) throw new Error("the reply is compressed in a way this page does not read");
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    files.set(label, buffer.slice(start, start + size));
    at += 46 + name + extra + comment;
  }
  return files;
}
