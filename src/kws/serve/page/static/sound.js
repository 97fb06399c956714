// Computations on samples, independent of the page and the server.

export const RATE = 16000; // sample rate of the model

// Keeps the newest samples of a stream; positions count from its first sample.
export class Ring {
  constructor(seconds) {
    this.samples = new Float32Array(seconds * RATE);
    this.total = 0;
  }

  add(samples) {
    for (let i = 0; i < samples.length; i++) this.samples[(this.total + i) % this.samples.length] = samples[i];
    this.total += samples.length;
  }

  get first() {
    return Math.max(0, this.total - this.samples.length);
  }

  at(position) {
    return position >= this.first && position < this.total ? this.samples[position % this.samples.length] : 0;
  }

  cut(from, to) {
    return Float32Array.from({ length: to - from }, (_, i) => this.at(from + i));
  }
}

// Resamples a stream with a windowed sinc filter, whose cutoff is below both Nyquist frequencies to avoid aliasing.

const ZERO_CROSSINGS = 24;
const STEPS = 512; // table entries from one zero crossing to the next
const ROLLOFF = 0.92; // cutoff, as a fraction of the lower Nyquist frequency

export class Resampler {
  constructor(from, to) {
    this.step = from / to;
    this.scale = ROLLOFF * Math.min(1, to / from); // cutoff, as a fraction of the Nyquist frequency of the input
    this.reach = Math.ceil(ZERO_CROSSINGS / this.scale); // input samples on either side
    this.table = new Float32Array(ZERO_CROSSINGS * STEPS + 2);
    for (let i = 0; i <= ZERO_CROSSINGS * STEPS; i++) {
      const x = i / STEPS;
      const sinc = i === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
      this.table[i] = sinc * (0.5 + 0.5 * Math.cos((Math.PI * x) / ZERO_CROSSINGS));
    }
    this.kept = new Float32Array(this.reach); // silence before the first sample
    this.position = this.reach; // position of the next output sample in `kept`
  }

  // Takes input samples and returns the output samples that are complete; the delay is `reach` input samples.
  process(samples) {
    const input = new Float32Array(this.kept.length + samples.length);
    input.set(this.kept);
    input.set(samples, this.kept.length);
    const output = [];
    while (this.position + this.reach < input.length) {
      const first = Math.ceil(this.position - this.reach);
      let sum = 0;
      for (let i = Math.max(0, first); i <= this.position + this.reach && i < input.length; i++) {
        const place = Math.abs(i - this.position) * this.scale * STEPS;
        const whole = Math.floor(place);
        if (whole >= ZERO_CROSSINGS * STEPS) continue;
        const part = place - whole;
        sum += input[i] * (this.table[whole] * (1 - part) + this.table[whole + 1] * part);
      }
      output.push(sum * this.scale);
      this.position += this.step;
    }
    const drop = Math.max(0, Math.floor(this.position) - this.reach - 1);
    this.kept = input.slice(drop);
    this.position -= drop;
    return Float32Array.from(output);
  }
}

// Converts floats to 16-bit samples; clips values beyond ±1.
export function toPcm(samples) {
  const pcm = new Int16Array(samples.length);
  for (let i = 0; i < samples.length; i++) pcm[i] = Math.max(-32768, Math.min(32767, Math.round(samples[i] * 32768)));
  return pcm;
}

// Encodes 16-bit samples as a WAV file.
export function wav(pcm) {
  const view = new DataView(new ArrayBuffer(44 + 2 * pcm.length));
  const text = (at, value) => [...value].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * pcm.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * pcm.length, true);
  pcm.forEach((value, i) => view.setInt16(44 + 2 * i, value, true));
  return view.buffer;
}

// Returns the loudest second, shifted so that the centroid of its energy is in the middle of the clip.
export function cut(samples) {
  let energy = 0;
  let best = -1;
  let start = 0;
  for (let i = 0; i < samples.length; i++) {
    energy += samples[i] ** 2 - (i >= RATE ? samples[i - RATE] ** 2 : 0);
    if (i >= RATE - 1 && energy > best) {
      best = energy;
      start = i - RATE + 1;
    }
  }
  let sum = 0;
  let weighted = 0;
  for (let i = start; i < start + RATE; i++) {
    sum += samples[i] ** 2;
    weighted += (i - start) * samples[i] ** 2;
  }
  const shift = Math.round(weighted / Math.max(sum, 1e-9) - RATE / 2);
  start = Math.max(0, Math.min(samples.length - RATE, start + shift));
  return samples.slice(start, start + RATE);
}
