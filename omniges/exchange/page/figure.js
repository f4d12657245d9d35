// The figure: surfaces around the skeleton in its rest pose. Each vertex moves with one or two bones (joints and brows).
// Surfaces and movements of the face are data of the page; omniges/exchange/solid.py computes them.

const BROWS = data.figure.brows, BONES = JOINTS + 2;
const [BODY, MOUTH] = data.figure.surfaces.map(readSurface);
const CHANGES = new Float32Array(blob(data.figure.changes).buffer);

/** Return a surface from its blob: interleaved vertices (position, normal, bones, weight, colour) and triangles. */
function readSurface({ blob: number, step, vertices, triangles }) {
  const { buffer } = blob(number);
  let at = 0;
  const take = (Kind, count) => { const part = new Kind(buffer, at, count); at += part.byteLength; return part; };
  const places = take(Int16Array, 3 * vertices), corners = take(Uint16Array, 3 * triangles);
  const normals = take(Int8Array, 3 * vertices), bound = take(Uint8Array, 2 * vertices);
  const weights = take(Uint8Array, vertices), colours = take(Uint8Array, vertices), all = new Float32Array(10 * vertices);
  for (let v = 0; v < vertices; v++) {
    for (let k = 0; k < 3; k++) { all[10 * v + k] = places[3 * v + k] * step; all[10 * v + 3 + k] = normals[3 * v + k] / 127; }
    all.set([bound[2 * v], bound[2 * v + 1], weights[v] / 255, colours[v]], 10 * v + 6);
  }
  return { vertices: all, triangles: new Uint32Array(corners) };
}

/** Fill `out` with the vertices of the mouth: its rest shape plus the changes by the movements `face`. */
function mouthVertices(face, out) {
  out.set(MOUTH.vertices);
  const count = out.length / 10;
  face.forEach((moved, k) => {
    if (moved === 0) return;
    for (let v = 0; v < count; v++) {
      for (let axis = 0; axis < 6; axis++) out[10 * v + axis] += moved * CHANGES[6 * (k * count + v) + axis];
    }
  });
}

/** Fill `out` with the matrices of joints and brows, which follow the head; return the movements of the face. */
function bonesOf(motion, frame, out, positions) {
  motion.pose(frame, out, positions);
  const face = motion.face(frame), skull = 12 * jointOf.head;
  for (const side of ["left", "right"]) {
    const at = 12 * BROWS[side], rise = face[MOVEMENTS.indexOf(side)];
    for (let r = 0; r < 3; r++) {
      out.set(out.subarray(skull + 4 * r, skull + 4 * r + 4), at + 4 * r);
      out[at + 4 * r + 3] += out[at + 4 * r + 1] * rise;
    }
  }
  return face;
}

/** Return the position of vertex v of an interleaved surface after skinning by the bones. */
function placed(vertices, v, bones) {
  const [x, y, z, , , , a, b, weight] = vertices.subarray(10 * v, 10 * v + 10);
  return [0, 4, 8].map((row) => [0, 1, 2, 3].reduce((sum, k) => {
    const moved = bones[12 * a + row + k] * (1 - weight) + bones[12 * b + row + k] * weight;
    return sum + moved * [x, y, z, 1][k];
  }, 0));
}
