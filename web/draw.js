/** Draw a picture with the faces that were found in it, sharp on any screen. */

import { places } from "./place.js";

const [WHITE, DARK] = ["#ffffff", "rgb(0 0 0 / 0.85)"];
const FONT = '600 14px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';
const [HIGH, ASIDE, GAP] = [22, 6, 5]; // pixels: a label's height, beside its text, and between it and its box

/**
 * source: an ImageBitmap `width` by `height` pixels large; it fills the canvas, which is made as wide as what surrounds it or
 * `limit` CSS pixels high. mirrored: as in a mirror, the labels readable all the same. uncertain: the probability below which
 * an answer is marked "?". palette: of each label, its colour and that of text on it.
 */
export function draw(canvas, { source, width, height, faces, chosen, mirrored, uncertain = 0, palette }, limit) {
  const scale = Math.min(canvas.parentElement.clientWidth / width, limit / height);
  const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
  const dense = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(wide * dense) || canvas.height !== Math.round(high * dense)) {
    [canvas.width, canvas.height] = [Math.round(wide * dense), Math.round(high * dense)];
    [canvas.style.width, canvas.style.height] = [`${wide}px`, `${high}px`];
  }
  const context = canvas.getContext("2d");
  context.setTransform(mirrored ? -dense : dense, 0, 0, dense, mirrored ? wide * dense : 0, 0);
  context.imageSmoothingQuality = "high";
  context.fillStyle = WHITE;
  context.fillRect(0, 0, wide, high);
  context.drawImage(source, 0, 0, wide, high);
  context.setTransform(dense, 0, 0, dense, 0, 0);
  const at = (x) => (mirrored ? wide - x * scale : x * scale);
  const order = faces.map((_, i) => i).sort((a, b) => (b === chosen) - (a === chosen)); // the chosen one first
  const boxes = order.map((i) => {
    const [x, y, w, h] = faces[i].box;
    const left = mirrored ? at(x + w) : at(x);
    return [Math.max(0, left), Math.max(0, y * scale), Math.min(wide, left + w * scale), Math.min(high, (y + h) * scale)];
  });
  const colours = order.map((i) => palette[faces[i].expression] ?? [WHITE, "#000000"]);
  for (const [k, i] of [...order.entries()].reverse()) {
    frame(context, boxes[k], colours[k][0], i === chosen);
    if (i === chosen && faces[i].box[2] * scale > 50) for (const point of faces[i].landmarks) dot(context, at(point[0]), point[1] * scale);
  }
  context.font = FONT;
  const numbers = order.map((i) => (faces.length > 1 ? `${faces[i].track ?? i + 1}` : ""));
  const texts = order.map((i, k) => `${numbers[k]} ${answer(faces[i], uncertain)} ${percent(faces[i].probability)}`.trimStart());
  const sizes = (words) => words.map((text) => [context.measureText(text).width + 2 * ASIDE, HIGH]);
  const short = numbers.map((number, k) => number || texts[k]);
  places(boxes, sizes(short), sizes(texts), [wide, high], GAP).forEach((found, k) => {
    if (!found && order[k] !== chosen) return;
    label(context, found?.full ? texts[k] : short[k], found?.place ?? boxes[k], colours[k]);
  });
}

/** The number of the smallest face under a point of the canvas, in CSS pixels; -1 where there is none. */
export function faceAt(canvas, { width, faces, mirrored }, x, y) {
  const scale = parseFloat(canvas.style.width) / width;
  const [across, down] = [mirrored ? width - x / scale : x / scale, y / scale];
  const hits = faces.map(({ box: [left, top, w, h] }) => across >= left && down >= top && across <= left + w && down <= top + h);
  return hits.lastIndexOf(true); // the largest face comes first
}

/** A crop {width, height, data} of RGB on a canvas of its size, grey where the model sees no colours. */
export function drawCrop(canvas, { width, height, data }, grey) {
  const rgba = new ImageData(width, height);
  for (let i = 0, from = 0; i < rgba.data.length; i += 4, from += 3) {
    const [r, g, b] = data.subarray(from, from + 3);
    const luma = 0.299 * r + 0.587 * g + 0.114 * b;
    rgba.data.set(grey ? [luma, luma, luma, 255] : [r, g, b, 255], i);
  }
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(rgba, 0, 0);
}

/** The expression, marked "?" where the model is not sure enough. */
export const answer = ({ expression, probability }, uncertain) => (probability < uncertain ? `${expression}?` : expression);

/** In words that claim no certainty. */
export function percent(share) {
  if (share >= 0.995) return "> 99\u00a0%";
  return share < 0.005 ? "< 1\u00a0%" : `${Math.round(100 * share)}\u00a0%`;
}

function frame(context, [left, top, right, bottom], colour, chosen) {
  for (const [paint, line] of [[DARK, chosen ? 7 : 5], [colour, chosen ? 4 : 2]]) {
    context.strokeStyle = paint;
    context.lineWidth = line;
    context.beginPath();
    context.roundRect(left, top, right - left, bottom - top, Math.min(6, (right - left) / 8));
    context.stroke();
  }
}

function dot(context, x, y) {
  context.beginPath();
  context.arc(x, y, 2.5, 0, 2 * Math.PI);
  context.fillStyle = WHITE;
  context.strokeStyle = DARK;
  context.lineWidth = 1.5;
  context.fill();
  context.stroke();
}

function label(context, text, [left, top], [colour, ink]) {
  const width = context.measureText(text).width + 2 * ASIDE;
  context.fillStyle = colour;
  context.strokeStyle = "#000000";
  context.lineWidth = 1;
  context.beginPath();
  context.roundRect(left + 0.5, top + 0.5, width - 1, HIGH - 1, 4);
  context.fill();
  context.stroke();
  context.fillStyle = ink;
  context.textBaseline = "middle";
  context.fillText(text, left + ASIDE, top + HIGH / 2 + 0.5);
}
