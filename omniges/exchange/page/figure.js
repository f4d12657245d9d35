// The figure: one mesh around the skeleton in its rest pose, each vertex bound to one or two joints.
// It is nobody's body: bones and flesh are round numbers, the same for everybody.

const BROWS = { left: JOINTS, right: JOINTS + 1 };
const BONES = JOINTS + 2;
const COLOURS = { tint: 0, clay: 1, white: 2, iris: 3, dark: 4, lip: 5, shoe: 6 };

class Mesh {
  constructor() { this.vertices = []; this.triangles = []; this.count = 0; }

  /** Add a vertex at a place, bound to joint a with weight 1 - w and to joint b with weight w. */
  vertex([x, y, z], colour, a, b = a, w = 0) {
    this.vertices.push(x, y, z, 0, 0, 0, a, b, w, COLOURS[colour]);
    return this.count++;
  }

  /** Join rings of places to a closed surface; a ring is {at, u, v, joint, next, weight}. */
  tube(rings, colour, sides = 20) {
    const first = this.count;
    for (const { at, u, v, joint, next = joint, weight = 0 } of rings) {
      for (let k = 0; k < sides; k++) {
        const c = Math.cos(2 * Math.PI * k / sides), s = Math.sin(2 * Math.PI * k / sides);
        this.vertex(at.map((value, axis) => value + c * u[axis] + s * v[axis]), colour, joint, next, weight);
      }
    }
    for (let r = 0; r + 1 < rings.length; r++) {
      for (let k = 0; k < sides; k++) {
        const a = first + r * sides + k, b = first + r * sides + (k + 1) % sides;
        this.triangles.push(a, b, a + sides, b, b + sides, a + sides);
      }
    }
    this.normals(first);
  }

  /** Normals of the vertices from `first` on: the mean of those of their triangles, outwards. */
  normals(first) {
    const v = this.vertices, sum = new Float64Array(3 * (this.count - first)), centre = [0, 0, 0];
    for (let n = first; n < this.count; n++) for (let k = 0; k < 3; k++) centre[k] += v[10 * n + k] / (this.count - first);
    let outwards = 0;
    for (let t = 0; t < this.triangles.length; t += 3) {
      const a = this.triangles[t], b = this.triangles[t + 1], c = this.triangles[t + 2];
      if (a < first) continue;
      const p = [0, 1, 2].map((k) => v[10 * b + k] - v[10 * a + k]), q = [0, 1, 2].map((k) => v[10 * c + k] - v[10 * a + k]);
      const n = [p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]];
      for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) sum[3 * (corner - first) + k] += n[k];
      for (let k = 0; k < 3; k++) outwards += n[k] * (v[10 * a + k] - centre[k]);
    }
    const sign = Math.sign(outwards) || 1;
    for (let n = first; n < this.count; n++) {
      const x = sum.subarray(3 * (n - first), 3 * (n - first) + 3), length = Math.hypot(...x) || 1;
      for (let k = 0; k < 3; k++) v[10 * n + 3 + k] = sign * x[k] / length;
    }
  }

  /** Add a capsule from a to b with radii ra and rb, on one joint. */
  capsule(a, b, ra, rb, joint, colour, sides = 12) {
    const along = b.map((value, axis) => value - a[axis]), length = Math.hypot(...along) || 1e-9;
    const d = along.map((value) => value / length), rings = [];
    const other = Math.abs(d[1]) < 0.9 ? [0, 1, 0] : [1, 0, 0];
    const u = unit(cross(d, other)), v = cross(d, u);
    for (const [end, radius, from, to] of [[a, ra, -90, 0], [b, rb, 0, 90]]) {
      for (let k = 0; k <= 4; k++) {
        const angle = (from + (to - from) * k / 4) * Math.PI / 180, r = Math.max(radius * Math.cos(angle), 1e-5);
        const at = end.map((value, axis) => value + radius * Math.sin(angle) * d[axis]);
        rings.push({ at, u: u.map((x) => x * r), v: v.map((x) => x * r), joint });
      }
    }
    this.tube(rings, colour, sides);
  }

  /** Add a closed tube along y or x; rows are [position, half widths, centre of the other axes, joint, next, weight]. */
  loft(axis, rows, colour, sides = 24) {
    const rings = rows.map(([at, [p, q], [cp, cq], joint, next, weight]) => axis === "y"
      ? { at: [cp, at, cq], u: [p, 0, 0], v: [0, 0, q], joint, next, weight }
      : axis === "x" ? { at: [at, cp, cq], u: [0, p, 0], v: [0, 0, q], joint, next, weight }
        : { at: [cp, cq, at], u: [p, 0, 0], v: [0, q, 0], joint, next, weight });
    const caps = (ring) => ({ ...ring, u: ring.u.map((x) => x * 1e-3), v: ring.v.map((x) => x * 1e-3) });
    this.tube([caps(rings[0]), ...rings, caps(rings[rings.length - 1])], colour, sides);
  }
}

const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => { const length = Math.hypot(...a) || 1; return a.map((x) => x / length); };
const smooth = (low, high, x) => { const t = Math.min(1, Math.max(0, (x - low) / (high - low))); return t * t * (3 - 2 * t); };
const mix = (a, b, t) => a.map((value, axis) => value + t * (b[axis] - value));

/** Weights along a limb: rows [t from begin to end, radii] bound to `upper`, then to `lower` behind the middle joint. */
function limb(mesh, side, [upper, middle, end], rows, axis, colour) {
  const names = [upper, middle, end].map((name) => jointOf[`${side}_${name}`]), points = names.map((joint) => REST[joint]);
  const bound = rows.map(([t, p, q = p, forth = 0]) => {
    const at = t <= 1 ? mix(points[0], points[1], t) : mix(points[1], points[2], t - 1);
    at[2] += forth;
    const [joint, next, weight] = t < 1.5
      ? [names[0], names[1], smooth(0.85, 1.15, t)] : [names[1], names[2], smooth(1.85, 2.05, t)];
    const along = axis === "x" ? 0 : 1, others = [0, 1, 2].filter((k) => k !== along);
    return [at[along], [p, q], others.map((k) => at[k]), joint, next, weight];
  });
  mesh.loft(axis, bound, colour);
}

function torso(mesh) {
  const [pelvis, spine1, spine2, spine3, neck, head] = ["pelvis", "spine1", "spine2", "spine3", "neck", "head"].map((n) => jointOf[n]);
  const rows = [
    [-0.150, 0.050, 0.055, 0.000, pelvis, pelvis, 0], [-0.140, 0.100, 0.085, 0.000, pelvis, pelvis, 0],
    [-0.110, 0.146, 0.104, 0.000, pelvis, pelvis, 0], [-0.060, 0.163, 0.114, 0.000, pelvis, pelvis, 0],
    [0.000, 0.160, 0.112, 0.000, pelvis, pelvis, 0], [0.060, 0.142, 0.102, -0.002, pelvis, spine1, 0.3],
    [0.120, 0.128, 0.095, -0.004, pelvis, spine1, 0.8], [0.180, 0.128, 0.095, -0.004, spine1, spine2, 0.3],
    [0.240, 0.138, 0.100, -0.004, spine1, spine2, 0.8], [0.300, 0.152, 0.106, 0.000, spine2, spine3, 0.6],
    [0.360, 0.164, 0.110, 0.002, spine3, spine3, 0], [0.410, 0.166, 0.104, -0.002, spine3, spine3, 0],
    [0.450, 0.148, 0.090, -0.010, spine3, spine3, 0], [0.480, 0.108, 0.070, -0.016, spine3, spine3, 0],
    [0.500, 0.074, 0.060, -0.018, spine3, neck, 0.3],
  ];
  mesh.loft("y", rows.map(([y, p, q, z, a, b, w]) => [y, [p, q], [0, z], a, b, w]), "tint", 32);
  const throat = [
    [0.455, 0.062, 0.060, -0.022, spine3, neck, 0.2], [0.490, 0.056, 0.057, -0.020, spine3, neck, 0.6],
    [0.520, 0.051, 0.053, -0.016, neck, neck, 0], [0.560, 0.049, 0.052, -0.010, neck, head, 0.3],
    [0.610, 0.050, 0.056, -0.006, neck, head, 0.7], [0.650, 0.050, 0.056, 0.000, head, head, 0],
  ];
  mesh.loft("y", throat.map(([y, p, q, z, a, b, w]) => [y, [p, q], [0, z], a, b, w]), "clay", 24);
}

function arm(mesh, side) {
  const joint = (name) => jointOf[`${side}_${name}`], sign = side === "left" ? 1 : -1, rest = (name) => REST[joint(name)];
  const inner = [0.055 * sign, 0.468, -0.016];
  mesh.capsule(inner, rest("shoulder"), 0.048, 0.056, joint("collar"), "tint", 16);
  limb(mesh, side, ["shoulder", "elbow", "wrist"], [
    [-0.20, 0.020], [-0.17, 0.040], [-0.08, 0.053], [0.05, 0.056], [0.25, 0.052], [0.5, 0.047], [0.75, 0.042], [0.9, 0.040],
    [1, 0.040], [1.1, 0.040], [1.25, 0.041], [1.45, 0.038], [1.7, 0.031], [1.8, 0.029], [1.82, 0.025],
  ], "x", "tint");
  limb(mesh, side, ["shoulder", "elbow", "wrist"], [[1.7, 0.02], [1.78, 0.025], [1.9, 0.0235, 0.0265], [2, 0.022, 0.029]], "x", "clay");
  hand(mesh, side, sign);
}

function hand(mesh, side, sign) {
  const wrist = jointOf[`${side}_wrist`], [x0, y0, z0] = REST[wrist];
  const palm = [[-0.010, 0.019, 0.022], [0.000, 0.020, 0.027], [0.020, 0.0195, 0.034], [0.045, 0.0185, 0.041],
    [0.070, 0.0165, 0.044], [0.088, 0.0135, 0.043], [0.098, 0.0095, 0.038], [0.102, 0.004, 0.030]];
  mesh.loft("x", palm.map(([x, p, q]) => [x0 + sign * x, [p, q], [y0 - 0.002, z0 - 0.006 * smooth(0, 0.08, x)], wrist, wrist, 0]), "clay", 20);
  const radii = { index: 0.0098, middle: 0.0102, ring: 0.0096, pinky: 0.0084, thumb: 0.0125 };
  for (const [finger, radius] of Object.entries(radii)) {
    const joints = [1, 2, 3].map((k) => jointOf[`${side}_${finger}${k}`]), places = joints.map((j) => REST[j]);
    const last = unit(places[2].map((value, axis) => value - places[1][axis])), reach = finger === "thumb" ? 0.022 : 0.020;
    places.push(places[2].map((value, axis) => value + reach * last[axis]));
    if (finger === "thumb") mesh.capsule([x0 + sign * 0.012, y0 - 0.006, z0 + 0.014], places[0], 0.017, 0.0150, wrist, "clay");
    joints.forEach((j, k) => mesh.capsule(places[k], places[k + 1], radius * (1 - 0.09 * k), radius * (0.91 - 0.09 * k), j, "clay"));
  }
}

function leg(mesh, side) {
  const joint = (name) => jointOf[`${side}_${name}`], rest = (name) => REST[joint(name)], sign = side === "left" ? 1 : -1;
  limb(mesh, side, ["hip", "knee", "ankle"], [
    [-0.18, 0.045], [-0.12, 0.068], [0.0, 0.083, 0.092], [0.2, 0.084, 0.092], [0.5, 0.072, 0.078], [0.8, 0.058, 0.062], [0.95, 0.053, 0.057],
    [1.05, 0.052, 0.055, -0.002], [1.2, 0.054, 0.057, -0.010], [1.4, 0.051, 0.054, -0.012], [1.7, 0.039, 0.041, -0.006], [1.9, 0.033, 0.036],
    [1.98, 0.034, 0.037], [2.0, 0.02],
  ], "y", "tint");
  const [x, y] = rest("ankle"), toes = joint("foot"), ankle = joint("ankle");
  const rows = [[-0.085, 0.014, 0.016], [-0.080, 0.028, 0.030], [-0.060, 0.036, 0.042], [-0.020, 0.038, 0.050], [0.030, 0.040, 0.044], [0.080, 0.044, 0.034],
    [0.120, 0.045, 0.028], [0.160, 0.040, 0.023], [0.185, 0.030, 0.019], [0.197, 0.014, 0.011]];
  mesh.loft("z", rows.map(([z, p, q]) => [z, [p, q], [x + sign * 0.012 * smooth(-0.05, 0.12, z), y - 0.095 + q], ankle, toes, smooth(0.085, 0.125, z)]), "shoe", 20);
}

const SKULL = { centre: [0, 0.684, 0.018], radii: [0.075, 0.114, 0.092], back: 0.104 };

/** Place on the head in a direction: an egg with cheeks, a narrower jaw, a chin, and a flatter face. */
function onHead([x, y, z]) {
  const [cx, cy, cz] = SKULL.centre, [rx, ry, rz] = SKULL.radii;
  const jaw = Math.exp(-((y + 0.62) ** 2) / 0.10), low = smooth(-0.55, -1.0, y);
  const chin = Math.exp(-((x * x) / 0.08 + (y + 0.84) ** 2 / 0.04 + (z - 0.50) ** 2 / 0.20));
  return [
    cx + rx * x * (1 + 0.10 * jaw - 0.10 * low),
    cy + ry * y,
    cz + (z > 0 ? rz * z * (1 - 0.06 * z * z * (1 - jaw) + 0.10 * jaw) : SKULL.back * z * (1 - 0.25 * low)) + 0.020 * chin,
  ];
}

/** Depth of the face at (x, y), found by halving. */
function faceDepth(x, y) {
  let direction = [0, 0, 1];
  for (let k = 0; k < 30; k++) {
    const [px, py] = onHead(direction);
    direction = unit([direction[0] + (x - px) * 8, direction[1] + (y - py) * 8, Math.max(0.05, direction[2])]);
  }
  return onHead(direction)[2];
}

function head(mesh) {
  const skull = jointOf.head, jaw = jointOf.jaw, rings = 28, sides = 40, first = mesh.count;
  const ringsOf = [];
  for (let r = 0; r <= rings; r++) {
    const polar = Math.PI * Math.min(Math.max(r / rings, 1e-3), 1 - 1e-3), y = Math.cos(polar), flat = Math.sin(polar);
    ringsOf.push({ at: [0, y, 0], u: [flat, 0, 0], v: [0, 0, flat], joint: skull });
  }
  const shaped = new Mesh();
  shaped.tube(ringsOf, "clay", sides);
  for (let n = 0; n < shaped.count; n++) {
    const direction = shaped.vertices.slice(10 * n, 10 * n + 3);
    const weight = smooth(-0.56, -0.84, direction[1]) * smooth(-0.15, 0.35, direction[2]);
    mesh.vertex(onHead(direction), "clay", skull, jaw, weight);
  }
  for (const corner of shaped.triangles) mesh.triangles.push(first + corner);
  mesh.normals(first);
  const [, eyeY] = REST[jointOf.left_eye];
  const on = (x, y, out) => [x, y, faceDepth(x, y) + out];
  mesh.capsule(on(0, eyeY + 0.006, -0.003), on(0, eyeY - 0.034, 0.012), 0.0060, 0.0100, skull, "clay", 16);
  for (const side of ["left", "right"]) {
    const sign = side === "left" ? 1 : -1, eye = jointOf[`${side}_eye`], [x, y, z] = REST[eye];
    mesh.capsule(on(sign * 0.009, eyeY - 0.036, 0.003), on(sign * 0.010, eyeY - 0.037, 0.001), 0.0068, 0.0060, skull, "clay");
    mesh.capsule([x, y, z], [x, y, z], 0.0165, 0.0165, eye, "white", 24);
    mesh.tube(disc([x, y, z + 0.0150], 0.0074, 0.0019, eye), "iris", 20);
    mesh.tube(disc([x, y, z + 0.0164], 0.0035, 0.0009, eye), "dark", 16);
    mesh.tube(lid([x, y, z], 0.0182, unit([0, 0.93, -0.37]), 78, skull), "clay", 28);
    mesh.tube(lid([x, y, z], 0.0176, unit([0, -0.96, -0.28]), 52, skull), "clay", 28);
    const inner = on(sign * 0.016, y + 0.0265, 0.0005), middle = on(sign * 0.033, y + 0.0290, 0.001), outer = on(sign * 0.050, y + 0.0225, 0);
    mesh.capsule(inner, middle, 0.0034, 0.0036, BROWS[side], "dark");
    mesh.capsule(middle, outer, 0.0036, 0.0022, BROWS[side], "dark");
    mesh.capsule([sign * 0.0740, 0.660, 0.012], [sign * 0.0775, 0.692, 0.002], 0.009, 0.013, skull, "clay");
  }
}

/** The part of a sphere within an angle of a direction. */
function lid(centre, radius, direction, degrees, joint) {
  const u = unit(cross(direction, [1, 0, 0])), v = cross(direction, u);
  return [0, 0.15, 0.4, 0.6, 0.8, 1].map((t) => {
    const angle = t * degrees * Math.PI / 180, r = Math.max(radius * Math.sin(angle), 1e-5);
    const at = centre.map((value, axis) => value + radius * Math.cos(angle) * direction[axis]);
    return { at, u: u.map((k) => k * r), v: v.map((k) => k * r), joint };
  });
}

/** A shallow dome that faces +z. */
function disc(centre, radius, height, joint) {
  return [0, 0.35, 0.7, 1].map((t) => {
    const r = Math.max(radius * Math.cos(t * Math.PI / 2), 1e-5);
    return { at: [centre[0], centre[1], centre[2] + height * Math.sin(t * Math.PI / 2)], u: [r, 0, 0], v: [0, r, 0], joint };
  });
}

/** The whole figure: interleaved vertices (position, normal, joints, weight, colour) and triangles. */
function figureMesh() {
  const mesh = new Mesh();
  torso(mesh);
  head(mesh);
  for (const side of ["left", "right"]) { arm(mesh, side); leg(mesh, side); }
  return { vertices: new Float32Array(mesh.vertices), triangles: new Uint32Array(mesh.triangles) };
}

// The face that expressions move. SMPL-X's expressions are principal components without names: which of them moves
// what here is the figure's own choice. Components 0, 5 and 6 go with loudness and the jaw in BEAT2's recordings.

/** What a frame's expressions do: opening and width of the mouth, its corners, and the brows. */
function faceOf(motion, frame) {
  const e = (k) => motion.expression(frame, k), soft = (x, limit) => limit * Math.tanh(x / limit);
  return {
    open: Math.max(0, soft(0.006 * (e(5) + e(6) - e(0)), 0.014)),
    wide: soft(0.006 * e(1), 0.008),
    corners: soft(0.006 * e(2), 0.006),
    left: soft(0.008 * (e(3) + 0.5 * e(7)), 0.009),
    right: soft(0.008 * (e(3) - 0.5 * e(7)), 0.009),
  };
}

const MOUTH = { y: 0.619, half: 0.023, sides: 28, around: 8 };

/** The mouth of a frame as vertices in the rest pose, bound to the head: lips around a dark opening. */
function mouthVertices(face, drop, out) {
  const { y, half, sides, around } = MOUTH, width = half + face.wide, skull = jointOf.head;
  const ring = (k) => {
    const angle = 2 * Math.PI * k / sides, c = Math.cos(angle), s = Math.sin(angle);
    const lower = s < 0, height = lower ? 0.0012 + face.open + drop : 0.0010 + 0.35 * face.open;
    const px = width * c, py = y + height * s + face.corners * c * c;
    return [px, py, mouthDepth(px, py) + 0.0008];
  };
  let n = 0;
  const put = (p, normal, colour) => { out.set([...p, ...normal, skull, skull, 0, COLOURS[colour]], 10 * n++); };
  put([0, y - 0.5 * (face.open + drop), mouthDepth(0, y - 0.5 * (face.open + drop)) + 0.0006], [0, 0, 1], "dark");
  const points = Array.from({ length: sides }, (_, k) => ring(k));
  for (const p of points) put(p, [0, 0, 1], "dark");
  points.forEach((p, k) => {
    const along = unit(points[(k + 1) % sides].map((value, axis) => value - points[(k + sides - 1) % sides][axis]));
    const u = unit(cross(along, [0, 0, 1])), v = cross(u, along);
    const thick = 0.0016 + 0.0026 * Math.abs(Math.sin(2 * Math.PI * k / sides));
    for (let a = 0; a < around; a++) {
      const c = Math.cos(2 * Math.PI * a / around), s = Math.sin(2 * Math.PI * a / around);
      const normal = u.map((value, axis) => c * value + s * v[axis]);
      put(p.map((value, axis) => value + thick * normal[axis]), normal, "lip");
    }
  });
}

const DEPTHS = new Map();
/** Depth of the face around the mouth, read from a table of whole millimetres. */
function mouthDepth(x, y) {
  const at = (i, j) => {
    const key = i * 1000 + j;
    if (!DEPTHS.has(key)) DEPTHS.set(key, faceDepth(i / 500, j / 500));
    return DEPTHS.get(key);
  };
  const fx = x * 500, fy = y * 500, i = Math.floor(fx), j = Math.floor(fy), s = fx - i, t = fy - j;
  return (at(i, j) * (1 - s) + at(i + 1, j) * s) * (1 - t) + (at(i, j + 1) * (1 - s) + at(i + 1, j + 1) * s) * t;
}

const MOUTH_VERTICES = 1 + MOUTH.sides + MOUTH.sides * MOUTH.around;

function mouthTriangles() {
  const { sides, around } = MOUTH, found = [], lip = 1 + sides;
  for (let k = 0; k < sides; k++) {
    const next = (k + 1) % sides;
    found.push(0, 1 + k, 1 + next);
    for (let a = 0; a < around; a++) {
      const b = (a + 1) % around;
      found.push(lip + k * around + a, lip + next * around + a, lip + k * around + b);
      found.push(lip + next * around + a, lip + next * around + b, lip + k * around + b);
    }
  }
  return new Uint32Array(found);
}

/** Fill the matrices of a track's bones: joints, and brows that ride on the head. Returns the face. */
function bonesOf(motion, frame, out, positions) {
  motion.pose(frame, out, positions);
  const face = faceOf(motion, frame), skull = 12 * jointOf.head;
  for (const side of ["left", "right"]) {
    const at = 12 * BROWS[side];
    for (let r = 0; r < 3; r++) {
      out.set(out.subarray(skull + 4 * r, skull + 4 * r + 4), at + 4 * r);
      out[at + 4 * r + 3] += out[at + 4 * r + 1] * face[side];
    }
  }
  return face;
}
