// Slices of RAS+ volumes on canvases, radiological display: patient's right on the viewer's left.
"use strict";

const PLANES = {
  axial: { across: 0, down: 1, through: 2, ends: ["R", "L", "A", "P"] },
  coronal: { across: 0, down: 2, through: 1, ends: ["R", "L", "S", "I"] },
  sagittal: { across: 1, down: 2, through: 0, ends: ["A", "P", "S", "I"] },
};

// Black-red-orange-yellow-white in equal steps of lightness, as 256 RGB triples.
const HOT = (() => {
  const stops = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
  const table = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i += 1) {
    const at = (i / 255) * (stops.length - 1);
    const low = Math.min(stops.length - 2, Math.floor(at));
    for (let c = 0; c < 3; c += 1) table[3 * i + c] = stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c]);
  }
  return table;
})();

const scratch = document.createElement("canvas");

// grey: volume in [0, 1]; overlay: volume in [0, 1] or null; options: opacity 0 to 1, threshold 0 to 1.
function drawSlice(canvas, plane, cross, grey, overlay, options) {
  const { across, down, through } = PLANES[plane];
  const size = grey.size;
  const [width, height] = [size[across], size[down]];
  const strides = [1, size[0], size[0] * size[1]];
  const pixels = new ImageData(width, height);
  const base = cross[through] * strides[through];
  for (let row = 0, to = 0; row < height; row += 1) {
    for (let col = 0; col < width; col += 1, to += 4) {
      const from = base + (width - 1 - col) * strides[across] + (height - 1 - row) * strides[down];
      paint(pixels.data, to, grey.data[from], overlay ? overlay.data[from] : 0, overlay ? options : null);
    }
  }
  scratch.width = width;
  scratch.height = height;
  scratch.getContext("2d").putImageData(pixels, 0, 0);
  const wide = width * grey.spacing[across];
  const tall = height * grey.spacing[down];
  const scale = Math.max(1, Math.round(768 / Math.max(wide, tall)));
  canvas.width = Math.max(1, Math.round(wide * scale));
  canvas.height = Math.max(1, Math.round(tall * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(scratch, 0, 0, canvas.width, canvas.height);
  drawCross(context, canvas, plane, cross, size);
}

function paint(data, to, grey, unsure, options) {
  const level = 255 * Math.min(1, Math.max(0, grey));
  data[to + 3] = 255;
  if (!options) {
    data[to] = data[to + 1] = data[to + 2] = level;
    return;
  }
  const index = 3 * Math.round(255 * Math.min(1, Math.max(0, unsure)));
  const share = options.opacity * Math.min(1, 2.5 * unsure);
  for (let c = 0; c < 3; c += 1) data[to + c] = (1 - share) * level + share * HOT[index + c];
  if (options.threshold < 1 && unsure >= options.threshold) {
    data[to] = 0.4 * data[to]; data[to + 1] = 0.4 * data[to + 1] + 140; data[to + 2] = 0.4 * data[to + 2] + 150;
  }
}

function drawCross(context, canvas, plane, cross, size) {
  const { across, down, ends } = PLANES[plane];
  const x = ((size[across] - cross[across] - 0.5) / size[across]) * canvas.width;
  const y = ((size[down] - cross[down] - 0.5) / size[down]) * canvas.height;
  context.strokeStyle = "rgba(124, 196, 255, .55)";
  context.lineWidth = Math.max(1, canvas.width / 500);
  context.beginPath();
  context.moveTo(x, 0); context.lineTo(x, canvas.height);
  context.moveTo(0, y); context.lineTo(canvas.width, y);
  context.stroke();
  const letter = Math.max(12, Math.round(canvas.width / 24));
  context.font = `${letter}px sans-serif`;
  context.fillStyle = "#ffd479";
  context.textBaseline = "middle";
  context.textAlign = "left"; context.fillText(ends[0], letter * 0.3, canvas.height / 2);
  context.textAlign = "right"; context.fillText(ends[1], canvas.width - letter * 0.3, canvas.height / 2);
  context.textAlign = "center"; context.fillText(ends[2], canvas.width / 2, letter * 0.8);
  context.fillText(ends[3], canvas.width / 2, canvas.height - letter * 0.7);
}

function drawLegend(canvas) {
  const context = canvas.getContext("2d");
  for (let i = 0; i < 256; i += 1) {
    context.fillStyle = `rgb(${HOT[3 * i]}, ${HOT[3 * i + 1]}, ${HOT[3 * i + 2]})`;
    context.fillRect(i, 0, 1, canvas.height);
  }
}

// Voxel under a point of a canvas (fractions 0 to 1 of its width and height); the through axis stays.
function voxelAt(plane, fractionX, fractionY, cross, size) {
  const { across, down } = PLANES[plane];
  const voxel = [...cross];
  const clamp = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value)));
  voxel[across] = clamp((1 - fractionX) * size[across], size[across]);
  voxel[down] = clamp((1 - fractionY) * size[down], size[down]);
  return voxel;
}
