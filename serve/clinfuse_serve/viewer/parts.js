// The parts of a streamed multipart/mixed reply as they arrive: {headers, data}. Every part tells its length.
export async function* partsOf(reply) {
  const reader = reply.body.getReader();
  let held = new Uint8Array(0);
  const more = async () => {
    const { done, value } = await reader.read();
    if (done) return false;
    const joined = new Uint8Array(held.length + value.length);
    joined.set(held);
    joined.set(value, held.length);
    held = joined;
    return true;
  };
  for (;;) {
    let end = headEnd(held);
    while (end < 0) { if (!(await more())) return; end = headEnd(held); }
    const headers = headersOf(new TextDecoder("latin1").decode(held.subarray(0, end)));
    const stop = end + 4 + Number(headers.get("Content-Length"));
    while (held.length < stop + 2) if (!(await more())) return;
    yield { headers, data: held.slice(end + 4, stop).buffer };
    held = held.slice(stop + 2);
  }
}

// Where the blank line after a part's headers begins; -1 if it has not arrived.
function headEnd(bytes) {
  for (let i = 0; i + 3 < bytes.length; i += 1) {
    if (bytes[i] === 13 && bytes[i + 1] === 10 && bytes[i + 2] === 13 && bytes[i + 3] === 10) return i;
  }
  return -1;
}

function headersOf(text) {
  const rows = text.split("\r\n").slice(1).map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]);
  return new Headers(rows);
}
