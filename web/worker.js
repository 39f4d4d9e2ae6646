/**
 * Reads pictures beside the page, so that the page never stops: {id, image} -> {id, faces, milliseconds} | {id, error};
 * {id, crop, row} -> {id, probabilities}, of the crop with each window of that row hidden.
 */

import { hideRow } from "./occlude.js";
import * as ort from "./ort.wasm.bundle.min.mjs";
import { Reader } from "./read.js";

ort.env.wasm.numThreads = 1; // more would need headers of the server that isolate the page
ort.env.logLevel = "error";

const opening = Reader.open(ort, import.meta.url, { detects: self.name !== "helper" });
opening.then(
  ({ header, labels }) => postMessage({ ready: { labels, others: header.outputs.slice(1).map(({ name }) => name), uncertain: header.uncertain ?? 0, grey: header.preprocess.color === "grey" } }),
  (error) => postMessage({ failed: String(error.message ?? error) }),
);

self.onmessage = async ({ data: { id, image, crop, row } }) => {
  try {
    const reader = await opening;
    if (crop) {
      const answers = await reader.classify(hideRow(crop, row));
      postMessage({ id, probabilities: answers.map(([probs]) => probs) });
      return;
    }
    const start = performance.now();
    const faces = await reader.read(image);
    postMessage({ id, faces, milliseconds: performance.now() - start });
  } catch (error) {
    postMessage({ id, error: String(error.message ?? error) });
  }
};
