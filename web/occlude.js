/** What hiding a part of the face takes from the answer, as `mien.explain.Occlusion` measures it. */

export const GRID = 5; // windows along a side: fewer than in Python, since a browser takes ten times as long for each
const WINDOW = 2 / 7; // their side, as a share of the crop's
const [FOR, AGAINST] = [[255, 110, 0], [20, 100, 255]];

/** The crop {width, height, data} of RGB with each window of a row of the grid hidden in turn, in the crop's mean colour. */
export function hideRow(crop, row) {
  const colour = meanColour(crop);
  return Array.from({ length: GRID }, (_, column) => {
    const data = crop.data.slice();
    const [[top, bottom], [left, right]] = [span(row, crop.height), span(column, crop.width)];
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) data.set(colour, 3 * (y * crop.width + x));
    }
    return { width: crop.width, height: crop.height, data };
  });
}

/** The first pixel of the window about the middle of the i-th cell, and the one behind its last. */
function span(i, side) {
  const [first, last] = [-1, 1].map((sign) => Math.floor(side * ((i + 0.5) / GRID + (sign * WINDOW) / 2) + 0.5));
  return [Math.max(0, first), Math.min(side, last)];
}

function meanColour({ width, height, data }) {
  const sums = [0, 0, 0];
  for (let i = 0; i < data.length; i++) sums[i % 3] += data[i];
  return sums.map((sum) => roundEven(sum / (width * height)));
}

/** To the nearest whole number, and halves to the even one, as numpy does. */
function roundEven(value) {
  const whole = Math.floor(value + 0.5);
  return value % 1 === 0.5 && whole % 2 ? whole - 1 : whole;
}

/**
 * The crop in grey, orange where hiding a part takes from the answer and blue where it adds to it, on a canvas of the
 * crop's size. falls: a row after the other, of each cell. Between the middles of cells they are linear.
 */
export function drawFalls(canvas, { width, height, data }, falls) {
  const most = Math.max(1e-12, ...falls.map(Math.abs));
  const rgba = new ImageData(width, height);
  const [rows, columns] = [places(height), places(width)];
  for (let y = 0; y < height; y++) {
    const [top, bottom, down] = rows[y];
    for (let x = 0; x < width; x++) {
      const [left, right, across] = columns[x];
      const at = (row) => falls[row * GRID + left] * (1 - across) + falls[row * GRID + right] * across;
      const share = (at(top) * (1 - down) + at(bottom) * down) / most;
      const [colour, strength] = [share > 0 ? FOR : AGAINST, 0.75 * Math.abs(share)];
      const from = 3 * (y * width + x);
      const grey = 0.299 * data[from] + 0.587 * data[from + 1] + 0.114 * data[from + 2];
      rgba.data.set([...colour.map((c) => (1 - strength) * grey + strength * c), 255], 4 * (y * width + x));
    }
  }
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(rgba, 0, 0);
}

/** For each pixel along a side the two cells whose middles it lies between, and how far it is from the first. */
function places(side) {
  return Array.from({ length: side }, (_, i) => {
    const place = Math.max(0, Math.min(GRID - 1, ((i + 0.5) * GRID) / side - 0.5));
    const first = Math.floor(place);
    return [first, Math.min(first + 1, GRID - 1), place - first];
  });
}
