/** Who is who from frame to frame, and what is said of each, smoothed over time as `mien read --track` smooths it. */

const [OVERLAP, GAP] = [0.25, 1]; // the least intersection over union; seconds after which somebody is given up

export class People {
  /** outputs: the model's, whose first are probabilities. seconds: the time constant of the smoothing. */
  constructor(outputs, seconds) {
    Object.assign(this, { outputs, seconds, tracks: [], last: 0, before: 0 });
  }

  /** The faces of a frame at `time` in seconds: each with its `track`, its answers smoothed, and `unsmoothed` beside them. */
  follow(faces, time) {
    const there = (track) => time - track.time <= GAP || track.time === this.before; // however slowly frames come
    this.tracks = this.tracks.filter(there);
    this.before = time;
    const found = this.match(faces, time);
    return faces.map((face, i) => {
      const track = found[i] ?? { id: ++this.last, answers: null };
      if (!found[i]) this.tracks.push(track);
      const share = track.answers ? 1 - Math.exp(-(time - track.time) / this.seconds) : 1;
      const own = Object.fromEntries(this.outputs.map(({ name }, k) => [name, k ? face[name] : face.probabilities]));
      const answers = Object.fromEntries(this.outputs.map(({ name, kind }) => [
        name, blend(track.answers?.[name] ?? own[name], own[name], share, kind === "angles"),
      ]));
      const [probabilities, ...others] = this.outputs.map(({ name }) => [name, answers[name]]);
      const [expression, probability] = Object.entries(probabilities[1]).reduce((best, each) => (each[1] > best[1] ? each : best));
      Object.assign(track, { box: face.box, time, answers });
      return {
        ...face, ...Object.fromEntries(others), expression, probability, probabilities: probabilities[1],
        track: track.id, unsmoothed: face.probabilities,
      };
    });
  }

  /** The track of each face: by how much their boxes overlap, the most first; then those that grown boxes bring together. */
  match(faces, time) {
    const found = faces.map(() => null);
    for (const grown of [1, 2]) {
      const pairs = faces.flatMap((face, i) => this.tracks.map((track) => [overlap(grow(face.box, grown), grow(track.box, grown)), i, track]));
      for (const [shared, i, track] of pairs.sort((a, b) => b[0] - a[0])) {
        if (shared >= OVERLAP && !found[i] && !found.includes(track)) found[i] = track;
      }
    }
    return found;
  }
}

const grow = ([x, y, w, h], by) => [x - (w * (by - 1)) / 2, y - (h * (by - 1)) / 2, w * by, h * by];

/** Intersection over union of two boxes. */
function overlap(a, b) {
  const [wide, high] = [0, 1].map((k) => Math.max(0, Math.min(a[k] + a[k + 2], b[k] + b[k + 2]) - Math.max(a[k], b[k])));
  return (wide * high) / (a[2] * a[3] + b[2] * b[3] - wide * high);
}

/** `before + share (now - before)` of a number or of each label's; of angles the shorter way round. */
function blend(before, now, share, turns) {
  const around = (angle) => (turns ? ((((angle + 180) % 360) + 360) % 360) - 180 : angle);
  const one = (a, b) => around(a + share * around(b - a));
  if (typeof now === "number") return one(before, now);
  return Object.fromEntries(Object.entries(now).map(([label, value]) => [label, one(before[label], value)]));
}
