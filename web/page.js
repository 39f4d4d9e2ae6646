/** The page: where pictures come from, and how the answer is shown. The reading itself is done in worker.js. */

import { answer, draw, drawCrop, faceAt, percent } from "./draw.js";
import { startWorker } from "./model.js";
import { isScrambled, openPicture, pixels, ReadError } from "./picture.js";
import { hideMap, offerMap } from "./why.js";

const part = (id) => document.getElementById(id);
const QUIET = 3000; // milliseconds between two sentences that a screen reader is told of a webcam

let view = null; // what is shown: {source, width, height, faces, chosen, mirrored}
let stream = null; // of the webcam, while it runs
let turn = 0; // of pictures: the answer for an earlier one comes too late
let told = 0; // when the status was last written
let header = null; // of the model: {labels, others, uncertain, grey}

const warning = isScrambled() ? " But this browser changes the pixels that pages read, so answers may be wrong." : "";
const model = startWorker();
const ready = model.ready.then(
  (about) => {
    header = about;
    offerMap(model, header.labels, () => view?.faces[view.chosen] ?? null);
    if (!turn) tell(`Ready.${warning}`);
  },
  (error) => {
    tell(`The model could not be loaded: ${error.message}`, true);
    throw error;
  },
);
ready.catch(() => {}); // told above
tell("Loading the model, 18 MB …");

part("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) show(target.files[0]);
  target.value = ""; // so that the same file may be chosen again
});
part("example").addEventListener("click", async () => {
  const answer = await fetch("example.png");
  show(new File([await answer.blob()], "The example"));
});
part("webcam").addEventListener("click", () => (stream ? stopWebcam() : startWebcam()));
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files[0]) show(clipboardData.files[0]);
  else tell("There is no picture on the clipboard.", true);
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // of opening the file instead of the page
    part("stage").classList.toggle("over", kind === "dragover" || kind === "dragenter");
    if (kind !== "drop") return;
    if (event.dataTransfer.files[0]) show(event.dataTransfer.files[0]);
    else tell("That is no file: drop a photograph from this computer.", true);
  });
}
part("faces").addEventListener("change", ({ target }) => choose(Number(target.value)));
part("canvas").addEventListener("click", ({ offsetX, offsetY }) => {
  const face = view ? faceAt(part("canvas"), view, offsetX, offsetY) : -1;
  if (face >= 0) choose(face);
});
new ResizeObserver(() => paint()).observe(part("stage"));

const read = (image) => model.ask({ image }, [image.data.buffer]);

/** Read a picture file, and show it with its faces. */
async function show(file) {
  stopWebcam();
  const mine = ++turn;
  tell("Reading …");
  try {
    const source = await openPicture(file);
    if (mine !== turn) return;
    const { width, height } = source;
    setView({ source, width, height, faces: [], chosen: 0 });
    await ready;
    const { faces, milliseconds } = await read(pixels(source, width, height));
    if (mine !== turn) return;
    setView({ ...view, faces });
    const found = faces.length === 1 ? "One face" : faces.length ? `${faces.length} faces` : "No face";
    tell(`${found}, read in ${(milliseconds / 1000).toFixed(2)} seconds. ${sentence()}${warning}`);
  } catch (error) {
    if (mine !== turn) return;
    setView(null);
    tell(error instanceof ReadError ? error.message : `This picture could not be read: ${error.message}`, true);
  }
}

async function startWebcam() {
  const mine = ++turn;
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
    repaint(mine);
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
  while (mine === turn) {
    const [width, height] = [video.videoWidth, video.videoHeight];
    const { faces, milliseconds } = await read(pixels(video, width, height));
    if (mine !== turn) return;
    const chosen = Math.min(view?.chosen ?? 0, Math.max(0, faces.length - 1));
    setView({ source: video, width, height, faces, chosen, mirrored: true });
    if (performance.now() - told > QUIET) tell(`${sentence() || "No face."} A frame takes ${Math.round(milliseconds)} ms.`);
    await new Promise(requestAnimationFrame); // which rests while the page is hidden
  }
}

function repaint(mine) {
  if (mine !== turn) return;
  paint();
  requestAnimationFrame(() => repaint(mine));
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
  const which = view.faces.length > 1 ? `Face ${view.chosen + 1} of ${view.faces.length} shows` : "It shows";
  return `${which} ${face.expression}, ${percent(face.probability)}.`;
}

function tell(text, wrong = false) {
  told = performance.now();
  part("status").textContent = text;
  part("status").classList.toggle("wrong", wrong);
}

function setView(next) {
  view = next;
  hideMap();
  part("why").hidden = Boolean(view?.mirrored); // a webcam's faces go too soon
  const faces = view?.faces ?? [];
  part("hint").hidden = Boolean(view);
  part("canvas").hidden = !view;
  part("answer").hidden = part("more").hidden = !faces.length;
  paint();
  if (!faces.length) return;
  const { labels, others, uncertain, grey } = header;
  const face = faces[view.chosen];
  const unsure = face.probability < uncertain;
  part("canvas").setAttribute("aria-label", `The photograph with ${faces.length === 1 ? "one face" : `${faces.length} faces`} marked`);
  part("expression").textContent = answer(face, uncertain);
  part("sureness").textContent = unsure ? `${percent(face.probability)}: the model is not sure` : percent(face.probability);
  drawCrop(part("seen"), face.crop, grey);
  showBars(labels.map((name) => [name, face.probabilities[name], name === face.expression]));
  showOthers(others, face);
  showFaces(faces, view.chosen);
  part("numbers").textContent = `[\n${faces.map(numbers).join(",\n")}\n]`;
}

/** A face as JSON, a line for each of its fields. */
function numbers({ crop, ...fields }) {
  const lines = Object.entries(fields).map(([name, value]) => `  ${JSON.stringify(name)}: ${JSON.stringify(value)}`);
  return ` {\n${lines.join(",\n")}\n }`;
}

function paint() {
  if (view) draw(part("canvas"), { ...view, uncertain: header.uncertain }, Math.max(240, 0.72 * window.innerHeight));
}

function showBars(rows) {
  const list = part("bars");
  while (list.children.length < rows.length) {
    const row = list.appendChild(document.createElement("li"));
    row.append(...["name", "bar", "share"].map((name) => Object.assign(document.createElement("span"), { className: name })));
    row.children[1].append(document.createElement("span"));
  }
  rows.forEach(([name, share, best], i) => {
    const [title, bar, value] = list.children[i].children;
    list.children[i].className = best ? "best" : "";
    title.textContent = name;
    bar.firstChild.style.width = `${100 * share}%`;
    value.textContent = percent(share);
  });
}

/** What the model answers beside the expression, by the names of its outputs. */
function showOthers(names, face) {
  const written = (value) => typeof value === "number" ? value.toFixed(2) : Object.entries(value).map(([label, v]) => `${label} ${v.toFixed(2)}`).join(", ");
  part("others").hidden = !names.length;
  part("others").replaceChildren(...names.flatMap((name) => [["dt", name.replaceAll("_", " ")], ["dd", written(face[name])]])
    .map(([tag, text]) => Object.assign(document.createElement(tag), { textContent: text })));
}

/** One button a face, kept where they are while a webcam's picture changes, so that the keyboard stays where it was. */
function showFaces(faces, chosen) {
  part("chooser").hidden = faces.length < 2;
  part("count").textContent = `${faces.length} faces, the largest first`;
  const list = part("faces");
  while (list.children.length > faces.length) list.lastChild.remove();
  while (list.children.length < faces.length) {
    const button = list.appendChild(document.createElement("label"));
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "face", value: list.children.length - 1 });
    button.append(input, document.createElement("canvas"));
  }
  faces.forEach((face, i) => {
    const [input, canvas] = list.children[i].children;
    input.setAttribute("aria-label", `Face ${i + 1}: ${answer(face, header.uncertain)}, ${percent(face.probability)}`);
    input.checked = i === chosen;
    drawCrop(canvas, face.crop, false);
  });
}
