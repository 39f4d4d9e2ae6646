/** Draw a picture with the faces that were found in it, sharp on any screen. */

const [ACCENT, WHITE, DARK] = ["#2dd4bf", "#ffffff", "rgb(8 20 18 / 0.82)"];

/**
 * source: an ImageBitmap or a video, `width` by `height` pixels large; it fills the canvas, which is made as wide as what
 * surrounds it or `limit` CSS pixels high. mirrored: as in a mirror, the labels readable all the same. uncertain: the
 * probability below which an answer is marked "?".
 */
export function draw(canvas, { source, width, height, faces, chosen, mirrored, uncertain = 0 }, limit) {
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
  const order = faces.map((_, i) => i).sort((a, b) => (a === chosen) - (b === chosen)); // the chosen one on top
  for (const i of order) {
    const [x, y, w, h] = faces[i].box;
    const left = mirrored ? at(x + w) : at(x);
    frame(context, left, y * scale, w * scale, h * scale, i === chosen);
    if (i === chosen && w * scale > 50) for (const point of faces[i].landmarks) dot(context, at(point[0]), point[1] * scale);
  }
  const taken = faces.map(({ box: [x, y, w, h] }) => [mirrored ? at(x + w) : at(x), y * scale, w * scale, h * scale]);
  for (const i of order.reverse()) {
    const text = `${answer(faces[i], uncertain)} ${percent(faces[i].probability)}`;
    const place = labelPlace(context, text, taken[i], wide);
    const crowded = place[2] > 3 * taken[i][2] || taken.some((other, k) => k !== i && meet(place, other));
    if (crowded && i !== chosen) continue; // it would not be clear whose it is
    label(context, text, place, i === chosen);
    taken.push(place);
  }
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

function frame(context, x, y, width, height, chosen) {
  for (const [colour, line] of [[DARK, chosen ? 6 : 4], [chosen ? ACCENT : WHITE, chosen ? 3 : 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.beginPath();
    context.roundRect(x, y, width, height, Math.min(10, width / 8));
    context.stroke();
  }
}

function dot(context, x, y) {
  context.beginPath();
  context.arc(x, y, 2.5, 0, 2 * Math.PI);
  context.fillStyle = ACCENT;
  context.strokeStyle = DARK;
  context.lineWidth = 1.5;
  context.fill();
  context.stroke();
}

/** Above the box, or below it where there is no room above: [left, top, width, height]. */
function labelPlace(context, text, [x, y, , height], wide) {
  context.font = '600 14px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';
  const width = context.measureText(text).width + 16;
  return [Math.max(4, Math.min(x, wide - width - 4)), y >= 32 ? y - 30 : y + height + 6, width, 24];
}

function label(context, text, [left, top, width, height], chosen) {
  context.fillStyle = chosen ? ACCENT : DARK;
  context.beginPath();
  context.roundRect(left, top, width, height, 7);
  context.fill();
  context.fillStyle = chosen ? "#06231f" : WHITE;
  context.textBaseline = "middle";
  context.fillText(text, left + 8, top + height / 2 + 0.5);
}

/** Whether two rectangles overlap. */
const meet = (a, b) => a[0] < b[0] + b[2] && b[0] < a[0] + a[2] && a[1] < b[1] + b[3] && b[1] < a[1] + a[3];
