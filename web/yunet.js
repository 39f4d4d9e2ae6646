/**
 * Find faces with YuNet: `mien.faces.find_faces` with search="fast" and turn=False, and OpenCV's decoding and suppression.
 *
 * The page looks at the whole picture only: it has no tiles for small faces in large photographs, and does not try a picture
 * on its sides. A picture is {width, height, data} as in resize.js. A face is a Float32Array of 15 in its pixels: x, y, width
 * and height of the box, five landmarks x, y, the score.
 */

import { square } from "./align.js";
import { area, blank, linear, resize, round } from "./resize.js";

const { abs, ceil, exp, floor, fround, log, max, min, sqrt, trunc } = Math;

const STRIDES = [8, 16, 32];
const FIRST = 320; // pixels of the longer side of a look in which large faces are found
const LOOK = 1024 * 768; // pixels of the largest look, padding included
const [NARROWEST, SMALL, IDEAL] = [13, 48, 100]; // widths of a face in a look: found at all, placed well, placed best
const WIDEST = 400; // pixels of a look's shorter side above which it may hold faces that are too large for it
const [CLEAR, CONFIRMED] = [0.85, 0.45]; // scores: from which a find is a face; that a find below it reaches when confirmed
const FRAMED = 320; // pixels of the longer side of a picture that is framed

export class YuNet {
  /** run: async (Float32Array (3, height, width) of BGR from 0 to 255, width, height) -> {cls_8: Float32Array, …}. */
  constructor(run, { threshold = 0.6, minFace = 20 } = {}) {
    Object.assign(this, { run, threshold: fround(threshold), minFace });
  }

  /** The faces of the picture, the largest first; where there are none at all, those that are seen in a border. */
  async detect(image) {
    let found = await this.findConfirmed(image);
    if (!found.length) found = await this.findFramed(image);
    return found.filter((face) => min(face[2], face[3]) >= this.minFace);
  }

  /** `find`, without what a second look shows to be something else. */
  async findConfirmed(image) {
    const faces = [];
    for (const face of await this.find(image)) if (await this.confirm(image, face)) faces.push(face);
    return faces;
  }

  /** One look, as close as faces of `minFace` pixels need; a smaller one as well where it has to be; then the small alone. */
  async find(image) {
    const { width, height } = image;
    const wanted = fit(width, height, min(1, NARROWEST / max(this.minFace, NARROWEST)));
    const first = fit(width, height, min(1, FIRST / max(height, width)));
    const whole = max(wanted, first);
    const small = shrink(image, ...sizeOf(image, whole));
    let faces = await this.lookAt(small, image);
    let seen = faces.map((face) => face[2] * whole);
    if (whole > 1.5 * first && (!faces.length || min(small.width, small.height) > WIDEST)) {
      const more = await this.lookAt(shrink(small, ...sizeOf(image, first)), image);
      faces = [...faces, ...more];
      seen = [...seen, ...more.map((face) => face[2] * first)];
      const best = suppress(faces, seen.map((wide) => 1 / (1 + abs(log(wide / IDEAL))))); // of two looks, the better one
      [faces, seen] = [best.map((i) => faces[i]), best.map((i) => seen[i])];
    }
    for (const [i, face] of faces.entries()) if (seen[i] < SMALL) faces[i] = await this.lookAlone(image, face);
    faces = suppress(faces, faces.map((face) => face[14])).map((i) => faces[i]); // two that turned out to be one
    return faces.sort((one, other) => other[2] * other[3] - one[2] * one[3]);
  }

  /** Whether a find is a face: what scores low is looked at again, in grey and without its surroundings. */
  async confirm(image, face) {
    if (face[14] >= CLEAR) return true;
    const [alone, left, top] = square(image, face.subarray(0, 4));
    const scale = 112 / alone.width;
    const framed = frame(grey(resize(alone, [{ size: 112 }])), 72, 72);
    const box = [(face[0] - left) * scale + 72, (face[1] - top) * scale + 72, face[2] * scale, face[3] * scale];
    const seen = await this.look(framed, min(fround(CONFIRMED), this.threshold));
    return seen.some((one) => overlap(one, box) > 0.3);
  }

  /** One look at the picture as it is, the surest first. */
  async look(image, threshold = this.threshold) {
    const [width, height] = [32 * Math.ceil(image.width / 32), 32 * Math.ceil(image.height / 32)];
    const planes = new Float32Array(3 * width * height);
    for (let c = 0; c < 3; c++) {
      for (let y = 0; y < image.height; y++) {
        const to = (c * height + y) * width;
        const from = 3 * y * image.width + 2 - c;
        for (let x = 0; x < image.width; x++) planes[to + x] = image.data[from + 3 * x];
      }
    }
    const out = await this.run(planes, width, height);
    const faces = STRIDES.flatMap((stride) => decode(out, stride, width / stride, threshold));
    return suppress(faces, faces.map((face) => face[14])).map((i) => faces[i]);
  }

  /** `look` at the picture made small, in pixels of the picture itself. */
  async lookAt(small, image) {
    const faces = await this.look(small);
    for (const face of faces) stretch(face, image.width / small.width, image.height / small.height);
    return faces;
  }

  /** The face as it is seen enlarged, its box 96 pixels in a square of 256; as it was, if not seen again. */
  async lookAlone(image, face) {
    const [x, y, width, height] = face;
    const side = fround((max(width, height) * 256) / 96);
    const [alone, left, top] = square(image, [x + (width - side) / 2, y + (height - side) / 2, side, side]);
    const again = await this.look(resize(alone, [{ size: 256 }]));
    const scale = alone.width / 256;
    for (const one of again) {
      stretch(one, scale, scale);
      shift(one, left, top);
    }
    let [best, most] = [face, 0.3];
    for (const one of again) if (overlap(one, face) > most) [best, most] = [one, overlap(one, face)];
    return best;
  }

  /** What is found in the picture with its longer side brought to 320 pixels, in a black border half as wide on every side. */
  async findFramed(image) {
    const scale = FRAMED / max(image.width, image.height);
    const [width, height] = [max(1, round(image.width * scale)), max(1, round(image.height * scale))];
    const [left, top] = [floor(width / 2), floor(height / 2)];
    const framed = frame((scale < 1 ? shrink : linear)(image, width, height), left, top);
    const [across, down] = [image.width / width, image.height / height];
    const found = await this.findConfirmed(framed);
    for (const face of found) {
      shift(face, -left, -top);
      stretch(face, across, down);
    }
    return found;
  }
}

/** The picture in a black border of `left` pixels at its sides, and `top` above and below. */
function frame(image, left, top) {
  const { width, height, data } = image;
  const framed = blank(width + 2 * left, height + 2 * top);
  for (let y = 0; y < height; y++) {
    framed.data.set(data.subarray(3 * y * width, 3 * (y + 1) * width), 3 * ((top + y) * framed.width + left));
  }
  return framed;
}

/** cv2.COLOR_RGB2GRAY, and back to three channels. */
export function grey(image) {
  const data = new Uint8Array(image.data.length);
  for (let i = 0; i < data.length; i += 3) {
    data.fill((9798 * image.data[i] + 19235 * image.data[i + 1] + 3735 * image.data[i + 2] + 16384) >> 15, i, i + 3);
  }
  return { ...image, data };
}

/** The faces that one of YuNet's grids, `columns` wide, is sure enough of. */
export function decode(out, stride, columns, threshold) {
  const [cls, obj, bbox, kps] = ["cls", "obj", "bbox", "kps"].map((name) => out[`${name}_${stride}`]);
  const share = (value) => max(0, min(1, value));
  const faces = [];
  for (let cell = 0; cell < cls.length; cell++) {
    const score = fround(sqrt(fround(share(cls[cell]) * share(obj[cell]))));
    if (!(score >= threshold)) continue;
    const [column, row] = [cell % columns, floor(cell / columns)];
    const [x, y, w, h] = bbox.subarray(4 * cell, 4 * cell + 4);
    const [width, height] = [fround(exp(w)) * stride, fround(exp(h)) * stride];
    const points = Array.from(kps.subarray(10 * cell, 10 * cell + 10), (v, i) => fround(v + (i % 2 ? row : column)) * stride);
    const corner = [fround(column + x) * stride - width / 2, fround(row + y) * stride - height / 2];
    faces.push(Float32Array.of(...corner, width, height, ...points, score));
  }
  return faces;
}

/** The indices of the faces that none before them in `order`, highest first, covers: cv2.dnn.NMSBoxes at 0.3. */
export function suppress(faces, order) {
  const boxes = faces.map((face) => Float64Array.from(face.subarray(0, 4), trunc)); // whole pixels, as OpenCV cuts them
  const ranks = Float32Array.from(order);
  const kept = [];
  for (const i of [...faces.keys()].filter((i) => ranks[i] > 0).sort((a, b) => ranks[b] - ranks[a])) {
    if (kept.every((k) => fround(overlap(boxes[i], boxes[k])) <= fround(0.3))) kept.push(i);
  }
  return kept;
}

/** Intersection over union of two boxes x, y, width, height; 1 of two without area, as OpenCV has it. */
function overlap(one, other) {
  const areas = one[2] * one[3] + other[2] * other[3];
  if (!areas) return 1;
  const wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0]);
  const high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1]);
  const shared = max(0, wide) * max(0, high);
  return shared / (areas - shared);
}

const padded = (pixels) => 32 * max(1, ceil(pixels / 32));

/** `mien.faces.tiles.fit`: the largest scale up to `scale` at which a picture is one look, padding included. */
export function fit(width, height, scale) {
  for (;;) {
    const size = padded(round(width * scale)) * padded(round(height * scale));
    if (size <= LOOK) return scale;
    scale *= min(0.999, sqrt(LOOK / size));
  }
}

const sizeOf = (image, scale) => [max(1, round(image.width * scale)), max(1, round(image.height * scale))];

/** `mien.faces.tiles.shrink`: halved while it can be, then linearly. */
export function shrink(image, width, height) {
  while (image.height >= 2 * height && image.width >= 2 * width) {
    const [columns, rows] = [floor(image.width / 2), floor(image.height / 2)];
    image = area(corner(image, 2 * columns, 2 * rows), columns, rows);
  }
  return image.width === width && image.height === height ? image : linear(image, width, height);
}

/** The upper left part of a picture. */
function corner(image, width, height) {
  if (image.width === width && image.height === height) return image;
  const part = blank(width, height);
  for (let y = 0; y < height; y++) {
    part.data.set(image.data.subarray(3 * y * image.width, 3 * (y * image.width + width)), 3 * y * width);
  }
  return part;
}

function stretch(face, across, down) {
  for (let i = 0; i < 14; i += 2) {
    face[i] *= across;
    face[i + 1] *= down;
  }
}

/** Box and landmarks; a width and a height stay what they are. */
function shift(face, right, below) {
  for (const i of [0, 4, 6, 8, 10, 12]) {
    face[i] += right;
    face[i + 1] += below;
  }
}
