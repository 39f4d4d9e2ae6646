/** Videos from a file: moments of one, one after the other, and who was seen in them. */

import { percent } from "./draw.js";
import { ReadError } from "./picture.js";

export const STEP = 0.2; // seconds between two moments that are read

const MARK = 48; // pixels of a strip's height before it is stretched
const [ENOUGH, MOST] = [0.5, 20]; // seconds for which somebody is seen who is shown; how many are shown

/** Have the element `video` hold a file, ready to be shown anywhere; its length in seconds. */
export async function openFilm(file, video) {
  const name = file.name ? `${file.name}: ` : "";
  if (!file.size) throw new ReadError(`${name}an empty file`);
  video.src = URL.createObjectURL(file);
  await until(video, "loadeddata").catch(() => {
    throw new ReadError(`${name}not a video that this browser can play`);
  });
  if (!video.videoWidth) throw new ReadError(`${name}sound without pictures`);
  if (!Number.isFinite(video.duration)) await seek(video, 1e7); // as of recordings, which do not say how long they are
  return Number.isFinite(video.duration) ? video.duration : video.currentTime;
}

export function closeFilm(video) {
  if (!video.getAttribute("src")) return;
  URL.revokeObjectURL(video.src);
  video.removeAttribute("src");
  video.load();
}

/** The frame that is shown at a moment, in seconds. */
export async function frameAt(video, time) {
  await seek(video, time);
  return createImageBitmap(video);
}

async function seek(video, time) {
  const sought = until(video, "seeked");
  video.currentTime = time;
  await sought;
}

function until(video, kind) {
  return new Promise((resolve, reject) => {
    const fail = () => reject(new ReadError("the rest of this video cannot be played"));
    const ended = new AbortController();
    video.addEventListener(kind, resolve, { once: true, signal: ended.signal });
    video.addEventListener("error", fail, { once: true, signal: ended.signal });
    const end = () => ended.abort();
    video.addEventListener(kind, end, { once: true });
    video.addEventListener("error", end, { once: true });
  });
}

/** Minutes and seconds, such as 1:02.5. */
export function clock(seconds) {
  const tenths = Math.round(10 * seconds);
  return `${Math.floor(tenths / 600)}:${String(Math.floor((tenths % 600) / 10)).padStart(2, "0")}.${tenths % 10}`;
}

/**
 * A strip for each person into the element `list`, with the probabilities of each moment one above the other. frames: {time,
 * faces} each. looks: a face of each track. drawCrop: draws it. go: is called with the number of a frame that is pressed.
 */
export function showPeople(list, frames, looks, { palette, labels, drawCrop, go }) {
  const seen = new Map();
  frames.forEach(({ faces }, i) => faces.forEach((face) => seen.set(face.track, [...(seen.get(face.track) ?? []), [i, face]])));
  const long = [...seen].filter(([, moments]) => moments.length * STEP >= ENOUGH);
  const shown = [...long].sort((a, b) => b[1].length - a[1].length).slice(0, MOST).sort((a, b) => a[0] - b[0]);
  const sections = shown.map(([track, moments]) => {
    const section = document.createElement("section");
    const [face, strip] = [document.createElement("canvas"), document.createElement("canvas")];
    drawCrop(face, looks.get(track), false);
    paint(strip, frames.length, moments, labels, palette);
    strip.addEventListener("click", ({ offsetX }) => go(Math.min(frames.length - 1, Math.floor((offsetX / strip.clientWidth) * frames.length))));
    const [title, words] = [document.createElement("h3"), document.createElement("p")];
    title.textContent = `Person ${track}`;
    const [first, last] = [moments[0][0], moments.at(-1)[0]].map((i) => clock(frames[i].time));
    words.textContent = `Seen for ${(moments.length * STEP).toFixed(1)} s, from ${first} to ${last}: ${shares(moments, labels)}.`;
    section.append(face, title, strip, words);
    return section;
  });
  const left = seen.size - shown.length;
  const note = Object.assign(document.createElement("p"), { textContent: left ? `${left} seen more shortly are left out here, and not of the rows.` : "" });
  list.replaceChildren(legend(labels, palette), ...sections, note);
  list.hidden = !seen.size;
}

function legend(labels, palette) {
  const list = Object.assign(document.createElement("ul"), { className: "legend" });
  for (const label of labels) {
    const item = Object.assign(document.createElement("li"), { textContent: label });
    item.style.setProperty("--expression", palette[label][0]);
    list.append(item);
  }
  return list;
}

function shares(moments, labels) {
  const counted = labels.map((label) => [label, moments.filter(([, face]) => face.expression === label).length / moments.length]);
  return counted.filter(([, share]) => share >= 0.005).sort((a, b) => b[1] - a[1]).map(([label, share]) => `${label} ${percent(share)}`).join(", ");
}

function paint(canvas, count, moments, labels, palette) {
  [canvas.width, canvas.height] = [count, MARK];
  const context = canvas.getContext("2d");
  for (const [i, { probabilities }] of moments) {
    let low = MARK;
    for (const label of labels) {
      const high = MARK * probabilities[label];
      context.fillStyle = palette[label][0];
      context.fillRect(i, low - high, 1, high);
      low -= high;
    }
  }
}
