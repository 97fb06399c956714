// The grid of words that light up, and the sliders of their thresholds.
import { $, element, state } from "./state.js";
import { drawCurves, moved } from "./curve.js";

const LABELS = { _unknown_: "another word", _silence_: "no word" };
const LIT = 1500; // milliseconds for which a detected word stays lit
const cells = {};
const own = {}; // the thresholds that were set by hand, by word
let shift = 0; // by how much all others are moved, in log-odds
let changed = () => {};
let markPoint = () => "";

export function onThresholds(action) {
  changed = action;
}

export const label = (word) => LABELS[word] || word;

// Shows the curve that was measured for the model, if any, with the point to which the slider moves the thresholds.
export function showCurves(curves) {
  $("curves").toggleAttribute("hidden", !curves.length);
  $("point").hidden = !curves.length;
  markPoint = drawCurves($("curves"), curves);
}

export function drawWords() {
  for (const key of Object.keys(cells)) delete cells[key];
  $("grid").replaceChildren(...state.words.map((word) => {
    const fill = element("span", "fill");
    const kind = word === state.gate.after ? "gate" : "";
    const chip = element("li", state.reported.includes(word) ? kind : "none", fill, element("span", "name", label(word)));
    cells[word] = { chip, fill };
    return chip;
  }));
  $("sliders").replaceChildren(...state.reported.map((word) => {
    const range = Object.assign(element("input"), { type: "range", min: 0, max: 101, step: 1, id: `threshold-${word}` });
    range.setAttribute("aria-label", `Threshold of ${word}`);
    range.oninput = () => {
      own[word] = fromPercent(Number(range.value));
      setThresholds();
    };
    const share = element("span", "share");
    Object.assign(cells[word], { range, share });
    return element("label", "slider", element("span", "name", word), range, share);
  }));
}

// Computes the thresholds from those of the model and what was set here.
export function setThresholds() {
  for (const word of state.reported) {
    const value = state.defaults[word];
    state.thresholds[word] = own[word] ?? moved(value, -shift);
    showThreshold(word);
  }
  $("all").value = shift;
  $("point").textContent = markPoint(-shift);
  changed();
}

// The slider's steps are finer near 1: thresholds are seldom below 0.5, and near 1 a thousandth matters.
const fromPercent = (value) => (value > 100 ? 1.5 : Math.min(0.9999, Math.max(0.01, 1 - (1 - value / 100) ** 1.6)));
const toPercent = (threshold) => (threshold > 1 ? 101 : Math.round(100 * (1 - (1 - threshold) ** (1 / 1.6))));

function showThreshold(word) {
  const { range, share, chip } = cells[word];
  const value = state.thresholds[word];
  range.value = toPercent(value);
  share.textContent = value > 1 ? "never" : `${(100 * value).toFixed(value > 0.95 ? 1 : 0)} %`;
  range.setAttribute("aria-valuetext", share.textContent);
  chip.classList.toggle("never", value > 1);
}

export function showProbability(word, value) {
  if (cells[word]) cells[word].fill.style.transform = `scaleX(${value.toFixed(3)})`;
}

export function light(word) {
  const { chip } = cells[word];
  chip.classList.add("lit");
  clearTimeout(cells[word].timer);
  cells[word].timer = setTimeout(() => chip.classList.remove("lit"), LIT);
}

$("all").oninput = () => {
  shift = Number($("all").value);
  setThresholds();
};
$("restore").onclick = () => {
  shift = 0;
  for (const word of Object.keys(own)) delete own[word];
  setThresholds();
};
