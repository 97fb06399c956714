// What the parts of the page share: the state of the server and of listening, and the two lines of text for the user.
import { Ring } from "./sound.js";

export const $ = (id) => document.getElementById(id);
export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export const state = {
  ready: false, // the server has said hello
  words: [], reported: [], thresholds: {}, defaults: {}, numMels: 128, frameSeconds: 0.0125, marks: {},
  listening: false, file: "", // the name of the file that is being read
  ring: new Ring(30), // all sound of the last seconds, to draw, to play detections and to cut recordings
  gate: { after: "", afterSeconds: 0, armed: null }, // after which word the others count, and which words are armed
  origin: 0, // position in the ring at which the server's clock began
  collects: false, recording: false, speaker: "",
};

// A word in a sentence: one that is written from right to left must not turn what stands around it.
export const apart = (word) => (/[\u0590-\u08ff\ufb1d-\ufefc]/.test(word) ? `\u2068${word}\u2069` : word);

export function status(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

export function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

export function button(text, label, action) {
  const made = document.createElement("button");
  Object.assign(made, { type: "button", textContent: text, className: "small", onclick: action });
  made.setAttribute("aria-label", label);
  return made;
}

// Makes an element with a class, text and children.
export function element(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}
