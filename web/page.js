/** The page: where pictures come from, and what becomes of them. The reading itself is done in worker.js. */

import { draw, drawCrop, faceAt, percent } from "./draw.js";
import { clock, closeFilm, frameAt, openFilm, showPeople, STEP } from "./film.js";
import { startWorker } from "./model.js";
import { People } from "./people.js";
import { isScrambled, openPicture, pixels, ReadError } from "./picture.js";
import { records, save, toCsv, toJson } from "./rows.js";
import { called, showFace } from "./show.js";
import { hideMap, offerMap } from "./why.js";

const part = (id) => document.getElementById(id);
const QUIET = 3000; // milliseconds between two sentences that a screen reader is told of a webcam

let view = null; // what is shown: {source: an ImageBitmap, width, height, faces, chosen, time, mirrored, moving}
let read = null; // what was read: {name, kind: "picture" or "video", rows}
let film = null; // a video from a file: {frames: [{time, width, height, faces}], looks: a crop of each track}
let stream = null; // of the webcam, while it runs
let turn = 0; // of pictures: the answer for an earlier one comes too late
let halted = false; // whether the video is to be read no further
let wanted = null; // the number of the frame of a video that is to be shown
let told = 0; // when the status was last written
let header = null; // of the model, as worker.js tells it

const warning = isScrambled() ? " But this browser changes the pixels that pages read, so answers may be wrong." : "";
const model = startWorker();
const ready = model.ready.then(
  (about) => {
    header = about;
    document.body.dataset.threads = header.threads;
    part("docs").href = header.docs;
    part("card").hidden = !header.card;
    if (header.card) part("card").href = header.card;
    offerMap(model, header.labels, () => view?.faces[view.chosen] ?? null);
    if (!turn) tell(`Ready.${warning}`);
  },
  (error) => {
    tell(`The model could not be loaded: ${error.message}`, true);
    throw error;
  },
);
ready.catch(() => {}); // told above
tell("Loading the model …");

part("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) open(target.files[0]);
  target.value = ""; // so that the same file may be chosen again
});
part("example").addEventListener("click", async () => {
  const answer = await fetch("example.png");
  open(new File([await answer.blob()], "example.png"));
});
part("webcam").addEventListener("click", () => (stream ? stopWebcam() : startWebcam()));
part("stop").addEventListener("click", () => (halted = true));
part("moment").addEventListener("input", ({ target }) => go(Number(target.value)));
part("json").addEventListener("click", () => save(`${stem()}.json`, toJson(read.rows), "application/json"));
part("csv").addEventListener("click", () => save(`${stem()}.csv`, toCsv(read.rows, header.rows[read.kind]), "text/csv"));
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files[0]) open(clipboardData.files[0]);
  else tell("There is no picture on the clipboard.", true);
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // of opening the file instead of the page
    part("stage").classList.toggle("over", kind === "dragover" || kind === "dragenter");
    if (kind !== "drop") return;
    if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
    else tell("That is no file: drop a photograph or a video from this computer.", true);
  });
}
part("faces").addEventListener("change", ({ target }) => choose(Number(target.value)));
part("canvas").addEventListener("click", ({ offsetX, offsetY }) => {
  const face = view ? faceAt(part("canvas"), view, offsetX, offsetY) : -1;
  if (face >= 0) choose(face);
});
new ResizeObserver(() => paint()).observe(part("stage"));

const stem = () => read.name.replace(/\.[^.]*$/, "") || "faces";
const isFilm = (file) => file.type.startsWith("video/");
const ask = (image) => model.ask({ image }, [image.data.buffer]);

/** Nothing of what was before goes on; the number of this turn. */
function begin() {
  stopWebcam();
  closeFilm(part("video"));
  [film, wanted, halted] = [null, null, false];
  part("reading").hidden = part("moments").hidden = part("people").hidden = true;
  keep(null);
  return ++turn;
}

async function open(file) {
  const mine = begin();
  tell("Reading …");
  try {
    await (isFilm(file) ? readFilm(file, mine) : readPicture(file, mine));
  } catch (error) {
    if (mine !== turn) return;
    part("reading").hidden = true;
    setView(null);
    const what = isFilm(file) ? "video" : "picture";
    tell(error instanceof ReadError ? error.message : `This ${what} could not be read: ${error.message}`, true);
  }
}

async function readPicture(file, mine) {
  const source = await openPicture(file);
  if (mine !== turn) return;
  const { width, height } = source;
  setView({ source, width, height, faces: [], chosen: 0 });
  await ready;
  const { faces, milliseconds } = await ask(pixels(source, width, height));
  if (mine !== turn) return;
  keep({ name: file.name, kind: "picture", rows: records(file.name, faces, header.others) });
  setView({ ...view, faces });
  const found = faces.length === 1 ? "One face" : faces.length ? `${faces.length} faces` : "No face";
  tell(`${found}, read in ${(milliseconds / 1000).toFixed(2)} seconds. ${sentence()}${warning}`);
}

/** Read a moment after the other, and then let people look at any of them. */
async function readFilm(file, mine) {
  const video = part("video");
  const duration = await openFilm(file, video);
  if (mine !== turn) return;
  await ready;
  const people = new People(header.outputs, header.smooth);
  const frames = [];
  film = { frames, looks: new Map() };
  keep({ name: file.name, kind: "video", rows: [] });
  part("reading").hidden = false;
  let fault = "";
  for (let time = 0; !halted && (time < duration || !frames.length); time = STEP * frames.length) {
    let faces;
    try {
      faces = await readFrame(await frameAt(video, time), people, time, mine);
    } catch (error) {
      if (!(error instanceof ReadError) || !frames.length) throw error;
      fault = ` ${error.message[0].toUpperCase()}${error.message.slice(1)}.`; // what could be read is kept
      break;
    }
    if (!faces) return;
    for (const face of faces) {
      const best = film.looks.get(face.track);
      if (!best || face.box[2] > best.wide) film.looks.set(face.track, { wide: face.box[2], crop: face.crop });
    }
    frames.push({ time, width: view.width, height: view.height, faces: faces.map(({ crop, ...rest }) => rest) });
    part("progress").value = Math.min(1, (time + STEP) / duration);
    if (performance.now() - told > QUIET) tell(`${clock(time)} of ${clock(duration)} read.`);
  }
  part("reading").hidden = true;
  const last = frames.at(-1).time;
  tell(`${halted ? `Stopped at ${clock(last)}: ` : ""}${frames.length} moments, one each ${STEP} seconds, of ${clock(duration)}.${fault}${warning}`, Boolean(fault));
  part("moment").max = frames.length - 1;
  part("moments").hidden = frames.length < 2;
  const looks = new Map([...film.looks].map(([track, { crop }]) => [track, crop]));
  showPeople(part("people"), frames, looks, { ...header, drawCrop, go });
  await go(Math.max(0, frames.findIndex(({ faces }) => faces.length)));
}

/** Read a frame that moves on, and show it, the very one that was read; its faces, or null where another turn has begun. */
async function readFrame(source, people, time, mine) {
  const { width, height } = source;
  const answer = mine === turn ? await ask(pixels(source, width, height)) : null;
  if (mine !== turn) {
    source.close();
    return null;
  }
  const faces = people.follow(answer.faces, time);
  const before = view?.faces[view.chosen]?.track;
  const chosen = Math.max(0, faces.findIndex(({ track }) => track === before));
  read.rows.push(...records(read.name, faces, header.others, { time, frame: null, width, height }));
  keep(read);
  setView({ source, width, height, faces, chosen, time, mirrored: Boolean(stream), moving: true });
  part("canvas").dataset.milliseconds = Math.round(answer.milliseconds);
  return faces;
}

/** Show a frame of a video that was read; of several that are asked for meanwhile, the last. */
async function go(number) {
  const idle = wanted === null;
  wanted = number;
  if (!idle) return;
  const mine = turn;
  try {
    for (let shown = null; wanted !== shown; ) {
      shown = wanted;
      const { time, width, height, faces } = film.frames[shown];
      const source = await frameAt(part("video"), time);
      const { crops } = await model.ask({ image: pixels(source, width, height), cut: faces.map(({ box, landmarks }) => ({ box, landmarks })) });
      if (mine !== turn) return source.close();
      const before = view?.faces[view.chosen]?.track;
      const chosen = Math.max(0, faces.findIndex(({ track }) => track === before));
      setView({ source, width, height, faces: faces.map((face, i) => ({ ...face, crop: crops[i] })), chosen, time });
      part("moment").value = shown;
      part("clock").textContent = clock(time);
      part("moment").setAttribute("aria-valuetext", `${clock(time)}. ${sentence() || "No face."}`);
    }
  } finally {
    if (mine === turn) wanted = null;
  }
}

async function startWebcam() {
  const mine = begin();
  try {
    if (!navigator.mediaDevices) throw new ReadError("A webcam needs https, or a page of this very computer.");
    tell("Waiting for the webcam …");
    const opened = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "user", width: { ideal: 640 }, height: { ideal: 480 } },
    });
    if (mine !== turn) return opened.getTracks().forEach((track) => track.stop());
    stream = opened;
    stream.getTracks()[0].onended = () => stopWebcam("The webcam was taken away.");
    part("webcam").setAttribute("aria-pressed", "true");
    part("webcam").textContent = "Stop the webcam";
    const video = part("video");
    video.srcObject = stream;
    await video.play();
    await ready;
    await follow(video, mine);
  } catch (error) {
    if (mine !== turn) return;
    stopWebcam();
    const reasons = {
      NotAllowedError: "The webcam may not be used: this browser or its user said no.",
      NotFoundError: "There is no webcam.",
      NotReadableError: "The webcam is in use elsewhere.",
    };
    tell(reasons[error.name] ?? error.message, true);
  }
}

/** Read frame after frame, as quickly as it goes, until another picture is shown. */
async function follow(video, mine) {
  const people = new People(header.outputs, header.smooth);
  const start = performance.now();
  keep({ name: "webcam", kind: "video", rows: [] });
  while (mine === turn) {
    const time = (performance.now() - start) / 1000;
    if (!(await readFrame(await createImageBitmap(video), people, time, mine))) return;
    if (performance.now() - told > QUIET) {
      tell(`${sentence() || "No face."} A frame takes ${part("canvas").dataset.milliseconds} ms.`);
    }
    await new Promise(requestAnimationFrame); // which rests while the page is hidden
  }
}

function stopWebcam(reason) {
  turn++;
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  stream = part("video").srcObject = null;
  part("webcam").setAttribute("aria-pressed", "false");
  part("webcam").textContent = "Use the webcam";
  setView(null);
  tell(typeof reason === "string" ? reason : "The webcam is off.", Boolean(reason));
}

function choose(face) {
  setView({ ...view, chosen: face });
  if (!stream) tell(sentence());
}

/** One sentence on the chosen face, as it is read aloud. */
function sentence() {
  const face = view?.faces[view.chosen];
  if (!face) return "";
  const which = view.faces.length > 1 ? `${called(face, view.chosen)}${face.track ? "" : ` of ${view.faces.length}`} shows` : "It shows";
  return `${which} ${face.expression}, ${percent(face.probability)}.`;
}

function tell(text, wrong = false) {
  told = performance.now();
  part("status").textContent = text;
  part("status").classList.toggle("wrong", wrong);
}

/** What can be downloaded. */
function keep(next) {
  read = next;
  part("files").hidden = !read?.rows.length;
}

function setView(next) {
  if (view && view.source !== next?.source) view.source.close();
  view = next;
  hideMap();
  part("why").hidden = Boolean(view?.moving); // those faces go too soon
  const faces = view?.faces ?? [];
  part("hint").hidden = Boolean(view);
  part("canvas").hidden = !view;
  part("answer").hidden = part("more").hidden = !faces.length;
  part("numbers").textContent = "";
  paint();
  if (!faces.length) return;
  const many = faces.length === 1 ? "one face" : `${faces.length} faces`;
  part("canvas").setAttribute("aria-label", `The ${view.time === undefined ? "photograph" : "frame"} with ${many} marked`);
  showFace(faces, view.chosen, header);
  const { time, width, height } = view;
  const when = time === undefined ? null : { time, frame: null, width, height };
  part("numbers").textContent = `[\n${records(read.name, faces, header.others, when).map(fields).join(",\n")}\n]`;
}

/** A row as JSON, a line for each of its fields. */
function fields(row) {
  return ` {\n${Object.entries(row).map(([name, value]) => `  ${JSON.stringify(name)}: ${JSON.stringify(value)}`).join(",\n")}\n }`;
}

function paint() {
  if (view) draw(part("canvas"), { ...view, ...(header ?? { palette: {} }) }, Math.max(240, 0.72 * window.innerHeight));
}
