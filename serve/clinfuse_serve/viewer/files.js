// Zip (stored entries) and NIfTI-1 (float32), as this service writes them. Arrays come out on the RAS+ grid.
"use strict";

function unzip(buffer) {
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

function parseNifti(buffer) {
  const view = new DataView(buffer);
  if (view.getInt32(0, true) !== 348 || view.getInt16(70, true) !== 16) throw new Error("not a float32 NIfTI file");
  const shape = [1, 2, 3].map((axis) => Math.max(1, view.getInt16(40 + 2 * axis, true)));
  const affine = [0, 1, 2].map((row) => [0, 1, 2, 3].map((col) => view.getFloat32(280 + 16 * row + 4 * col, true)));
  const data = new Float32Array(buffer.slice(view.getFloat32(108, true)));
  return toRas({ shape, affine, data });
}

// Reorder axes so that index x runs to R, y to A, z to S (nearest axes; oblique angles stay in the affine).
function toRas(image) {
  const { shape, affine } = image;
  const axes = closestAxes(affine);
  const strides = [1, shape[0], shape[0] * shape[1]];
  const size = axes.map((axis) => shape[axis.source]);
  const step = axes.map((axis) => (axis.flip ? -1 : 1) * strides[axis.source]);
  const start = axes.reduce((sum, axis) => sum + (axis.flip ? (shape[axis.source] - 1) * strides[axis.source] : 0), 0);
  const data = new Float32Array(image.data.length);
  let to = 0;
  for (let z = 0; z < size[2]; z += 1) {
    for (let y = 0; y < size[1]; y += 1) {
      let from = start + z * step[2] + y * step[1];
      for (let x = 0; x < size[0]; x += 1, from += step[0]) data[to++] = image.data[from];
    }
  }
  const columns = axes.map((axis) => affine.map((row) => (axis.flip ? -1 : 1) * row[axis.source]));
  const origin = affine.map((row) =>
    axes.reduce((sum, axis) => sum + (axis.flip ? row[axis.source] * (shape[axis.source] - 1) : 0), row[3]));
  const spacing = columns.map((column) => Math.hypot(...column));
  return { size, data, spacing, columns, origin };
}

function closestAxes(affine) {
  const left = [0, 1, 2];
  return [0, 1, 2].map((world) => {
    const size = (axis) => Math.abs(affine[world][axis]) / Math.hypot(...affine.map((row) => row[axis]));
    left.sort((a, b) => size(b) - size(a));
    const source = left.shift();
    return { source, flip: affine[world][source] < 0 };
  });
}

function worldOf(image, voxel) {
  return image.origin.map((start, row) => start + image.columns.reduce((sum, column, axis) => sum + column[row] * voxel[axis], 0));
}

function valueAt(image, [x, y, z]) {
  return image ? image.data[x + image.size[0] * (y + image.size[1] * z)] : NaN;
}
