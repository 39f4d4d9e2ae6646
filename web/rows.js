/** What was read as the rows of `mien read`, for JSON and CSV files. */

const FORMULA = /^[=+\-@\t\r]/; // what makes a spreadsheet compute a cell of text

/**
 * The rows of a picture or of a frame: one a face, or one that says that there is none. when: of a frame {time, frame, width,
 * height}. outputs: what is answered of a face beside the expression, by its names.
 */
export function records(source, faces, outputs, when = null) {
  const moment = when ? { ...when, time: rounded(when.time, 6) } : {};
  const none = { face: null, box: null, score: null, landmarks: null, rotation: null, expression: null, probability: null, probabilities: null };
  if (!faces.length) return [{ source, ...moment, ...(when ? { track: null } : {}), ...none, note: "no face found" }];
  return faces.map((face, i) => ({
    source,
    ...moment,
    ...(when ? { track: face.track } : {}),
    face: i,
    box: rounded(face.box, 2),
    score: rounded(face.score, 4),
    landmarks: rounded(face.landmarks, 2),
    rotation: 0,
    expression: face.expression,
    probability: rounded(face.probability, 6),
    probabilities: rounded(face.probabilities, 6),
    ...Object.fromEntries(outputs.map((name) => [name, rounded(face[name], 6)])),
    ...(face.note ? { note: face.note } : {}),
    ...(face.unsmoothed ? { unsmoothed: rounded(face.unsmoothed, 6) } : {}),
  }));
}

/** Numbers in anything, to so many digits behind the point, as Python rounds them. */
function rounded(value, digits) {
  if (typeof value === "number") {
    const scaled = value * 10 ** digits;
    if (Math.abs(scaled % 1) === 0.5) return (2 * Math.round(scaled / 2)) / 10 ** digits; // a tie goes to the even one
    return Number(value.toFixed(digits));
  }
  if (Array.isArray(value)) return value.map((part) => rounded(part, digits));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, rounded(part, digits)]));
}

/** A list, a row on a line. */
export const toJson = (rows) => `[\n${rows.map((row) => JSON.stringify(row)).join(",\n")}\n]\n`;

/** entries: {name, kind, labels, columns: names} of each value of a row, in the order of the columns. */
export function toCsv(rows, entries) {
  const lines = [entries.flatMap(({ columns }) => columns), ...rows.map((row) => entries.flatMap((entry) => cells(entry, row[entry.name])))];
  return lines.map((line) => line.map(cell).join(",") + "\n").join("");
}

function cells({ kind, labels, columns }, value) {
  if (value === null || value === undefined) return columns.map(() => null);
  const parts = labels.length ? labels.map((label) => value[label] ?? null) : [value];
  return kind === "points" || kind === "numbers" ? parts.flat(2) : parts;
}

function cell(value) {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" && FORMULA.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Have the browser keep a text as a file. */
export function save(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser may still be reading
}
