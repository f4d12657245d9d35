// The stage: figures side by side, drawn with WebGL 2, and the camera that all of them share.

const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const tintOf = (index) => data.figure.tints[index % data.figure.tints.length];
const EYE_RADIANS = 28 * Math.PI / 180;

const FIGURE_VERTEX = `#version 300 es
layout(location = 0) in vec3 place; layout(location = 1) in vec3 normal;
layout(location = 2) in vec3 bound; layout(location = 3) in float colour;
uniform vec4 bones[${3 * BONES}]; uniform mat4 view; uniform vec3 colours[7]; uniform vec4 flatten; // onto y = flatten.x, along (flatten.z, flatten.w) a metre of height, if flatten.y > 0
out vec3 turned; out vec3 shade; out vec3 at;
void main() {
  int a = 3 * int(bound.x), b = 3 * int(bound.y);
  mat3x4 bone = mat3x4(mix(bones[a], bones[b], bound.z), mix(bones[a + 1], bones[b + 1], bound.z), mix(bones[a + 2], bones[b + 2], bound.z));
  at = vec4(place, 1.0) * bone;
  turned = vec4(normal, 0.0) * bone;
  if (flatten.y > 0.0) at = vec3(at.x + flatten.z * (at.y - flatten.x), flatten.x + 0.002, at.z + flatten.w * (at.y - flatten.x));
  shade = colours[int(colour)];
  gl_Position = view * vec4(at, 1.0);
}`;

const FIGURE_FRAGMENT = `#version 300 es
precision highp float;
in vec3 turned; in vec3 shade; in vec3 at; out vec4 pixel;
uniform vec3 eye; uniform vec4 dark;
void main() {
  if (dark.a > 0.0) { pixel = dark; return; }
  vec3 n = normalize(turned), v = normalize(eye - at), key = normalize(vec3(0.45, 0.75, 0.65)), fill = normalize(vec3(-0.7, 0.15, 0.5));
  vec3 base = shade * shade;
  vec3 light = mix(vec3(0.20, 0.20, 0.22), vec3(0.46, 0.49, 0.55), 0.5 + 0.5 * n.y);
  light += vec3(0.74, 0.70, 0.64) * max(0.0, dot(n, key) * 0.92 + 0.08) + vec3(0.12, 0.14, 0.18) * max(0.0, dot(n, fill));
  float gloss = pow(max(0.0, dot(n, normalize(key + v))), 36.0) * 0.14, rim = pow(1.0 - max(0.0, dot(n, v)), 3.0) * 0.16;
  pixel = vec4(sqrt(min(base * light + gloss + rim * (0.4 + 0.6 * base), 1.0)), 1.0);
}`;

const FLOOR_VERTEX = `#version 300 es
layout(location = 0) in vec2 corner; uniform mat4 view; uniform vec3 centre; out vec2 at;
void main() { at = corner * 6.0; gl_Position = view * vec4(centre.x + at.x, centre.y, centre.z + at.y, 1.0); at += centre.xz; }`;

const FLOOR_FRAGMENT = `#version 300 es
precision highp float;
in vec2 at; uniform vec3 line; uniform vec3 centre; out vec4 pixel;
float lines(vec2 place, float width) {
  vec2 step = fwidth(place), near = abs(fract(place - 0.5) - 0.5) / max(step, 1e-6);
  return (1.0 - min(min(near.x, near.y) / width, 1.0)) * (1.0 - smoothstep(0.2, 0.7, max(step.x, step.y)));
}
void main() {
  float far = 1.0 - smoothstep(1.2, 5.0, length(at - centre.xz));
  pixel = vec4(line, max(lines(at, 1.4), 0.45 * lines(at * 4.0, 1.2)) * far * 0.9);
}`;

class Stage {
  constructor(canvas) {
    this.canvas = canvas;
    const gl = this.gl = canvas.getContext("webgl2", { alpha: false, antialias: true, stencil: true, preserveDrawingBuffer: true });
    if (!gl) throw new Error("This browser does not draw with WebGL 2; sound, words and curves work.");
    this.figure = program(gl, FIGURE_VERTEX, FIGURE_FRAGMENT);
    this.floor = program(gl, FLOOR_VERTEX, FLOOR_FRAGMENT);
    this.body = surface(gl, BODY.vertices, BODY.triangles);
    this.mouthData = new Float32Array(MOUTH.vertices.length);
    this.mouth = surface(gl, this.mouthData, MOUTH.triangles);
    this.mesh = MESH ? new BodyMesh(gl) : null;
    this.ground = plane(gl);
    this.bones = new Float32Array(12 * BONES);
    this.positions = new Float64Array(3 * JOINTS);
    this.front("body");
  }

  /** Turn the camera to the front, and frame the body, its upper half or the face. */
  front(view = this.view) {
    Object.assign(this, { view, yaw: 0, pitch: 0.06, zoom: 1, shift: [0, 0] });
  }

  turn(dx, dy) {
    this.yaw -= dx * 0.008;
    this.pitch = Math.min(1.5, Math.max(-0.4, this.pitch + dy * 0.006));
  }

  move(dx, dy, height) {
    const scale = 2 * this.#distance(1) * Math.tan(EYE_RADIANS / 2) / height;
    this.shift = [this.shift[0] - dx * scale, this.shift[1] + dy * scale];
  }

  closer(factor) { this.zoom = Math.min(12, Math.max(0.3, this.zoom * factor)); }

  #frame() { return { body: [1.2, 2.12], upper: [1.15, 1.22], face: [0.32, 0.40] }[this.view]; }

  #distance(aspect) {
    const [width, height] = this.#frame(), half = Math.tan(EYE_RADIANS / 2);
    return Math.max(height, width / aspect) / 2 / half / this.zoom;
  }

  /** Draw each track in its panel {x, y, width, height} (CSS pixels), at its frame in `frames` (null: no motion). */
  draw(tracks, panels, frames, theme) {
    const { gl, canvas } = this, scale = canvas.width / canvas.clientWidth;
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(...theme.sky, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.SCISSOR_TEST);
    gl.enable(gl.DEPTH_TEST);
    tracks.forEach((track, index) => {
      const { x, y, width, height } = panels[index];
      const box = [x * scale, canvas.height - (y + height) * scale, width * scale, height * scale].map(Math.round);
      gl.viewport(...box);
      gl.scissor(...box);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT | gl.STENCIL_BUFFER_BIT);
      if (track.motion) this.#panel(track, index, frames[index], width / height, theme);
    });
  }

  #panel(track, index, frame, aspect, theme) {
    const { gl, bones } = this, { motion, floor } = track;
    const face = bonesOf(motion, frame, bones, this.positions);
    const camera = this.#camera(motion, frame, floor, aspect);
    gl.useProgram(this.floor.program);
    gl.uniformMatrix4fv(this.floor.view, false, camera.matrix);
    gl.uniform3f(this.floor.centre, camera.centre[0], floor, camera.centre[1]);
    gl.uniform3fv(this.floor.line, theme.grid);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    gl.depthMask(false);
    gl.bindVertexArray(this.ground);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    const meshed = motion.body !== undefined, figure = meshed ? this.mesh.figure : this.figure, body = meshed ? this.mesh : this.body;
    if (meshed) this.mesh.shape(motion, frame);
    gl.useProgram(figure.program);
    gl.uniform4fv(figure.bones, bones);
    gl.uniformMatrix4fv(figure.view, false, camera.matrix);
    gl.uniform3fv(figure.eye, camera.eye);
    gl.uniform3fv(figure.colours, palette(tintOf(index)));
    this.#shadow(figure, body, floor, theme);
    gl.disable(gl.BLEND);
    gl.depthMask(true);
    gl.uniform4f(figure.flatten, 0, 0, 0, 0);
    gl.uniform4f(figure.dark, 0, 0, 0, 0);
    gl.bindVertexArray(body.array);
    gl.drawElements(gl.TRIANGLES, body.count, gl.UNSIGNED_INT, 0);
    if (!meshed) this.#drawMouth(face);
    gl.bindVertexArray(null);
  }

  #drawMouth(face) {
    const { gl } = this;
    mouthVertices(face, this.mouthData);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.mouth.buffer);
    gl.bufferSubData(gl.ARRAY_BUFFER, 0, this.mouthData);
    gl.bindVertexArray(this.mouth.array);
    gl.drawElements(gl.TRIANGLES, this.mouth.count, gl.UNSIGNED_INT, 0);
  }

  /** Draw the shadow: the figure projected onto the floor along the light, each pixel only once. */
  #shadow(figure, body, floor, theme) {
    const { gl } = this;
    gl.enable(gl.STENCIL_TEST);
    gl.stencilFunc(gl.EQUAL, 0, 0xff);
    gl.stencilOp(gl.KEEP, gl.KEEP, gl.INCR);
    gl.uniform4f(figure.flatten, floor, 1, -0.25, -0.3);
    gl.uniform4f(figure.dark, ...theme.shadow);
    gl.bindVertexArray(body.array);
    gl.drawElements(gl.TRIANGLES, body.count, gl.UNSIGNED_INT, 0);
    gl.disable(gl.STENCIL_TEST);
  }

  #camera(motion, frame, floor, aspect) {
    const distance = this.#distance(aspect), centre = motion.centre(frame), p = this.positions, head = 3 * jointOf.head;
    const target = {
      body: [centre[0], floor + 0.85, centre[1]],
      upper: [centre[0], floor + 1.26, centre[1]],
      face: [p[head], p[head + 1] + 0.06, p[head + 2]],
    }[this.view];
    const cy = Math.cos(this.yaw), sy = Math.sin(this.yaw), cp = Math.cos(this.pitch), sp = Math.sin(this.pitch);
    const back = [sy * cp, sp, cy * cp], right = [cy, 0, -sy], up = cross(back, right);
    const look = target.map((value, k) => value + this.shift[0] * right[k] + this.shift[1] * up[k]);
    const eye = look.map((value, k) => value + distance * back[k]);
    return { eye, centre, matrix: viewMatrix(eye, right, up, back, aspect, distance) };
  }
}

/** Return projection times view as a matrix, column by column. */
function viewMatrix(eye, right, up, back, aspect, distance) {
  const f = 1 / Math.tan(EYE_RADIANS / 2), near = distance * 0.05, far = distance + 20, d = 1 / (near - far);
  const rows = [right, up, back].map((axis) => [...axis, -axis.reduce((sum, value, k) => sum + value * eye[k], 0)]);
  const clip = [
    rows[0].map((x) => x * f / aspect), rows[1].map((x) => x * f),
    rows[2].map((x, k) => x * (far + near) * d + (k === 3 ? 2 * far * near * d : 0)), rows[2].map((x) => -x),
  ];
  return new Float32Array([0, 1, 2, 3].flatMap((column) => clip.map((row) => row[column])));
}

function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const found = { program: made };
  for (let k = 0; k < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); k++) {
    const { name } = gl.getActiveUniform(made, k);
    found[name.replace("[0]", "")] = gl.getUniformLocation(made, name);
  }
  return found;
}

function surface(gl, vertices, triangles) {
  const array = gl.createVertexArray(), buffer = gl.createBuffer();
  gl.bindVertexArray(array);
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.bufferData(gl.ARRAY_BUFFER, vertices, gl.DYNAMIC_DRAW);
  [[0, 3, 0], [1, 3, 12], [2, 3, 24], [3, 1, 36]].forEach(([location, size, offset]) => {
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, size, gl.FLOAT, false, 40, offset);
  });
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, triangles, gl.STATIC_DRAW);
  gl.bindVertexArray(null);
  return { array, buffer, count: triangles.length };
}

function plane(gl) {
  const array = gl.createVertexArray();
  gl.bindVertexArray(array);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
  gl.enableVertexAttribArray(0);
  gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 8, 0);
  gl.bindVertexArray(null);
  return array;
}

/** Convert #rrggbb to red, green and blue from 0 to 1. */
const rgb = (text) => [1, 3, 5].map((k) => parseInt(text.slice(k, k + 2), 16) / 255);

/** Return the colours of a figure, in the order of `COLOURS` in solid.py. */
function palette(tint) {
  const own = { tint: rgb(tint), shoe: rgb(tint).map((x) => x * 0.5) };
  return new Float32Array(data.figure.colours.flatMap((name) => own[name] ?? rgb(data.figure.parts[name])));
}
