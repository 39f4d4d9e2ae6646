/**
 * Reads pictures beside the page, so that the page never stops: {id, image} -> {id, faces, milliseconds} | {id, error};
 * {id, image, cut: faces} -> {id, crops}, of faces that were found before; {id, crop, row} -> {id, probabilities}, of the
 * crop with each window of that row hidden.
 */

import { hideRow } from "./occlude.js";
import * as ort from "./ort.wasm.bundle.min.mjs";
import { Reader } from "./read.js";

// threads share memory, which browsers allow only pages that their server isolates
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.max(1, Math.min(4, navigator.hardwareConcurrency)) : 1;
ort.env.logLevel = "error";

const opening = Reader.open(ort, import.meta.url, { detects: self.name !== "helper" });
opening.then(
  ({ header, labels }) => postMessage({ ready: {
    labels,
    outputs: header.outputs,
    others: [...header.outputs.slice(1).map(({ name }) => name), ...(header.pose ? ["pose"] : [])],
    uncertain: header.uncertain ?? 0,
    grey: header.preprocess.color === "grey",
    ...Object.fromEntries(["rows", "palette", "smooth", "card", "docs"].map((name) => [name, header[name]])),
    threads: ort.env.wasm.numThreads,
  } }),
  (error) => postMessage({ failed: String(error.message ?? error) }),
);

self.onmessage = async ({ data: { id, image, crop, row, cut } }) => {
  try {
    const reader = await opening;
    if (crop) {
      const answers = await reader.classify(hideRow(crop, row));
      postMessage({ id, probabilities: answers.map(([probs]) => probs) });
      return;
    }
    if (cut) {
      postMessage({ id, crops: reader.crops(image, cut.map(({ box, landmarks }) => new Float32Array([...box, ...landmarks.flat()]))) });
      return;
    }
    const start = performance.now();
    const faces = await reader.read(image);
    postMessage({ id, faces, milliseconds: performance.now() - start });
  } catch (error) {
    postMessage({ id, error: String(error.message ?? error) });
  }
};
