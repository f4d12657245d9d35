// The figure: one mesh around the skeleton in its rest pose, each vertex bound to one or two bones (joints and brows).
// The page gets it as data, which omniges/exchange/solid.py makes for pages and videos.

const FIGURE = readFigure(data.figure), BROWS = data.figure.brows, BONES = JOINTS + 2;
const COLOURS = Object.fromEntries(data.figure.colours.map((name, index) => [name, index]));

const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => { const length = Math.hypot(...a) || 1; return a.map((x) => x / length); };

/** Surfaces of the body and the mouth: interleaved vertices (position, normal, bones, weight, colour) and triangles. */
function readFigure({ blob: number, step, vertices, triangles, mouthTriangles, grid }) {
  const { buffer } = blob(number);
  let at = 0;
  const take = (Kind, count) => { const part = new Kind(buffer, at, count); at += part.byteLength; return part; };
  const places = take(Int16Array, 3 * vertices), depths = take(Int16Array, grid.rows * grid.columns);
  const body = take(Uint16Array, 3 * triangles), mouth = take(Uint16Array, 3 * mouthTriangles);
  const normals = take(Int8Array, 3 * vertices), bound = take(Uint8Array, 2 * vertices);
  const weights = take(Uint8Array, vertices), colours = take(Uint8Array, vertices), all = new Float32Array(10 * vertices);
  for (let v = 0; v < vertices; v++) {
    for (let k = 0; k < 3; k++) { all[10 * v + k] = places[3 * v + k] * step; all[10 * v + 3 + k] = normals[3 * v + k] / 127; }
    all.set([bound[2 * v], bound[2 * v + 1], weights[v] / 255, colours[v]], 10 * v + 6);
  }
  return { vertices: all, triangles: new Uint32Array(body), mouth: new Uint32Array(mouth), depths: Float64Array.from(depths, (z) => z * step) };
}

// The face that expressions move: as in solid.py, which says why.

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

const MOUTH = data.figure.mouth;

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

/** Depth of the face around the mouth, between the places of a grid. */
function mouthDepth(x, y) {
  const { step, row, column, rows, columns } = data.figure.grid, fx = x / step - column, fy = y / step - row;
  const j = Math.min(columns - 2, Math.max(0, Math.floor(fx))), i = Math.min(rows - 2, Math.max(0, Math.floor(fy)));
  const s = fx - j, t = fy - i, at = (k, l) => FIGURE.depths[k * columns + l];
  return (at(i, j) * (1 - s) + at(i, j + 1) * s) * (1 - t) + (at(i + 1, j) * (1 - s) + at(i + 1, j + 1) * s) * t;
}

const MOUTH_VERTICES = 1 + MOUTH.sides + MOUTH.sides * MOUTH.around;

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
