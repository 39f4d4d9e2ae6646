/** Where labels of faces stand, as in src/mien/faces/places.py: none covers another one, or leaves the picture. */

const OWN = 0.2; // of its own face, the largest share that a name may cover

/**
 * For each face {place: [left, top, right, bottom], full}, the place of its label and whether that is the full one;
 * null where not even the short one has room. boxes: [left, top, right, bottom] each, the most important first. short,
 * full: [width, height] of two labels of each. within: [width, height] of the picture. gap: between label and box.
 */
export function places(boxes, short, full, within, gap = 0) {
  const found = boxes.map(() => null);
  boxes.forEach((box, i) => {
    const place = best(spots(box, short[i], within, gap).filter((spot) => !found.some((other) => other && covered(spot, other.place))), boxes);
    if (place) found[i] = { place, full: short[i][0] === full[i][0] && short[i][1] === full[i][1] };
  });
  boxes.forEach((box, i) => {
    if (!found[i] || found[i].full) return;
    const most = OWN * (box[2] - box[0]) * (box[3] - box[1]);
    const free = (spot, other, k) => k === i || !covered(spot, other);
    const place = best(spots(box, full[i], within, gap).filter((spot) => found.every((other, k) => !other || free(spot, other.place, k))
      && boxes.every((other, k) => free(spot, other, k)) && covered(spot, box) <= most), boxes);
    if (place) found[i] = { place, full: true };
  });
  return found;
}

/** Above and below the box, inside it, and beside it, as far as the picture has room. */
function spots([left, top, right, bottom], [width, height], [wide, high], gap) {
  const tops = [top - gap - height, bottom + gap, bottom - gap - height, top + gap];
  const lefts = [left, right - width, (left + right - width) / 2];
  const sides = [right + gap, left - gap - width].flatMap((x) => [[x, top], [x, bottom - height]]);
  return [...tops.flatMap((y) => lefts.map((x) => [x, y])), ...sides].map(([x, y]) => {
    const from = Math.max(0, Math.min(x, wide - width));
    return [from, y, from + width, y + height];
  }).filter((spot) => spot[1] >= 0 && spot[3] <= high && spot[2] <= wide);
}

/** The first of those that cover least of all faces. */
function best(places, boxes) {
  let [first, least] = [null, Infinity];
  for (const place of places) {
    const sum = boxes.reduce((total, box) => total + covered(place, box), 0);
    if (sum < least) [first, least] = [place, sum];
  }
  return first;
}

function covered(a, b) {
  return Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
}
