/** How a head is turned, as five landmarks tell it: `mien.faces.pose.pose_of`. */

import { similarity } from "./align.js";

const STARTS = [-50, 0, 50].flatMap((yaw) => [-30, 0, 30].map((pitch) => [yaw, pitch]));
const [STEPS, ENOUGH] = [30, 1e-10];
const { asin, atan2, cos, hypot, max, min, sin, sqrt, PI } = Math;

/**
 * {yaw, pitch, roll} in degrees of five points x, y, one after another; null where they are no face. head: where they lie
 * in one head for everybody, five points in space; far: units of it from which a face is seen.
 *
 * As OpenCV's SQPNP, it finds the rotation R and the shift t for which Σ |X - u Z|² over (X, Y, Z) = R h + t and the
 * points (u, v) is least; by Gauss and Newton's steps from several starts, of which the best end counts.
 */
export function poseOf(landmarks, head, far) {
  if (!similarity(landmarks, 112)) return null;
  const points = [0, 2, 4, 6, 8].map((i) => [landmarks[i], landmarks[i + 1]]);
  const [mx, my] = [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / 5);
  const size = sqrt(points.reduce((sum, [x, y]) => sum + (x - mx) ** 2 + (y - my) ** 2, 0) / 5);
  const rays = points.map(([x, y]) => [(x - mx) / size / far, (y - my) / size / far]);
  let best = null;
  for (const [yaw, pitch] of STARTS) {
    const end = descend(rotation(yaw, pitch), rays, head, far);
    if (end && (!best || end.cost < best.cost)) best = end;
  }
  return best && anglesOf(best.turn);
}

function rotation(yaw, pitch) {
  const [sy, cy, sp, cp] = [yaw, pitch].flatMap((angle) => [sin((angle * PI) / 180), cos((angle * PI) / 180)]);
  return [[cy, -sy * -sp, -sy * cp], [0, cp, sp], [sy, cy * -sp, cy * cp]];
}

function anglesOf(turn) {
  const degrees = (radians) => (radians * 180) / PI;
  return {
    yaw: degrees(atan2(-turn[0][2], turn[2][2])),
    pitch: degrees(asin(max(-1, min(1, turn[1][2])))),
    roll: degrees(atan2(turn[1][0], turn[1][1])),
  };
}

function descend(turn, rays, head, far) {
  let [shift, cost] = [[0, 0, far], Infinity];
  for (let step = 0; step < STEPS; step++) {
    const [normal, right] = [Array.from({ length: 6 }, () => new Array(6).fill(0)), new Array(6).fill(0)];
    cost = 0;
    rays.forEach((ray, i) => {
      const [x, y, z] = turn.map((row) => row[0] * head[i][0] + row[1] * head[i][1] + row[2] * head[i][2]);
      const at = [x + shift[0], y + shift[1], z + shift[2]];
      ray.forEach((u, axis) => { // the change of X - u Z with a turn about each axis of the camera, and with the shift
        const change = axis ? [-z - u * y, u * x, x, 0, 1, -u] : [-u * y, z + u * x, -y, 1, 0, -u];
        const off = at[axis] - u * at[2];
        cost += off * off;
        change.forEach((a, r) => {
          right[r] -= a * off;
          change.forEach((b, c) => (normal[r][c] += a * b));
        });
      });
    });
    const change = solve(normal, right);
    if (!change) return null;
    turn = turned(change.slice(0, 3), turn);
    shift = shift.map((value, axis) => value + change[3 + axis]);
    if (hypot(...change) < ENOUGH) break;
  }
  return shift[2] > 0 ? { turn, cost } : null;
}

/** `turn` after a rotation by the vector (x, y, z), whose length is its angle (Rodrigues). */
function turned([x, y, z], turn) {
  const angle = hypot(x, y, z) || 1e-300;
  const [a, b, c, s, k] = [x / angle, y / angle, z / angle, sin(angle), 1 - cos(angle)];
  const by = [
    [1 - k * (b * b + c * c), k * a * b - s * c, k * a * c + s * b],
    [k * a * b + s * c, 1 - k * (a * a + c * c), k * b * c - s * a],
    [k * a * c - s * b, k * b * c + s * a, 1 - k * (a * a + b * b)],
  ];
  return by.map((row) => [0, 1, 2].map((j) => row[0] * turn[0][j] + row[1] * turn[1][j] + row[2] * turn[2][j]));
}

/** x of `matrix x = right`, by elimination; null where there is none. */
function solve(matrix, right) {
  const rows = matrix.map((row, i) => [...row, right[i]]);
  for (let i = 0; i < rows.length; i++) {
    const pivot = rows.slice(i).reduce((most, row, k) => (Math.abs(row[i]) > Math.abs(rows[most][i]) ? i + k : most), i);
    [rows[i], rows[pivot]] = [rows[pivot], rows[i]];
    if (!(Math.abs(rows[i][i]) > 1e-14)) return null;
    rows.forEach((row, k) => {
      if (k === i) return;
      const times = row[i] / rows[i][i];
      for (let j = i; j < row.length; j++) row[j] -= times * rows[i][j];
    });
  }
  return rows.map((row, i) => row[rows.length] / row[i]);
}
