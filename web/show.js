/** What the page shows of a face beside the picture: its expression, all probabilities, and the other faces. */

import { answer, drawCrop, percent } from "./draw.js";

const part = (id) => document.getElementById(id);

/** about: of the model {labels, others, uncertain, grey, palette}. */
export function showFace(faces, chosen, { labels, others, uncertain, grey, palette }) {
  const face = faces[chosen];
  const unsure = face.probability < uncertain;
  part("expression").textContent = answer(face, uncertain);
  part("sureness").textContent = unsure ? `${percent(face.probability)}: the model is not sure` : percent(face.probability);
  if (face.crop) drawCrop(part("seen"), face.crop, grey);
  showBars(labels.map((name) => [name, face.probabilities[name], name === face.expression, palette[name][0]]));
  showOthers(others, face);
  showFaces(faces, chosen, uncertain, palette);
}

function showBars(rows) {
  const list = part("bars");
  while (list.children.length < rows.length) {
    const row = list.appendChild(document.createElement("li"));
    row.append(...["name", "bar", "share"].map((name) => Object.assign(document.createElement("span"), { className: name })));
    row.children[1].append(document.createElement("span"));
  }
  rows.forEach(([name, share, best, colour], i) => {
    const [title, bar, value] = list.children[i].children;
    list.children[i].className = best ? "best" : "";
    title.textContent = name;
    bar.firstChild.style.width = `${100 * share}%`;
    bar.firstChild.style.setProperty("--expression", colour);
    value.textContent = percent(share);
  });
}

/** What is answered beside the expression, by its names. */
function showOthers(names, face) {
  const number = (value, name) => (name === "pose" ? `${Math.round(value)}°` : value.toFixed(2));
  const written = (value, name) => {
    if (value === null) return "not known";
    return typeof value === "number" ? number(value, name) : Object.entries(value).map(([label, v]) => `${label} ${number(v, name)}`).join(", ");
  };
  part("others").hidden = !names.length;
  part("others").replaceChildren(...names.flatMap((name) => [["dt", name.replaceAll("_", " ")], ["dd", written(face[name], name)]])
    .map(([tag, text]) => Object.assign(document.createElement(tag), { textContent: text })));
}

/** One button a face, kept where they are while a webcam's picture changes, so that the keyboard stays where it was. */
function showFaces(faces, chosen, uncertain, palette) {
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
    input.setAttribute("aria-label", `${called(face, i)}: ${answer(face, uncertain)}, ${percent(face.probability)}`);
    input.checked = i === chosen;
    canvas.style.setProperty("--expression", palette[face.expression]?.[0] ?? "#ffffff");
    if (face.crop) drawCrop(canvas, face.crop, false);
  });
}

/** Who that is, among the faces of a picture or the people of a video. */
export const called = (face, i) => (face.track ? `Person ${face.track}` : `Face ${i + 1}`);
