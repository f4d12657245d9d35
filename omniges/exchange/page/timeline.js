// Timelines: the overview shows the complete clip; the detail shows words, sound and motion around the current time.

const WORDS_PX = 30, SOUND_PX = 44, SPEED_PX = 56, GAP_PX = 6;

class Timeline {
  constructor(detail, overview, seek) {
    Object.assign(this, { detail, overview, span: Math.min(8, Math.max(3, detail.clientWidth / 150)) });
    this.#drag(detail, (x, began) => began.from + x * began.span / detail.clientWidth, seek);
    this.#drag(overview, (x) => x / overview.clientWidth * this.clip.seconds, seek);
    detail.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.span = Math.min(60, Math.max(1, this.span * Math.exp(event.deltaY * 0.002)));
      this.changed();
    }, { passive: false });
  }

  #drag(canvas, timeAt, seek) {
    let began = null;
    const go = (event) => seek(timeAt(event.clientX - canvas.getBoundingClientRect().left, began));
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      began = { from: this.from, span: this.shownSpan };
      go(event);
    });
    canvas.addEventListener("pointermove", (event) => { if (began) go(event); });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { began = null; });
  }

  /** Prepare a clip: one lane for each different text, one for each different sound, and one for all motion. */
  show(clip) {
    this.clip = clip;
    const once = (values) => [...new Set(values)];
    const texts = once(clip.tracks.filter((track) => track.words.length).map((track) => JSON.stringify(track.words)));
    this.words = texts.map((text) => ({ words: JSON.parse(text), of: clip.tracks.filter((t) => JSON.stringify(t.words) === text) }));
    const heard = clip.tracks.filter((track) => track.envelope !== undefined || track.mel !== undefined);
    const mark = (track) => `${track.envelope} ${track.mel}`;
    this.sounds = once(heard.map(mark)).map((key) => {
      const of = heard.filter((track) => mark(track) === key), [track] = of;
      return track.envelope === undefined ? { of, mel: melPicture(blob(track.mel), track.melBands) } : { of, envelope: blob(track.envelope) };
    });
    this.speeds = clip.tracks.map((track) => (track.speeds === undefined ? null : blob(track.speeds)));
    const moving = this.speeds.some(Boolean) ? SPEED_PX + GAP_PX : 0;
    this.height = GAP_PX + this.words.length * (WORDS_PX + GAP_PX) + this.sounds.length * (SOUND_PX + GAP_PX) + moving + 16;
    this.detail.style.height = `${this.height}px`;
    this.overview.setAttribute("aria-valuemax", clip.seconds.toFixed(2));
  }

  draw(time, loop, theme) {
    this.shownSpan = Math.min(this.span, this.clip.seconds);
    this.from = Math.min(Math.max(time - this.shownSpan / 2, 0), this.clip.seconds - this.shownSpan);
    this.#drawDetail(time, theme);
    this.#drawOverview(time, loop, theme);
    this.overview.setAttribute("aria-valuenow", time.toFixed(2));
    this.overview.setAttribute("aria-valuetext", `${time.toFixed(1)} seconds`);
  }

  #drawDetail(time, theme) {
    const g = sized(this.detail), width = this.detail.clientWidth, { from, shownSpan: span } = this;
    const x = (moment) => (moment - from) / span * width;
    let y = GAP_PX;
    for (const { words, of } of this.words) { this.#words(g, words, of, x, y, time, theme); y += WORDS_PX + GAP_PX; }
    for (const sound of this.sounds) { this.#sound(g, sound, x, y, width, theme); y += SOUND_PX + GAP_PX; }
    if (this.speeds.some(Boolean)) { this.#speed(g, x, y, width, theme); y += SPEED_PX + GAP_PX; }
    g.fillStyle = theme.faint;
    g.font = "11px system-ui, sans-serif";
    g.textAlign = "center";
    const step = [0.2, 0.5, 1, 2, 5, 10].find((s) => s / span * width > 46) ?? 20;
    for (let moment = Math.ceil(from / step) * step; moment <= from + span; moment += step) {
      g.fillText(`${+moment.toFixed(1)} s`, Math.min(width - 14, Math.max(14, x(moment))), y + 8);
    }
    g.fillStyle = theme.text;
    g.fillRect(x(time) - 0.75, 0, 1.5, this.height - 16);
  }

  #words(g, words, of, x, y, time, theme) {
    g.font = "14px system-ui, sans-serif";
    g.textAlign = "left";
    g.textBaseline = "middle";
    for (let k = firstWord(words, this.from); k < words.length && words[k][1] < this.from + this.shownSpan; k++) {
      const [word, start, end] = words[k], left = x(start), right = Math.max(x(end), left + 2), now = start <= time && time < end;
      g.fillStyle = now ? theme.accent : theme.played;
      g.fillRect(left + 0.5, y, right - left - 1, WORDS_PX);
      g.save();
      g.beginPath();
      g.rect(left, y, right - left, WORDS_PX);
      g.clip();
      if (right - left < 12) { g.restore(); continue; }
      g.fillStyle = now ? theme.onAccent : theme.text;
      g.fillText(word, Math.max(left, 0) + 5, y + WORDS_PX / 2);
      g.restore();
    }
    if (this.words.length > 1) of.forEach((track, k) => dot(g, 8 + 12 * k, y + 5, tintOf(track.index)));
  }

  #sound(g, { envelope, mel, of }, x, y, width, theme) {
    if (mel) {
      const first = this.from * data.melRate, count = this.shownSpan * data.melRate;
      g.drawImage(mel, first / mel.stride, 0, count / mel.stride, mel.height, 0, y, width, SOUND_PX);
    } else {
      g.fillStyle = theme.faint;
      for (let px = 0; px < width; px++) {
        const a = this.from + px / width * this.shownSpan, b = a + this.shownSpan / width;
        const high = peak(envelope, a * data.envelopeRate, b * data.envelopeRate) / 255 * SOUND_PX / 2;
        g.fillRect(px, y + SOUND_PX / 2 - high, 1, Math.max(1, 2 * high));
      }
    }
    if (this.sounds.length > 1) of.forEach((track, k) => dot(g, 8 + 12 * k, y + 5, tintOf(track.index)));
  }

  #speed(g, x, y, width, theme) {
    const first = Math.floor(this.from * data.rate), last = Math.ceil((this.from + this.shownSpan) * data.rate);
    g.fillStyle = theme.edge;
    g.fillRect(0, y + SPEED_PX, width, 1);
    g.lineWidth = 1.5;
    this.speeds.forEach((speeds, index) => {
      if (!speeds) return;
      g.strokeStyle = tintOf(index);
      g.beginPath();
      for (let f = Math.max(first, 0); f <= Math.min(last, speeds.length - 1); f++) {
        g.lineTo(x(f / data.rate), y + SPEED_PX * (1 - speeds[f] / 255));
      }
      g.stroke();
    });
    g.fillStyle = theme.faint;
    g.font = "11px system-ui, sans-serif";
    g.textAlign = "left";
    g.fillText(`mean joint speed, 0 to ${this.clip.fastest.toFixed(2)} m/s`, 4, y + 6);
  }

  #drawOverview(time, loop, theme) {
    const g = sized(this.overview), width = this.overview.clientWidth, height = this.overview.clientHeight;
    const { seconds } = this.clip, x = (moment) => moment / seconds * width, middle = height / 2;
    const envelope = this.sounds.find((sound) => sound.envelope)?.envelope, speeds = this.speeds.find(Boolean);
    g.fillStyle = theme.played;
    g.fillRect(0, 0, x(time), height);
    for (let px = 0; px < width; px++) {
      const a = px / width * seconds, b = (px + 1) / width * seconds;
      const high = envelope ? peak(envelope, a * data.envelopeRate, b * data.envelopeRate)
        : speeds ? peak(speeds, a * data.rate, b * data.rate) : 0;
      const half = Math.max(0.5, high / 255 * (middle - 6));
      g.fillStyle = a <= time ? theme.accent : theme.faint;
      g.fillRect(px, middle - half, 1, 2 * half);
    }
    if (loop.part) {
      g.fillStyle = theme.accent;
      const [from, to] = loop.part.map(x);
      g.fillRect(from, 0, Math.max(2, to - from), 4);
      g.fillRect(from, 0, 2, height);
      g.fillRect(to - 2, 0, 2, height);
    }
    g.strokeStyle = theme.faint;
    g.strokeRect(x(this.from) + 0.5, 1.5, x(this.shownSpan) - 1, height - 3);
    g.fillStyle = theme.text;
    g.fillRect(x(time) - 1, 0, 2, height);
  }
}

/** Clear a canvas, and return its 2D context with CSS pixels as unit. */
function sized(canvas) {
  const scale = window.devicePixelRatio || 1, w = Math.round(canvas.clientWidth * scale), h = Math.round(canvas.clientHeight * scale);
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const g = canvas.getContext("2d");
  g.setTransform(scale, 0, 0, scale, 0, 0);
  g.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  return g;
}

/** Return the largest value between two indices; the range has at least one value. */
function peak(values, from, to) {
  let high = 0;
  const last = Math.min(values.length, Math.max(Math.floor(to), Math.floor(from) + 1));
  for (let k = Math.floor(from); k < last; k++) if (values[k] > high) high = values[k];
  return high;
}

/** Return the index of the first word that ends after a time; words are in order of time. */
function firstWord(words, moment) {
  let low = 0, high = words.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (words[middle][2] <= moment) low = middle + 1; else high = middle;
  }
  return low;
}

function dot(g, x, y, colour) {
  g.fillStyle = colour;
  g.beginPath();
  g.arc(x, y, 4, 0, 2 * Math.PI);
  g.fill();
}

/** Return a canvas with the picture of a mel: time from left to right, low bands at the bottom. */
function melPicture(shades, bands) {
  const frames = shades.length / bands, canvas = document.createElement("canvas");
  const widest = 16000, stride = Math.ceil(frames / widest);
  Object.assign(canvas, { width: Math.ceil(frames / stride), height: bands });
  const g = canvas.getContext("2d"), picture = g.createImageData(canvas.width, bands);
  for (let column = 0; column < canvas.width; column++) {
    for (let band = 0; band < bands; band++) {
      const value = shades[column * stride * bands + band], at = 4 * ((bands - 1 - band) * canvas.width + column);
      picture.data.set([value, Math.max(0, value * 1.3 - 60), Math.max(40, 200 - value), 255], at);
    }
  }
  g.putImageData(picture, 0, 0);
  canvas.stride = stride;
  return canvas;
}
