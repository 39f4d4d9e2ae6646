/** From a picture to faces with expressions: `mien.Reader` of the model that the build put beside this page. */

import { crop } from "./align.js";
import { poseOf } from "./pose.js";
import { YuNet } from "./yunet.js";

const CHUNK = 8; // faces that go through the network at a time

export class Reader {
  /** header: the model's, of version 2, and the names of its tensors, an output each. classifier, detector: onnxruntime's sessions; ort: itself. */
  constructor(ort, header, classifier, detector, options) {
    Object.assign(this, { ort, header, classifier });
    this.labels = header.outputs[0].labels;
    this.yunet = new YuNet(async (planes, width, height) => {
      const out = await detector.run({ input: new ort.Tensor("float32", planes, [1, 3, height, width]) });
      return Object.fromEntries(Object.entries(out).map(([name, tensor]) => [name, tensor.data]));
    }, options);
  }

  /** Fetch everything from the folder `base`, a URL. detects: false is without the detector, for crops alone. */
  static async open(ort, base, { detects = true, ...options } = {}) {
    const bytes = async (name) => {
      const answer = await fetch(new URL(name, base));
      if (!answer.ok) throw new Error(`${name}: the server answered ${answer.status}`);
      return new Uint8Array(await answer.arrayBuffer());
    };
    const files = ["header.json", "model.onnx", ...(detects ? ["yunet.onnx"] : [])];
    const [header, model, yunet] = await Promise.all(files.map(bytes));
    const settings = { executionProviders: ["wasm"] };
    const classifier = await ort.InferenceSession.create(model, settings);
    const detector = detects ? await ort.InferenceSession.create(yunet, settings) : null;
    return new Reader(ort, JSON.parse(new TextDecoder().decode(header)), classifier, detector, options);
  }

  /**
   * The faces of picture {width, height, data} of RGB, the largest first: {box, score, landmarks, expression, probability,
   * probabilities, crop}, in the picture's pixels; crop is what the network was shown, {width, height, data}. What else
   * the model answers is there by the name of its output, a number or a number for each label; pose, null where the
   * landmarks tell none; and a note where there is something to be said.
   */
  async read(image) {
    const detections = await this.yunet.detect(image);
    const crops = this.crops(image, detections);
    const answers = await this.classify(crops);
    return detections.map((face, i) => {
      const [probs, ...others] = answers[i];
      const best = probs.indexOf(max(probs));
      return {
        box: Array.from(face.subarray(0, 4)),
        score: face[14],
        landmarks: [0, 1, 2, 3, 4].map((k) => [face[4 + 2 * k], face[5 + 2 * k]]),
        expression: this.labels[best],
        probability: probs[best],
        probabilities: byLabel(this.labels, probs),
        ...Object.fromEntries(this.header.outputs.slice(1).map(({ name, labels }, k) => [
          name, labels.length === 1 && labels[0] === name ? others[k][0] : byLabel(labels, others[k]),
        ])),
        ...this.pose(face.subarray(4, 14)),
        crop: crops[i],
      };
    });
  }

  /** What the network is shown of each face, given as the detector finds them. */
  crops(image, faces) {
    return faces.map((face) => crop(image, this.header.preprocess, face.subarray(4, 14), face.subarray(0, 4)));
  }

  /** {pose, note} of five landmarks, as Python says it; nothing where the model answers a pose itself. */
  pose(landmarks) {
    const { pose: settings } = this.header;
    if (!settings) return {};
    const pose = poseOf(landmarks, settings.head, settings.far);
    if (!pose) return { pose, note: "no pose, since the landmarks do not make a face" };
    return Math.max(Math.abs(pose.yaw), Math.abs(pose.pitch)) > settings.turned ? { pose, note: "turned" } : { pose };
  }

  /** For each crop the numbers of every output, in their order. */
  async classify(crops) {
    const answers = [];
    const side = this.header.preprocess.input_size;
    for (let start = 0; start < crops.length; start += CHUNK) {
      const chunk = crops.slice(start, start + CHUNK);
      const faces = new Uint8Array(chunk.length * side * side * 3);
      chunk.forEach((face, i) => faces.set(face.data, i * side * side * 3));
      const out = await this.classifier.run({
        faces: new this.ort.Tensor("uint8", faces, [chunk.length, side, side, 3]),
      });
      for (let i = 0; i < chunk.length; i++) {
        answers.push(this.header.outputs.map(({ labels }, k) =>
          Array.from(out[this.header.tensors[k]].data.slice(i * labels.length, (i + 1) * labels.length))));
      }
    }
    return answers;
  }
}

const byLabel = (labels, values) => Object.fromEntries(labels.map((label, k) => [label, values[k]]));
const max = (values) => Math.max(...values);
