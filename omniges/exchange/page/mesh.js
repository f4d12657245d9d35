// The mesh of a body model, only in pages with --embed-body-model. Eight joints move each vertex, and expressions move
// the face. omniges/exchange/pages.py encodes the mesh.

const MESH_VERTEX = `#version 300 es
layout(location = 0) in vec3 place; layout(location = 1) in vec3 normal;
layout(location = 2) in vec4 jointsA; layout(location = 3) in vec4 jointsB;
layout(location = 4) in vec4 weightsA; layout(location = 5) in vec4 weightsB;
uniform vec4 bones[${3 * BONES}]; uniform mat4 view; uniform vec3 colours[7]; uniform vec4 flatten;
out vec3 turned; out vec3 shade; out vec3 at;
mat3x4 boneOf(float joint) { int a = 3 * int(joint); return mat3x4(bones[a], bones[a + 1], bones[a + 2]); }
void main() {
  mat3x4 bone = mat3x4(0.0);
  for (int k = 0; k < 4; k++) bone += weightsA[k] * boneOf(jointsA[k]) + weightsB[k] * boneOf(jointsB[k]);
  at = vec4(place, 1.0) * bone;
  turned = vec4(normal, 0.0) * bone;
  if (flatten.y > 0.0) at = vec3(at.x + flatten.z * (at.y - flatten.x), flatten.x + 0.002, at.z + flatten.w * (at.y - flatten.x));
  shade = mix(colours[0], colours[1], 0.35);
  gl_Position = view * vec4(at, 1.0);
}`;

/** Return the mesh data that the bodies of all persons share. */
function readMesh({ blob: number, vertices, triangles, moved, directions, joints }) {
  const { buffer } = blob(number);
  let at = 0;
  const take = (Kind, count) => { const part = new Kind(buffer, at, count); at += part.byteLength; return part; };
  return {
    triangles: take(Uint32Array, 3 * triangles), moved: take(Uint32Array, moved), directions: take(Int16Array, 3 * directions * moved),
    weights: take(Uint16Array, joints * vertices), joints: take(Uint8Array, joints * vertices),
  };
}

const MESH = data.mesh ? readMesh(data.mesh) : null;

/** Return a person's mesh in the rest pose: positions relative to the pelvis, and normals. */
function readBody(body) {
  const { buffer } = blob(body.blob), count = 3 * data.mesh.vertices;
  return { places: Float32Array.from(new Int16Array(buffer, 0, count), (x) => x * body.step), normals: new Int8Array(buffer, 2 * count, count) };
}

/** Fill `out` with vertex positions of a person in the rest pose, with the expressions of a frame; return it. */
function shapedBody(body, motion, frame, out) {
  const { moved, directions } = MESH, count = data.mesh.directions, step = data.mesh.directionStep;
  out.set(body.places);
  for (let e = 0; e < count; e++) {
    const weight = motion.coefficient(frame, e) * step, first = 3 * e * moved.length;
    if (weight === 0) continue;
    for (let m = 0; m < moved.length; m++) {
      const to = 3 * moved[m], from = first + 3 * m;
      out[to] += weight * directions[from];
      out[to + 1] += weight * directions[from + 1];
      out[to + 2] += weight * directions[from + 2];
    }
  }
  return out;
}

class BodyMesh {
  constructor(gl) {
    this.gl = gl;
    this.figure = program(gl, MESH_VERTEX, FIGURE_FRAGMENT);
    this.bodies = data.bodies.map(readBody);
    this.shaped = new Float32Array(3 * data.mesh.vertices);
    this.array = gl.createVertexArray();
    gl.bindVertexArray(this.array);
    const attribute = (content, usage, ...pointers) => {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, content, usage);
      for (const [location, size, kind, normalized, stride, offset] of pointers) {
        gl.enableVertexAttribArray(location);
        gl.vertexAttribPointer(location, size, kind, normalized, stride, offset);
      }
      return buffer;
    };
    this.places = attribute(this.shaped, gl.DYNAMIC_DRAW, [0, 3, gl.FLOAT, false, 12, 0]);
    this.normals = attribute(this.bodies[0].normals, gl.DYNAMIC_DRAW, [1, 3, gl.BYTE, true, 3, 0]);
    attribute(MESH.joints, gl.STATIC_DRAW, [2, 4, gl.UNSIGNED_BYTE, false, 8, 0], [3, 4, gl.UNSIGNED_BYTE, false, 8, 4]);
    attribute(MESH.weights, gl.STATIC_DRAW, [4, 4, gl.UNSIGNED_SHORT, true, 16, 0], [5, 4, gl.UNSIGNED_SHORT, true, 16, 8]);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, MESH.triangles, gl.STATIC_DRAW);
    gl.bindVertexArray(null);
    this.count = MESH.triangles.length;
  }

  /** Upload the body with the expressions of a frame to the GPU; the next draw calls use it. */
  shape(motion, frame) {
    const { gl } = this, body = this.bodies[motion.body];
    for (const [buffer, content] of [[this.places, shapedBody(body, motion, frame, this.shaped)], [this.normals, body.normals]]) {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferSubData(gl.ARRAY_BUFFER, 0, content);
    }
  }
}
