/** The map of what an answer rests on: measured when it is asked for, a face at a time. */

import { startWorker } from "./model.js";
import { drawFalls, GRID } from "./occlude.js";

const part = (id) => document.getElementById(id);
const percent = (share) => `${share < 0.0995 ? Number((100 * share).toPrecision(2)) : Math.round(100 * share)}\u00a0%`;

let helper = null; // a second worker, on a second core, once there is something to do for it
let wanted = 0; // of maps: an earlier one comes too late

/** model: the worker that reads. face: () -> the chosen face, or null. */
export function offerMap(model, labels, face) {
  part("why").addEventListener("click", () => {
    if (part("why").getAttribute("aria-expanded") === "true") hideMap();
    else showMap(model, labels, face());
  });
}

/** What was shown is of another face. */
export function hideMap() {
  wanted++;
  part("why").setAttribute("aria-expanded", "false");
  part("map").hidden = true;
}

async function showMap(model, labels, face) {
  if (!face) return;
  const mine = ++wanted;
  part("why").setAttribute("aria-expanded", "true");
  part("map").hidden = false;
  part("falls").hidden = part("scale").hidden = true;
  part("said").textContent = "Hiding parts of the face …";
  try {
    const start = performance.now();
    const probs = await measure(model, face.crop, () => mine !== wanted);
    if (mine !== wanted) return;
    const index = labels.indexOf(face.expression);
    const falls = probs.map((each) => face.probability - each[index]);
    const most = Math.max(...falls.map(Math.abs));
    drawFalls(part("falls"), face.crop, falls);
    part("falls").dataset.falls = JSON.stringify(falls);
    part("falls").setAttribute("aria-label", described(falls, face.expression));
    part("falls").hidden = part("scale").hidden = false;
    [part("least").textContent, part("most").textContent] = [`−${percent(most)}`, `+${percent(most)}`];
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    part("said").textContent =
      `Orange: hiding this part takes up to ${percent(most)} from ${face.expression}. Blue: without it the answer would be surer. ` +
      `Measured with ${falls.length} hidden windows in ${seconds} s.`;
  } catch (error) {
    if (mine === wanted) part("said").textContent = `The map could not be drawn: ${error.message}`;
  }
}

/** The probabilities with each window hidden, row by row; two workers take a row each where there are two cores. */
async function measure(model, crop, stopped) {
  if (navigator.hardwareConcurrency > 1) helper ??= startWorker({ helper: true });
  const rows = Array.from({ length: GRID }, () => null);
  let next = 0;
  const work = async (worker) => {
    await worker.ready;
    while (next < GRID && !stopped()) {
      const row = next++;
      rows[row] = (await worker.ask({ crop, row })).probabilities;
    }
  };
  const helping = helper ? work(helper).catch(() => (helper = null)) : null; // without it the other does all
  await work(model);
  await helping;
  for (let row = 0; row < GRID; row++) rows[row] ??= (await model.ask({ crop, row })).probabilities;
  return rows.flat();
}

/** Where the answer rests, in words. */
function described(falls, expression) {
  const best = falls.indexOf(Math.max(...falls));
  const third = (i) => Math.min(2, Math.floor((3 * i) / GRID));
  const [down, across] = [third(Math.floor(best / GRID)), third(best % GRID)];
  const where = `${["upper", "middle", "lower"][down]} ${["left", "middle", "right"][across]}`;
  return `The face with what hiding each part takes from ${expression}: most in the ${where}, ${percent(falls[best])}`;
}
