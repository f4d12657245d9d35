// Forward kinematics: convert quaternions of joints relative to their parents to rotations and positions in the world.
// A matrix has 3 rows of 4 numbers. It maps a vertex from the rest pose to the pose of a frame.

const data = JSON.parse(document.getElementById("data").textContent);
const jointOf = Object.fromEntries(data.joints.map((name, index) => [name, index]));
const JOINTS = data.joints.length, MOVEMENTS = data.movements;

/** Return joint positions [[x, y, z], ...] in the rest pose, from offsets to the parents; the pelvis is at the origin. */
function restOf(offsets) {
  const rest = [];
  data.parents.forEach((parent, joint) => {
    rest.push(parent < 0 ? [0, 0, 0] : rest[parent].map((value, axis) => value + offsets[joint][axis]));
  });
  return rest;
}

const REST = restOf(data.offsets);

/** Return the bytes of a blob (a binary part of the page). */
function blob(number) {
  const text = atob(document.getElementById(`blob-${number}`).textContent);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  return bytes;
}

class Motion {
  /** Read the motion in a blob; without a body, it moves the generic skeleton. */
  constructor(number, frames, body) {
    const { buffer } = blob(number);
    this.frames = frames;
    this.body = body;
    this.offsets = body === undefined ? data.offsets : data.bodies[body].offsets;
    this.rest = body === undefined ? REST : restOf(this.offsets);
    this.root = new Float32Array(buffer, 0, 3 * frames);
    this.turns = new Int16Array(buffer, 12 * frames, 4 * JOINTS * frames);
    this.faces = new Int16Array(buffer, (12 + 8 * JOINTS) * frames, MOVEMENTS.length * frames);
    this.expressions = new Int16Array(buffer, (12 + 8 * JOINTS + 2 * MOVEMENTS.length) * frames, data.expressions * frames);
  }

  /** Return the movements of the figure's face in a frame, in metres. */
  face(frame) {
    return Array.from(MOVEMENTS, (_, k) => this.faces[frame * MOVEMENTS.length + k] * data.faceStep);
  }

  /** Return expression coefficient k of a frame. */
  coefficient(frame, k) {
    return this.expressions[frame * data.expressions + k] * data.expressionStep;
  }

  /** Return the mean (x, z) of the pelvis within half a second of a frame; the camera follows it. */
  centre(frame) {
    const first = Math.max(0, frame - 15), last = Math.min(this.frames - 1, frame + 15);
    let x = 0, z = 0;
    for (let f = first; f <= last; f++) { x += this.root[3 * f]; z += this.root[3 * f + 2]; }
    return [x / (last - first + 1), z / (last - first + 1)];
  }

  /** Fill `out` (12 numbers for each joint) with the matrices of a frame, and `positions` (3 for each joint) if given. */
  pose(frame, out, positions) {
    const world = this.world ??= new Float64Array(9 * JOINTS), place = this.place ??= new Float64Array(3 * JOINTS);
    for (let j = 0; j < JOINTS; j++) {
      const at = 4 * (frame * JOINTS + j), w = 9 * j, p = 3 * j, parent = data.parents[j];
      const local = rotation(this.turns[at], this.turns[at + 1], this.turns[at + 2], this.turns[at + 3]);
      if (parent < 0) {
        for (let k = 0; k < 9; k++) world[w + k] = local[k];
        for (let k = 0; k < 3; k++) place[p + k] = this.root[3 * frame + k];
      } else {
        const q = 9 * parent, offset = this.offsets[j];
        for (let r = 0; r < 3; r++) {
          const a = world[q + 3 * r], b = world[q + 3 * r + 1], c = world[q + 3 * r + 2];
          for (let k = 0; k < 3; k++) world[w + 3 * r + k] = a * local[k] + b * local[3 + k] + c * local[6 + k];
          place[p + r] = place[3 * parent + r] + a * offset[0] + b * offset[1] + c * offset[2];
        }
      }
      for (let r = 0; r < 3; r++) {
        const a = world[w + 3 * r], b = world[w + 3 * r + 1], c = world[w + 3 * r + 2], [x, y, z] = this.rest[j];
        out.set([a, b, c, place[p + r] - a * x - b * y - c * z], 12 * j + 4 * r);
      }
    }
    if (positions) positions.set(place);
  }
}

/** Return the rotation matrix, row by row, of a quaternion of any length. */
function rotation(x, y, z, w) {
  const s = 2 / (x * x + y * y + z * z + w * w);
  return [
    1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w),
    s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w),
    s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y),
  ];
}
