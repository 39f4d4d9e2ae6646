/** From a picture to faces with expressions: `mien.Reader` of the model that the build put beside this page. */

import { crop } from "./align.js";
import { YuNet } from "./yunet.js";

const CHUNK = 8; // faces that go through the network at a time

export class Reader {
  /** header: the model's, as mien.checkpoint describes it. classifier, detector: onnxruntime's sessions; ort: itself. */
  constructor(ort, header, classifier, detector, options) {
    Object.assign(this, { ort, header, classifier });
    this.labels = Object.keys(header.id2label).sort((a, b) => a - b).map((key) => header.id2label[key]);
    this.yunet = new YuNet(async (planes, width, height) => {
      const out = await detector.run({ input: new ort.Tensor("float32", planes, [1, 3, height, width]) });
      return Object.fromEntries(Object.entries(out).map(([name, tensor]) => [name, tensor.data]));
    }, options);
  }

  /** Fetch everything from the folder `base`, a URL. */
  static async open(ort, base, options) {
    const bytes = async (name) => {
      const answer = await fetch(new URL(name, base));
      if (!answer.ok) throw new Error(`${name}: the server answered ${answer.status}`);
      return new Uint8Array(await answer.arrayBuffer());
    };
    const [header, model, yunet] = await Promise.all(["header.json", "model.onnx", "yunet.onnx"].map(bytes));
    const settings = { executionProviders: ["wasm"] };
    const classifier = await ort.InferenceSession.create(model, settings);
    const detector = await ort.InferenceSession.create(yunet, settings);
    return new Reader(ort, JSON.parse(new TextDecoder().decode(header)), classifier, detector, options);
  }

  /**
   * The faces of picture {width, height, data} of RGB, the largest first: {box, score, landmarks, expression, probability,
   * probabilities, crop}, in the picture's pixels; crop is what the network was shown, {width, height, data}.
   */
  async read(image) {
    const detections = await this.yunet.detect(image);
    const crops = detections.map((face) => crop(image, this.header.preprocess, face.subarray(4, 14), face.subarray(0, 4)));
    const shares = await this.classify(crops);
    return detections.map((face, i) => {
      const best = shares[i].indexOf(max(shares[i]));
      return {
        box: Array.from(face.subarray(0, 4)),
        score: face[14],
        landmarks: [0, 1, 2, 3, 4].map((k) => [face[4 + 2 * k], face[5 + 2 * k]]),
        expression: this.labels[best],
        probability: shares[i][best],
        probabilities: Object.fromEntries(this.labels.map((label, k) => [label, shares[i][k]])),
        crop: crops[i],
      };
    });
  }

  /** The share of every label, for each crop. */
  async classify(crops) {
    const shares = [];
    const side = this.header.preprocess.input_size;
    for (let start = 0; start < crops.length; start += CHUNK) {
      const chunk = crops.slice(start, start + CHUNK);
      const faces = new Uint8Array(chunk.length * side * side * 3);
      chunk.forEach((face, i) => faces.set(face.data, i * side * side * 3));
      const { probs } = await this.classifier.run({
        faces: new this.ort.Tensor("uint8", faces, [chunk.length, side, side, 3]),
      });
      for (let i = 0; i < chunk.length; i++) shares.push(Array.from(probs.data.slice(i * this.labels.length, (i + 1) * this.labels.length)));
    }
    return shares;
  }
}

const max = (values) => Math.max(...values);
