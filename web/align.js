/**
 * From a picture to the square that the network looks at: `mien.faces.crop`, and OpenCV's warpAffine to the last bit.
 *
 * A picture is {width, height, data} as in resize.js; landmarks are five points x, y in its pixels, one after another.
 */

import { area, blank, resize, round } from "./resize.js";

const { ceil, floor, fround, hypot, max, min } = Math;

/** Where eyes, nose and corners of the mouth lie in a crop of 112×112. */
const ARCFACE112 = [38.2946, 51.6963, 73.5318, 51.5014, 56.0252, 71.7366, 41.5493, 92.3655, 70.7299, 92.2041];

const clip = (value, low, high) => max(low, min(high, value));

/** What the network is shown of a face, as `preprocess` of its header says; by its box where five points are no face. */
export function crop(image, preprocess, landmarks, box) {
  const steps = preprocess.resize;
  const matrix = preprocess.align === "arcface112" ? similarity(landmarks, steps[0].size) : null;
  return resize(matrix ? align(image, matrix, steps[0].size) : square(image, box)[0], steps);
}

/**
 * [a, b, c, d, e, f] for x' = a x + b y + c, y' = d x + e y + f: the rotation, scale and shift that brings the landmarks
 * closest to those of a crop of `size` pixels; null where they coincide, are not finite or are mirrored.
 */
export function similarity(landmarks, size) {
  const goals = ARCFACE112.map((value) => fround(fround(value) * fround(size / 112)));
  const mean = (points, from) => (points[from] + points[from + 2] + points[from + 4] + points[from + 6] + points[from + 8]) / 5;
  const [px, py, qx, qy] = [mean(landmarks, 0), mean(landmarks, 1), mean(goals, 0), mean(goals, 1)];
  let spread = 0, extent = 0, real = 0, imaginary = 0; // Σ |p|², Σ |q|², Σ p̄ q
  for (let i = 0; i < 10; i += 2) {
    const [a, b, u, v] = [landmarks[i] - px, landmarks[i + 1] - py, goals[i] - qx, goals[i + 1] - qy];
    spread += a * a + b * b;
    extent += u * u + v * v;
    real += a * u + b * v;
    imaginary += a * v - b * u;
  }
  if (!(spread > 1e-6) || !(hypot(real, imaginary) > 0.4 * Math.sqrt(spread * extent))) return null;
  const [m, n] = [real / spread, imaginary / spread];
  return [m, -n, qx - (m * px - n * py), n, m, qy - (m * py + n * px)];
}

/** The crop of `size` pixels that `matrix` of `similarity` makes, of means of areas; beyond the picture its edge goes on. */
export function align(image, matrix, size) {
  let [a, b, c, d, e, f] = matrix;
  const shrink = 1 / hypot(a, d); // pixels of the picture to one of the crop
  const block = max(1, floor(shrink / 3));
  const [part, x, y] = seen(image, matrix, size, block);
  // pixel u of the part has its centre at x + block·u + (block - 1) / 2 of the picture
  const [over, under] = [x + (block - 1) / 2, y + (block - 1) / 2];
  c += a * over + b * under;
  f += d * over + e * under;
  const samples = max(1, ceil(shrink / block - 0.1));
  const half = (samples - 1) / 2;
  const fine = [a * block * samples, b * block * samples, c * samples + half];
  fine.push(d * block * samples, e * block * samples, f * samples + half);
  const sampled = warp(part, fine, size * samples);
  return samples > 1 ? area(sampled, size, size) : sampled;
}

/** What a crop sees of the picture, each block×block of it made one pixel, and the x and y where it begins. */
function seen(image, matrix, size, block) {
  const [a, b, c, d, e, f] = inverse(matrix);
  const ends = [-0.5, size - 0.5];
  const xs = ends.flatMap((v) => ends.map((u) => a * u + b * v + c));
  const ys = ends.flatMap((v) => ends.map((u) => d * u + e * v + f));
  const left = clip(floor(min(...xs)) - 2 * block, 0, image.width - 1);
  const top = clip(floor(min(...ys)) - 2 * block, 0, image.height - 1);
  const right = clip(ceil(max(...xs)) + 2 * block, left + 1, image.width);
  const bottom = clip(ceil(max(...ys)) + 2 * block, top + 1, image.height);
  const [width, height] = [ceil((right - left) / block), ceil((bottom - top) / block)];
  const columns = Array.from({ length: width * block }, (_, x) => min(left + x, right - 1));
  const rows = Array.from({ length: height * block }, (_, y) => min(top + y, bottom - 1));
  return [area(pick(image, columns, rows), width, height), left, top];
}

/** The square about the middle of box [x, y, width, height], as wide as its longer side, and its corner x, y. */
export function square(image, [x, y, width, height]) {
  const side = max(1, round(max(width, height)));
  const [left, top] = [round(x + (width - side) / 2), round(y + (height - side) / 2)];
  const columns = Array.from({ length: side }, (_, i) => clip(left + i, 0, image.width - 1));
  const rows = Array.from({ length: side }, (_, i) => clip(top + i, 0, image.height - 1));
  return [pick(image, columns, rows), left, top];
}

/** The picture made of some of its columns and rows. */
function pick(image, columns, rows) {
  const out = blank(columns.length, rows.length);
  let to = 0;
  for (const row of rows) {
    for (const column of columns) {
      const from = 3 * (row * image.width + column);
      for (let c = 0; c < 3; c++) out.data[to++] = image.data[from + c];
    }
  }
  return out;
}

function inverse([a, b, c, d, e, f]) {
  const determinant = a * e - b * d;
  const part = determinant === 0 ? 0 : 1 / determinant;
  const [A, B, D, E] = [e * part, -b * part, -d * part, a * part];
  return [A, B, -A * c - B * f, D, E, -D * c - E * f];
}

/** cv2.warpAffine, linear, the edge repeated: (size, size); places of 10 bits rounded to 5, weights of 15 bits. */
export function warp(image, matrix, size) {
  const [a, b, c, d, e, f] = inverse(matrix);
  const out = blank(size, size);
  const { width, height, data } = image;
  for (let y = 0, to = 0; y < size; y++) {
    const startX = round((b * y + c) * 1024) + 16;
    const startY = round((e * y + f) * 1024) + 16;
    for (let x = 0; x < size; x++) {
      const atX = (startX + round(a * x * 1024)) >> 5;
      const atY = (startY + round(d * x * 1024)) >> 5;
      const [right, below] = [atX & 31, atY & 31];
      const [x0, x1] = [clip(atX >> 5, 0, width - 1), clip((atX >> 5) + 1, 0, width - 1)];
      const [y0, y1] = [clip(atY >> 5, 0, height - 1) * width, clip((atY >> 5) + 1, 0, height - 1) * width];
      for (let channel = 0; channel < 3; channel++) {
        const value = (at) => data[3 * at + channel];
        const upper = (32 - right) * value(y0 + x0) + right * value(y0 + x1);
        const lower = (32 - right) * value(y1 + x0) + right * value(y1 + x1);
        out.data[to++] = (((32 - below) * upper + below * lower) * 32 + (1 << 14)) >> 15;
      }
    }
  }
  return out;
}
