/**
 * OpenCV's resizing of pictures of 8 bits, to the last bit.
 *
 * A picture is {width, height, data}: data a Uint8Array of RGB, row by row. Nothing here changes one in place.
 * What OpenCV computes in float is rounded to float after each step, and its ties go to the even number.
 */

const { ceil, floor, fround, min } = Math;

/** The nearest whole number; of two, the even one, as Python's and OpenCV's `round`. */
export function round(value) {
  const below = floor(value);
  const over = value - below;
  return over < 0.5 || (over === 0.5 && below % 2 === 0) ? below : below + 1;
}

/** A picture of one colour, black if none is given. */
export const blank = (width, height) => ({ width, height, data: new Uint8Array(3 * width * height) });

/** `mien.faces.resize`: through every step {size, interpolation: "auto" | "linear" | "nearest"} to a square. */
export function resize(image, steps) {
  for (const { size, interpolation = "auto" } of steps) {
    if (interpolation === "auto") {
      const { width, height } = image;
      if (Math.max(width, height) > size) image = area(image, min(width, size), min(height, size));
      image = linear(image, size, size);
    } else if (interpolation === "linear") image = linear(image, size, size);
    else if (interpolation === "nearest") image = nearest(image, size, size);
    else throw new RangeError(`no such interpolation here: ${interpolation}`);
  }
  return image;
}

/** cv2.INTER_NEAREST. */
export function nearest(image, width, height) {
  const out = blank(width, height);
  const across = 1 / (width / image.width);
  const down = 1 / (height / image.height);
  const column = Array.from({ length: width }, (_, x) => 3 * min(floor(x * across), image.width - 1));
  for (let y = 0, to = 0; y < height; y++) {
    const row = 3 * image.width * min(floor(y * down), image.height - 1);
    for (let x = 0; x < width; x++) for (let c = 0; c < 3; c++) out.data[to++] = image.data[row + column[x] + c];
  }
  return out;
}

/** cv2.INTER_AREA where neither side grows: a pixel is the mean of the area that it takes the place of. */
export function area(image, width, height) {
  if (width === image.width && height === image.height) return image;
  const across = 1 / (width / image.width); // not the quotient turned round, since OpenCV's last bit is this one
  const down = 1 / (height / image.height);
  const whole = (scale) => Math.abs(scale - round(scale)) < Number.EPSILON;
  return whole(across) && whole(down)
    ? blocks(image, width, height, round(across), round(down))
    : shares(image, width, height, shareTable(image.width, width, across), shareTable(image.height, height, down));
}

/** Means of blocks of whole pixels. */
function blocks(image, width, height, across, down) {
  const out = blank(width, height);
  const step = 3 * image.width;
  const part = fround(1 / (across * down));
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        const start = y * down * step + 3 * x * across + c;
        for (let row = 0, at = start; row < down; row++, at += step) {
          for (let i = 0; i < 3 * across; i += 3) sum += image.data[at + i];
        }
        out.data[to++] = across === 2 && down === 2 ? (sum + 2) >> 2 : round(fround(sum * part));
      }
    }
  }
  return out;
}

/** Means of areas that begin and end inside of pixels, rows first: sums in float, in the order of the tables. */
function shares(image, width, height, columns, rows) {
  const out = blank(width, height);
  const row = new Float32Array(3 * width);
  const sum = new Float32Array(3 * width);
  const { data } = image;
  const { to: into, from, share } = columns;
  for (let j = 0; j < rows.to.length; j++) {
    row.fill(0);
    const start = 3 * image.width * rows.from[j];
    for (let i = 0; i < from.length; i++) {
      const at = start + 3 * from[i];
      const x = 3 * into[i];
      row[x] += fround(data[at] * share[i]);
      row[x + 1] += fround(data[at + 1] * share[i]);
      row[x + 2] += fround(data[at + 2] * share[i]);
    }
    const beta = rows.share[j];
    for (let x = 0; x < row.length; x++) sum[x] += fround(beta * row[x]);
    if (rows.to[j + 1] !== rows.to[j]) {
      const y = 3 * width * rows.to[j];
      for (let x = 0; x < sum.length; x++) out.data[y + x] = round(sum[x]);
      sum.fill(0);
    }
  }
  return out;
}

/** For each pixel `to` its sources `from`, with the `share` of it that each covers. */
function shareTable(length, size, scale) {
  const to = [], from = [], share = [];
  const add = (pixel, source, part) => (to.push(pixel), from.push(source), share.push(part));
  for (let pixel = 0; pixel < size; pixel++) {
    const start = pixel * scale;
    const end = start + scale;
    const cell = min(scale, length - start);
    const last = min(floor(end), length - 1);
    const first = min(ceil(start), last);
    if (first - start > 1e-3) add(pixel, first - 1, (first - start) / cell);
    for (let source = first; source < last; source++) add(pixel, source, 1 / cell);
    if (end - last > 1e-3) add(pixel, last, min(end - last, 1, cell) / cell);
  }
  return { to: Int32Array.from(to), from: Int32Array.from(from), share: Float32Array.from(share) };
}

/** cv2.INTER_LINEAR: weights of 11 bits, rows first, whose sums lose 4 bits before the columns are weighed. */
export function linear(image, width, height) {
  if (width === image.width && height === image.height) return image;
  if (image.width === 2 * width && image.height === 2 * height) return area(image, width, height); // OpenCV's exception
  const out = blank(width, height);
  const columns = weightTable(image.width, width);
  const rows = weightTable(image.height, height);
  const { data } = image;
  const across = (row) => {
    const sums = new Int32Array(3 * width);
    for (let x = 0, to = 0; x < width; x++) {
      const left = 3 * (row * image.width + Math.max(0, columns.from[x]));
      const right = 3 * (row * image.width + min(image.width - 1, columns.from[x] + 1));
      for (let c = 0; c < 3; c++) {
        sums[to++] = (data[left + c] * columns.before[x] + data[right + c] * columns.after[x]) >> 4;
      }
    }
    return sums;
  };
  const kept = new Map(); // rows that are read, at most two
  const read = (row) => {
    row = Math.max(0, min(image.height - 1, row));
    if (!kept.has(row)) {
      for (const old of kept.keys()) if (old < row - 1) kept.delete(old);
      kept.set(row, across(row));
    }
    return kept.get(row);
  };
  for (let y = 0, to = 0; y < height; y++) {
    const above = read(rows.from[y]);
    const below = read(rows.from[y] + 1);
    const [before, after] = [rows.before[y], rows.after[y]];
    for (let x = 0; x < above.length; x++) {
      out.data[to++] = (((before * above[x]) >> 16) + ((after * below[x]) >> 16) + 2) >> 2;
    }
  }
  return out;
}

/** For each pixel the source before it and the weights of that and of the next one, of 2048 together. */
function weightTable(length, size) {
  const scale = 1 / (size / length);
  const from = new Int32Array(size), before = new Int32Array(size), after = new Int32Array(size);
  for (let pixel = 0; pixel < size; pixel++) {
    const at = fround((pixel + 0.5) * scale - 0.5);
    from[pixel] = floor(at);
    const over = fround(at - from[pixel]);
    before[pixel] = round(fround(fround(1 - over) * 2048));
    after[pixel] = round(fround(over * 2048));
  }
  return { from, before, after };
}
