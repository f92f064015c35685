// Volumes as NiiVue knows them, from float32 NIfTI on the RAS+ grid; values by place, slices replaced in place.
import { NVImage } from "./vendor/niivue.js";

export async function makeImage(buffer, name, look = {}) {
  const image = await NVImage.loadFromUrl({ url: buffer.slice(0), name: `${name}.nii`, colormap: "gray", cal_min: 0, cal_max: 1, ...look });
  if (!(image.img instanceof Float32Array)) throw new Error("not a float32 NIfTI file");
  return image;
}

// The voxels of a part (as many whole axial slices as the buffer holds) from slice `start` on.
export function replaceSlices(image, buffer, start = 0) {
  const voxels = new Float32Array(buffer.slice(new DataView(buffer).getFloat32(108, true)));
  const [, width, height] = image.hdr.dims;
  image.img.set(voxels, start * width * height);
}

export function sizeOf(image) { return [...image.hdr.dims.slice(1, 4)]; }

export function valueAt(image, mm) {
  if (!image) return NaN;
  const voxel = image.mm2vox([...mm]);
  return image.getValue(...voxel);
}

// Raw units (HU, a.u.) of a value in [0, 1]; null if the scaling is not known.
export function rawValue(scaling, value) {
  if (!scaling || !Number.isFinite(value) || !Number.isFinite(scaling.low)) return null;
  return { value: scaling.low + value * (scaling.high - scaling.low), unit: scaling.unit };
}

export function millilitresAbove(image, threshold) {
  const [, dx, dy, dz] = image.hdr.pixDims;
  let count = 0;
  for (const value of image.img) if (value >= threshold) count += 1;
  return (count * Math.abs(dx * dy * dz)) / 1000;
}
