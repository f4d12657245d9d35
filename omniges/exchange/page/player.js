// The player: one clock for figures, words and curves. It is the clock of the sound or, without sound, of the computer.

const byId = (id) => document.getElementById(id);
const SPEEDS = [0.1, 0.25, 0.5, 0.75, 1, 1.5, 2];

/** The computer's clock, with the interface of an audio element. */
class SilentClock {
  constructor(seconds) { Object.assign(this, { duration: seconds, paused: true, rate: 1, base: 0, since: 0 }); }
  get currentTime() {
    return this.paused ? this.base : Math.min(this.duration, this.base + (performance.now() - this.since) / 1000 * this.rate);
  }
  set currentTime(time) { Object.assign(this, { base: time, since: performance.now() }); }
  get ended() { return this.currentTime >= this.duration; }
  get playbackRate() { return this.rate; }
  set playbackRate(rate) { this.currentTime = this.currentTime; this.rate = rate; }
  play() { this.currentTime = this.currentTime; this.paused = false; return Promise.resolve(); }
  pause() { this.base = this.currentTime; this.paused = true; }
}

class Player {
  constructor() {
    this.audio = byId("audio");
    this.clock = new SilentClock(0);
    this.loop = { on: false, part: null };
    this.frames = [];
    this.timeline = new Timeline(byId("detail"), byId("overview"), (time) => this.seek(time));
    this.timeline.changed = () => this.redraw();
    try { this.stage = new Stage(byId("figures")); } catch (fault) {
      byId("fault").hidden = false;
      byId("fault").textContent = fault.message;
    }
    for (const speed of SPEEDS) byId("speed").add(new Option(`${speed} ×`, speed, speed === 1, speed === 1));
    this.#listClips();
    this.#listScores();
    this.#listen();
    this.open(0);
    const tick = () => { this.#tick(); requestAnimationFrame(tick); };
    requestAnimationFrame(tick);
  }

  // --- clips and sounds

  #listClips() {
    byId("clips").hidden = data.clips.length < 2;
    data.clips.forEach((clip, index) => {
      const button = document.createElement("button"), facts = document.createElement("small");
      button.textContent = clip.name;
      facts.textContent = `${clock(clip.seconds)} · ${clip.tracks.map((track) => track.name).join(", ")}`;
      button.append(facts);
      button.addEventListener("click", () => this.open(index));
      byId("clips").append(button);
    });
  }

  /** List the tables of scores; each row has buttons that open clips, such as the best and the worst. */
  #listScores() {
    const add = (parent, tag, text = "") => parent.appendChild(Object.assign(document.createElement(tag), { textContent: text }));
    for (const { task, head, rows, clips } of data.scores) {
      const table = add(byId("scores"), "table"), titles = (add(table, "caption", task), add(table, "tr"));
      for (const title of [...head, "clips"]) add(titles, "th", title);
      rows.forEach((cells, k) => {
        const row = add(table, "tr"), last = head.length - cells.length;
        cells.forEach((cell) => add(row, "td", cell));
        row.lastChild.colSpan = last + 1;
        const links = add(row, "td");
        for (const [label, name] of Object.entries(clips[k])) {
          const index = data.clips.findIndex((clip) => clip.name === name), button = add(links, "button", label);
          button.title = name;
          button.addEventListener("click", () => { this.open(index); this.scores(false); });
        }
      });
    }
    byId("table").hidden = !data.scores.length;
    this.scores(data.scores.length > 0);
  }

  scores(shown = byId("scores").hidden && data.scores.length > 0) {
    byId("scores").hidden = !shown;
    byId("table").setAttribute("aria-pressed", shown);
  }

  open(index) {
    this.pause();
    this.index = index;
    this.clip = data.clips[index];
    this.loop.part = null;
    this.clip.tracks.forEach((track, k) => {
      track.index = k;
      track.motion = track.frames === undefined ? null : this.#motion(track);
    });
    byId("clips").querySelectorAll("button").forEach((button, k) => button.setAttribute("aria-current", k === index));
    byId("about").textContent = "The figure has the same size and shape for all speakers. Leading expressions move its brows, "
      + "lips and mouth in a simplified way; jaw and eyes turn as in the data.";
    this.timeline.show(this.clip);
    this.#labels();
    this.#sounds();
    this.seek(0);
  }

  #motion(track) {
    return typeof track.motion === "number" ? new Motion(track.motion, track.frames, track.body) : track.motion;
  }

  #labels() {
    byId("labels").replaceChildren(...this.clip.tracks.map((track) => {
      const label = document.createElement("div"), name = document.createElement("div"), caption = document.createElement("div");
      label.className = "label";
      label.style.setProperty("--tint", tintOf(track.index));
      Object.assign(name, { className: "name", textContent: track.name });
      Object.assign(caption, { className: "caption" });
      const told = track.motion ? (track.absent.length ? `at rest: ${track.absent.join(", ").replace("_", " and ")}` : "") : "no motion";
      if (told) name.append(Object.assign(document.createElement("small"), { textContent: told }));
      label.append(name, caption);
      return label;
    }));
  }

  #sounds() {
    const select = byId("sound"), seen = new Set();
    select.replaceChildren();
    this.clip.tracks.forEach((track) => {
      if (track.sound === undefined || seen.has(track.sound)) return;
      seen.add(track.sound);
      select.add(new Option(track.name, track.sound));
    });
    byId("source").hidden = !seen.size;
    select.add(new Option("off", "off"));
    this.listen(select.options[0].value);
  }

  /** Play the sound with this blob number, or no sound for "off"; the current time does not change. */
  listen(value) {
    const time = this.time, playing = !this.clock.paused, rate = +byId("speed").value;
    this.clock.pause();
    byId("sound").value = value;
    if (value === "off") {
      this.clock = new SilentClock(this.clip.seconds);
    } else {
      if (this.audio.src) URL.revokeObjectURL(this.audio.src);
      this.audio.src = URL.createObjectURL(new Blob([blob(+value)], { type: "audio/wav" }));
      this.clock = this.audio;
    }
    this.clock.playbackRate = rate;
    this.seek(time);
    if (playing) this.play();
  }

  // --- time

  get time() { return this.clock.currentTime; }

  seek(time) {
    this.clock.currentTime = Math.min(Math.max(time, 0), this.clip.seconds);
    this.redraw();
  }

  play() {
    const [from, to] = this.#part();
    if (this.time >= to - 1e-3) this.seek(from);
    this.clock.play().catch((fault) => { byId("fault").hidden = false; byId("fault").textContent = `no sound: ${fault.message}`; });
    this.redraw();
  }

  pause() { this.clock.pause(); this.redraw(); }

  toggle() { if (this.clock.paused || this.clock.ended) this.play(); else this.pause(); }

  /** Pause, and go forward (or back, if negative) by a number of frames. */
  step(frames) {
    this.pause();
    this.seek((Math.floor(this.time * data.rate + 1e-3) + frames) / data.rate + 1e-4);
  }

  faster(steps) {
    const select = byId("speed");
    select.selectedIndex = Math.min(SPEEDS.length - 1, Math.max(0, select.selectedIndex + steps));
    this.clock.playbackRate = +select.value;
  }

  #part() { return this.loop.on && this.loop.part ? this.loop.part : [0, this.clip.seconds]; }

  repeat(on = !this.loop.on) {
    this.loop.on = on;
    if (!on) this.loop.part = null;
    byId("loop").setAttribute("aria-pressed", on);
    this.redraw();
  }

  /** Set the start (0) or the end (1) of the repeated part to the current time. */
  mark(end) {
    const part = this.loop.part ?? [0, this.clip.seconds];
    part[end] = this.time;
    this.loop.part = part[1] - part[0] > 0.1 ? part : end ? [Math.max(0, this.time - 1), this.time] : [this.time, this.clip.seconds];
    this.repeat(true);
  }

  // --- drawing

  redraw() { this.stale = true; }

  #tick() {
    const time = this.time, [from, to] = this.#part();
    if (!this.clock.paused && this.loop.on && (time >= to - 0.01 || time < from - 0.1)) { this.seek(from); return; }
    if (this.loop.on && this.clock.ended) { this.seek(from); this.play(); return; }
    if (!this.stale && this.clock.paused && time === this.drawn) return;
    this.stale = false;
    this.#draw(time);
  }

  #draw(time) {
    const { clip, stage } = this, theme = themeOf();
    this.drawn = time;
    this.frames = clip.tracks.map(({ motion }) => (motion ? Math.min(motion.frames - 1, Math.floor(time * data.rate + 1e-3)) : null));
    const canvas = byId("figures"), panels = placesOf(clip.tracks, canvas.clientWidth, canvas.clientHeight);
    if (stage) {
      const scale = Math.min(2, window.devicePixelRatio || 1), w = Math.round(canvas.clientWidth * scale), h = Math.round(canvas.clientHeight * scale);
      if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
      stage.draw(clip.tracks, panels, this.frames, theme);
    }
    [...byId("labels").children].forEach((label, k) => {
      const { x, y, width, height, thin = false } = panels[k];
      label.classList.toggle("thin", thin);
      Object.assign(label.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px` });
      caption(label.lastElementChild, clip.tracks[k].words, time);
    });
    this.timeline.draw(time, this.loop, theme);
    byId("time").textContent = `${clock(time)} / ${clock(clip.seconds)} · frame ${Math.floor(time * data.rate + 1e-3)}`;
    const playing = !this.clock.paused && !this.clock.ended;
    byId("play").classList.toggle("on", playing);
    byId("play").setAttribute("aria-label", playing ? "Pause" : "Play");
    document.querySelectorAll("[data-view]").forEach((b) => b.setAttribute("aria-pressed", b.dataset.view === stage?.view));
  }

  // --- input

  #listen() {
    const click = (id, action) => byId(id).addEventListener("click", action);
    click("play", () => this.toggle());
    click("back", () => this.step(-1));
    click("forth", () => this.step(1));
    click("loop", () => this.repeat());
    click("table", () => this.scores());
    click("keys", () => byId("help").showModal());
    click("reset", () => this.view(this.stage?.view));
    byId("speed").addEventListener("change", () => this.faster(0));
    byId("sound").addEventListener("change", (event) => this.listen(event.target.value));
    document.querySelectorAll("[data-view]").forEach((b) => b.addEventListener("click", () => this.view(b.dataset.view)));
    this.audio.addEventListener("seeked", () => this.redraw());
    this.audio.addEventListener("ended", () => this.redraw());
    new ResizeObserver(() => this.redraw()).observe(document.body);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    document.addEventListener("keydown", (event) => this.#key(event));
    this.#pointers(byId("figures"));
  }

  view(name) { this.stage?.front(name); this.redraw(); }

  #key(event) {
    const wide = event.shiftKey ? 5 : 1, inner = event.target.closest("select, dialog");
    if (event.ctrlKey || event.metaKey || event.altKey || inner) return;
    const actions = {
      " ": () => this.toggle(), ",": () => this.step(-1), ".": () => this.step(1),
      ArrowLeft: () => this.seek(this.time - wide), ArrowRight: () => this.seek(this.time + wide),
      ArrowUp: () => this.faster(1), ArrowDown: () => this.faster(-1),
      Home: () => this.seek(0), End: () => this.seek(this.clip.seconds),
      l: () => this.repeat(), "[": () => this.mark(0), "]": () => this.mark(1),
      1: () => this.view("body"), 2: () => this.view("upper"), 3: () => this.view("face"), 0: () => this.view(this.stage?.view),
      t: () => this.scores(), s: () => this.#nextSound(), n: () => this.#next(1), p: () => this.#next(-1), "?": () => byId("help").showModal(),
    };
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  #next(step) {
    const index = this.index + step;
    if (index >= 0 && index < data.clips.length) this.open(index);
  }

  #nextSound() {
    const { options, selectedIndex } = byId("sound");
    this.listen(options[(selectedIndex + 1) % options.length].value);
  }

  /** Handle pointers (mouse, fingers). One pointer turns the camera, or moves it if shift is pressed. Two pointers move and zoom. */
  #pointers(canvas) {
    const held = new Map();
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); held.set(event.pointerId, [event.clientX, event.clientY]); });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => held.delete(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      const last = held.get(event.pointerId), { stage } = this;
      if (!last || !stage) return;
      const dx = event.clientX - last[0], dy = event.clientY - last[1], height = canvas.clientHeight;
      if (held.size > 1) {
        const [other] = [...held].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
        const far = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]);
        stage.closer(Math.max(far([event.clientX, event.clientY]), 1) / Math.max(far(last), 1));
        stage.move(dx / 2, dy / 2, height);
      } else if (event.shiftKey || event.buttons & 6) stage.move(dx, dy, height);
      else stage.turn(dx, dy);
      held.set(event.pointerId, [event.clientX, event.clientY]);
      this.redraw();
    });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => this.view(this.stage?.view));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.stage?.closer(Math.exp(-event.deltaY * 0.0015));
      this.redraw();
    }, { passive: false });
  }
}

/** Format a time as minutes, seconds and hundredths. */
function clock(seconds) {
  const whole = Math.floor(seconds * 100 + 1e-6), minutes = Math.floor(whole / 6000);
  return `${minutes}:${String((whole % 6000) / 100 | 0).padStart(2, "0")}.${String(whole % 100).padStart(2, "0")}`;
}

/** Return panels in the columns and rows that make figures largest. */
function panelsOf(count, width, height) {
  let best = null;
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns), w = width / columns, h = height / rows, size = Math.min(w / 1.2, h / 2);
    if (!best || size > best.size * 1.001) best = { size, columns, w, h };
  }
  return Array.from({ length: count }, (_, k) => ({
    x: (k % best.columns) * best.w, y: Math.floor(k / best.columns) * best.h, width: best.w, height: best.h,
  }));
}

/** Return the panel of each track; tracks without motion share a narrow strip above the figures. */
function placesOf(tracks, width, height) {
  const still = tracks.filter((track) => !track.motion).length, strip = 34;
  if (!still || still === tracks.length) return panelsOf(tracks.length, width, height);
  const figures = panelsOf(tracks.length - still, width, height - strip);
  let left = 0;
  return tracks.map(({ motion }) => {
    if (!motion) return { x: width / still * left++, y: 0, width: width / still, height: strip, thin: true };
    const panel = figures.shift();
    return { ...panel, y: panel.y + strip };
  });
}

/** Show the current word, in bold, between its neighbours. */
function caption(element, words, time) {
  const k = firstWord(words, time), said = words[k]?.[1] <= time, key = `${k} ${said}`;
  if (element.dataset.at === key) return;
  element.dataset.at = key;
  const near = words.slice(Math.max(0, k - 2), k + (said ? 3 : 2)), nodes = [];
  near.forEach((word) => {
    const node = document.createElement(said && word === words[k] ? "b" : "span");
    node.textContent = word[0];
    const close = Math.abs((word[1] + word[2]) / 2 - time) < 2.5;
    if (close) nodes.push(node, " ");
  });
  element.replaceChildren(...nodes);
}

/** Return the colours of the page, in the forms that the drawing functions need. */
function themeOf() {
  const style = getComputedStyle(document.documentElement), value = (name) => style.getPropertyValue(`--${name}`).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  return {
    sky: rgb(value("sky")), grid: rgb(value("grid")), shadow: dark ? [0, 0, 0, 0.45] : [0.16, 0.2, 0.27, 0.28], text: value("text"),
    faint: value("faint"), edge: value("edge"), accent: value("accent"), onAccent: value("on-accent"), played: value("played"),
  };
}

const player = new Player();

// For tests and for the browser's console: the state of the player, and positions of joints and vertices.
window.omniges = {
  player,
  get state() {
    const { time, drawn, frames, clip, clock: source } = player;
    return { time, drawn, frames: [...frames], clip: clip.name, playing: !source.paused && !source.ended, rate: source.playbackRate, view: player.stage?.view };
  },
  joints(track, frame) {
    const out = new Float32Array(12 * BONES), positions = new Float64Array(3 * JOINTS);
    player.clip.tracks[track].motion.pose(frame, out, positions);
    return [...positions];
  },
  /** Return the vertices of the figure in a frame: those of the body, then those of the mouth. */
  figure(track, frame) {
    const { motion } = player.clip.tracks[track], bones = new Float32Array(12 * BONES), mouth = new Float32Array(MOUTH.vertices.length);
    mouthVertices(bonesOf(motion, frame, bones), mouth);
    return [BODY.vertices, mouth].flatMap((of) => Array.from({ length: of.length / 10 }, (_, v) => placed(of, v, bones)));
  },
  /** Return vertices, by number, of the mesh of a body model in a frame. */
  vertices(track, frame, numbers) {
    const { motion } = player.clip.tracks[track], out = new Float32Array(12 * BONES), found = [];
    const places = shapedBody(readBody(data.bodies[motion.body]), motion, frame, new Float32Array(3 * data.mesh.vertices));
    motion.pose(frame, out);
    for (const v of numbers) {
      const at = [0, 0, 0], [x, y, z] = places.subarray(3 * v, 3 * v + 3);
      for (let k = 0; k < data.mesh.joints; k++) {
        const weight = MESH.weights[data.mesh.joints * v + k] / 65535, bone = 12 * MESH.joints[data.mesh.joints * v + k];
        for (let r = 0; r < 3; r++) {
          at[r] += weight * (out[bone + 4 * r] * x + out[bone + 4 * r + 1] * y + out[bone + 4 * r + 2] * z + out[bone + 4 * r + 3]);
        }
      }
      found.push(at);
    }
    return found;
  },
};
