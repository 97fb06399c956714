// The waveform and the spectrogram of the last seconds, with the detected words marked, and the level.
import { $, element, state } from "./state.js";
import { RATE } from "./sound.js";

const SECONDS = 5;
const LATEST = 0.6 * RATE; // if the spectrogram of the microphone is later than this, the waveform goes on without it
const HELD = 2000; // milliseconds for which the loudest and the softest level count
const SILENT = 1000; // milliseconds of silence before it is told: a microphone begins with some
const TOO_QUIET = 0.08; // peak of speech at -22 dB, below which words are misheard
const SPEECH = 4; // how far speech rises above the softest level
let columns = []; // { at: position of the frame in the ring, mels }
let words = []; // { from, to: positions in the ring, mark: element }
let peaks = []; // { when, peak, decibels }
let drawn = null;

// Adds the frames of a message, which end at `time`.
export function addFrames(encoded, time) {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const count = bytes.length / state.numMels;
  for (let i = 0; i < count; i++) {
    const at = state.origin + Math.round((time - (count - 1 - i) * state.frameSeconds) * RATE);
    columns.push({ at, mels: bytes.subarray(i * state.numMels, (i + 1) * state.numMels) });
  }
  columns = columns.slice(-Math.round(SECONDS / state.frameSeconds));
}

export function markWord(found) {
  const mark = element("span", "mark", element("span", "", found.word));
  $("marks").append(mark);
  words.push({ from: state.origin + found.begin * RATE, to: state.origin + found.end * RATE, mark });
}

export function drawMarks() {
  $("hertz").replaceChildren(...Object.entries(state.marks).map(([hertz, mel]) => {
    const mark = element("span", "", hertz < 1000 ? `${hertz} Hz` : `${hertz / 1000} kHz`);
    mark.style.bottom = `${(100 * mel) / state.numMels}%`;
    return mark;
  }));
}

// Takes samples as they arrive, for the level.
export function level(samples) {
  let peak = 0;
  let sum = 0;
  for (const value of samples) {
    peak = Math.max(peak, Math.abs(value));
    sum += value * value;
  }
  const now = performance.now();
  peaks = peaks.filter((one) => now - one.when < HELD);
  peaks.push({ when: now, peak, decibels: 10 * Math.log10(sum / Math.max(samples.length, 1) + 1e-10) });
}

// What is wrong with the level of the last two seconds: "silent", "loud", "quiet" or nothing.
export function levelFault() {
  if (!peaks.length) return "";
  const loudest = Math.max(...peaks.map((one) => one.peak));
  const softest = Math.min(...peaks.map((one) => one.peak));
  if (loudest <= 1e-4) return performance.now() - peaks[0].when >= SILENT ? "silent" : "";
  if (loudest >= 0.999) return "loud";
  return loudest > SPEECH * softest && loudest > 1e-3 && loudest < TOO_QUIET ? "quiet" : "";
}

export function clearLevel() {
  peaks = [];
}

const TEXTS = { silent: "Only silence: is the microphone muted?", loud: "Too loud: the sound is clipped.",
  quiet: "Too quiet: speak closer to the microphone, or raise its level." };

function showLevel() {
  const last = peaks[peaks.length - 1];
  const shown = state.listening && !state.file; // the level is that of the microphone
  const decibels = shown && last ? Math.max(-60, last.decibels) : -60;
  const text = shown ? TEXTS[levelFault()] || "" : "";
  for (const meter of document.querySelectorAll("meter")) meter.value = decibels;
  for (const place of document.querySelectorAll(".level-fault")) if (place.textContent !== text) place.textContent = text;
}

export function draw() {
  const newest = columns.length ? columns[columns.length - 1] : null;
  const together = newest && (state.file || newest.at > state.ring.total - LATEST);
  const end = Math.round(together ? newest.at : state.ring.total);
  drawWaveform(end);
  if (drawn !== newest || (newest && newest.at !== end)) drawSpectrogram(end);
  drawn = newest;
  words = words.filter((one) => one.to > end - SECONDS * RATE || one.mark.remove());
  for (const { from, to, mark } of words) {
    mark.style.left = `${100 + (100 * (from - end)) / (SECONDS * RATE)}%`;
    mark.style.width = `${(100 * (to - from)) / (SECONDS * RATE)}%`;
  }
  showLevel();
  requestAnimationFrame(draw);
}

function drawWaveform(end) {
  const canvas = $("waveform");
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#7fb0ff";
  const each = (SECONDS * RATE) / canvas.width;
  const middle = canvas.height / 2;
  for (let x = 0; x < canvas.width; x++) {
    const from = Math.floor(end - (canvas.width - x) * each);
    let low = 0;
    let high = 0;
    for (let i = from; i < from + each; i += 2) {
      const value = state.ring.at(i);
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    pen.fillRect(x, middle - high * middle - 0.5, 1, (high - low) * middle + 1);
  }
}

// Five colours of the magma colour map.
const COLOURS = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];

function colour(value) {
  const place = (value / 255) * (COLOURS.length - 1);
  const low = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[low].map((part, i) => part + (COLOURS[low + 1][i] - part) * (place - low));
}

const PALETTE = Array.from({ length: 256 }, (_, value) => colour(value));

function drawSpectrogram(end) {
  const canvas = $("spectrogram");
  canvas.width = Math.round(SECONDS / state.frameSeconds);
  canvas.height = state.numMels;
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(canvas.width, canvas.height);
  for (const { at, mels } of columns) {
    const x = canvas.width - 1 - Math.round((end - at) / RATE / state.frameSeconds);
    if (x < 0 || x >= canvas.width) continue;
    for (let mel = 0; mel < state.numMels; mel++) {
      image.data.set([...PALETTE[mels[mel]], 255], 4 * ((state.numMels - 1 - mel) * canvas.width + x));
    }
  }
  pen.putImageData(image, 0, 0);
}
