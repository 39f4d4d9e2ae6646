// Runs functions of web/*.js on what stands in a JSON file, for tests/test_web.py: node web_stages.mjs IN OUT
import { readFileSync, writeFileSync } from "node:fs";
import * as place from "../src/mien/demo/place.js";
import * as align from "../web/align.js";
import * as occlude from "../web/occlude.js";
import { People } from "../web/people.js";
import * as pose from "../web/pose.js";
import * as resize from "../web/resize.js";
import * as rows from "../web/rows.js";
import * as yunet from "../web/yunet.js";

/** What is said of the faces of frames {time, faces}, one after the other. */
function followed(outputs, seconds, frames) {
  const people = new People(outputs, seconds);
  return frames.map(({ time, faces }) => people.follow(faces, time));
}

const functions = { ...align, ...occlude, ...place, ...pose, ...resize, ...rows, ...yunet, followed };
const [, , source, target] = process.argv;

/** {shape, base64} of uint8 is a picture, {base64} of float32 an array. */
function decode(key, value) {
  if (typeof value?.base64 !== "string") return value;
  const bytes = Uint8Array.from(Buffer.from(value.base64, "base64"));
  if (value.shape) return { width: value.shape[1], height: value.shape[0], data: bytes };
  return new Float32Array(bytes.buffer);
}

function encode(key, value) {
  if (value instanceof Uint8Array || value instanceof Float32Array) {
    return { base64: Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("base64") };
  }
  return value;
}

const cases = JSON.parse(readFileSync(source, "utf8"), decode);
writeFileSync(target, JSON.stringify(cases.map(([name, ...given]) => functions[name](...given)), encode));
