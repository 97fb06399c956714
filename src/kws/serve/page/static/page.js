// The page: connects the server, the microphone and files with what is shown.
import { $, apart, pause, problem, state, status } from "./state.js";
import { RATE } from "./sound.js";
import { Stream } from "./stream.js";
import { Microphone, isAllowedHere, whyNone } from "./microphone.js";
import { drawWords, label, light, onThresholds, setThresholds, showCurves, showProbability } from "./words.js";
import { beginPart, showDetection } from "./detections.js";
import { addFrames, clearLevel, draw, drawMarks, level, levelFault, markWord } from "./pictures.js";
import { showCard } from "./card.js";
import { showGate } from "./gate.js";
import { beginTeaching } from "./teach.js";

const LATE = 1.5; // seconds from which on the page says how late it is
const TOO_LATE = 5; // seconds from which on sound is dropped, so that it does not become later
const AHEAD = 10; // seconds of a file that are sent before they are heard: the network would take it whole, and answer no ping
const JAM_SHOWN = 3000; // milliseconds for which sound that was lost is told
let stream = null; // to the server, for the microphone
let retries = 0;
let microphone = null;
let starting = false;
let dropped = { samples: 0, when: -Infinity };
let anew = true; // the server's clock begins with the next samples
let heardUntil = 0; // the server's clock: the time of what it heard last
let finished = null; // called when the server has finished the microphone's stream
let files = Promise.resolve(); // the files that were given, one after the other

// ------------------------------------------------------------------ the server

// What is shown of a stream, whether it is of the microphone or of a file.
const shown = {
  nothing() {
    state.words.forEach((word) => showProbability(word, 0));
    showGate();
  },
  heard(message) {
    showGate(message.open_seconds);
    message.probabilities.forEach((value, index) => showProbability(state.words[index], value));
    if (message.frames) addFrames(message.frames, message.time);
  },
  detection(message) {
    showDetection(message);
    markWord(message);
    light(message.word);
  },
};

function connect() {
  anew = true;
  stream = new Stream({
    ...shown,
    hello,
    heard(message) {
      if (retries) problem("");
      retries = 0;
      heardUntil = message.time;
      shown.heard(message);
    },
    finished() {
      anew = true;
      shown.nothing();
      if (finished) finished();
    },
    kept: ({ name }) => (name ? status("The last two seconds are kept for review.") : problem("The server cannot keep sound; see its log.")),
    error: (message) => problem(`The server reported an error: ${message.error}`),
    closed() {
      state.ready = false;
      if (finished) finished();
      retries = Math.min(retries + 1, 6);
      $("model").textContent = "The connection to the server was lost; trying again …";
      watch();
      setTimeout(connect, 500 * retries);
    },
  });
}

function hello(message) {
  state.ready = true;
  state.defaults = message.thresholds;
  $("keeps").hidden = !message.keeps;
  if (message.keeps && $("stored")) $("stored").textContent = "what it hears is kept";
  const same = message.words.join() === state.words.join() && message.after === state.gate.after;
  state.gate = { after: message.after, afterSeconds: message.after_seconds, armed: message.armed };
  Object.assign(state, { words: message.words, reported: message.reported, numMels: message.num_mels,
    frameSeconds: message.frame_seconds, marks: message.marks, thresholds: {} });
  if (!same) drawWords();
  showCurves(message.curves);
  setThresholds();
  drawMarks();
  showGate();
  $("model").textContent = `Model ${message.version}, ${message.reported.length} words`;
  $("say").textContent = message.reported.map((word) => apart(label(word))).join(", ");
  const rate = message.false_alarms_per_hour;
  $("limit").textContent = rate === null || rate === undefined
    ? "The thresholds were not measured for this model."
    : `The thresholds were chosen for ${rate < 0.05 ? "less than 0.1" : rate.toFixed(1)} false alarms per hour.`;
  $("start").disabled = $("file").disabled = false;
  showCard();
  watch();
}

onThresholds(() => stream.say({ thresholds: state.thresholds }));
$("missed").onclick = () => (state.listening ? stream.say({ missed: "" }) : status("Start the microphone first."));

// Takes samples of the microphone: keeps them and sends them to the server.
function take(samples) {
  if (state.file) return; // a file is read: the microphone waits
  state.ring.add(samples);
  level(samples);
  if (!state.ready || finished) return;
  if (anew) {
    state.origin = state.ring.total - samples.length;
    anew = false;
    heardUntil = 0;
  }
  if (stream.isFull || secondsLate() > TOO_LATE) {
    dropped = { samples: dropped.samples + samples.length, when: performance.now() };
    state.origin += samples.length; // dropped samples do not advance the server's clock
  } else {
    stream.send(samples);
  }
}

// How many seconds of the sound that was sent the server has not yet heard.
function secondsLate() {
  return anew ? 0 : (state.ring.total - state.origin) / RATE - heardUntil;
}

// Ends the microphone's stream, so that what was heard last is reported and the server's clock starts anew.
function finish() {
  if (!state.ready || anew) return Promise.resolve();
  return new Promise((resolve) => {
    finished = () => {
      finished = null;
      resolve();
    };
    stream.say({ finish: true });
  });
}

// ------------------------------------------------------------------ the microphone

async function start() {
  if (starting) return;
  problem("");
  if (!isAllowedHere()) {
    problem("Browsers allow the microphone only on pages at https:// or localhost. Open this server as " +
      "http://localhost:… (over SSH: ssh -L 8080:localhost:8080 …), or put it behind HTTPS. You can still drop files here.");
    return;
  }
  starting = true;
  $("start").textContent = "Starting …";
  try {
    const ended = () => stop("The microphone was disconnected. Connect it, and start again.");
    microphone = await Microphone.open($("processing").checked, take, ended);
    state.listening = true;
    dropped = { samples: 0, when: -Infinity };
    clearLevel();
    beginPart(`Microphone, from ${new Date().toLocaleTimeString("en-GB")}`, false);
    $("processing").disabled = true;
    $("start").textContent = "Stop the microphone";
    watch();
  } catch (error) {
    stop(whyNone(error));
  }
  starting = false;
}

function stop(why) {
  state.listening = false;
  if (microphone) microphone.close();
  microphone = null;
  finish();
  $("processing").disabled = false;
  $("start").textContent = "Start the microphone";
  watch();
  problem(why || "");
}

// Says how listening goes: also what causes no event, as a context that is suspended or a server that is away.
function watch() {
  if (state.file) return;
  if (!state.listening) {
    if ($("status").dataset.listening) status("The microphone is off.");
    delete $("status").dataset.listening;
    return;
  }
  $("status").dataset.listening = true;
  const late = secondsLate();
  const lost = (dropped.samples / RATE).toFixed(1);
  if (!state.ready) status("Not listening: the server is away. Listening goes on when it is back.");
  else if (microphone.isPaused) status("Not listening: there has been no sound for two seconds, as the browser paused it. If it does not resume, stop and start the microphone.");
  else if (late > LATE) status(`Listening, but ${late.toFixed(0)} s late: the server or the connection is too slow.${dropped.samples ? ` ${lost} s of sound were dropped.` : ""}`);
  else if (performance.now() - dropped.when < JAM_SHOWN) status(`Listening. The connection is slow: ${lost} s of sound were dropped.`);
  else if (levelFault() === "silent") status("Listening, but the microphone gives only silence: is it muted?");
  else status(dropped.samples ? `Listening. ${lost} s of sound were dropped before.` : "Listening.");
}

// ------------------------------------------------------------------ files

// Lets the server decode what this browser does not, such as AMR of old phones, or WebM in Safari.
async function decodeThere(file) {
  const answer = await fetch("decode", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file });
  if (!answer.ok) throw new Error((await answer.json()).error);
  return new Float32Array(await answer.arrayBuffer());
}

async function decode(file) {
  // decodeAudioData resamples to the sample rate of its context.
  const buffer = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer()).catch(() => null);
  if (!buffer) return decodeThere(file);
  const mono = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const samples = buffer.getChannelData(channel);
    for (let i = 0; i < mono.length; i++) mono[i] += samples[i] / buffer.numberOfChannels;
  }
  return mono;
}

// Sends samples over a stream of their own; rejects if the connection is lost before all of it was heard.
function hear(samples) {
  return new Promise((resolve, reject) => {
    let open = true;
    let sent = 0;
    let heard = 0; // seconds
    const fail = (why) => {
      open = false;
      reject(new Error(why));
    };
    const own = new Stream({
      ...shown,
      async hello() {
        if (sent) return; // another champion, in the middle of the file
        own.say({ thresholds: state.thresholds });
        state.origin = state.ring.total;
        for (; open && sent < samples.length; sent += RATE / 10) {
          const piece = samples.subarray(sent, sent + RATE / 10);
          state.ring.add(piece);
          own.send(piece);
          while (open && (own.isFull || sent / RATE > heard + AHEAD)) await pause(5);
        }
        own.say({ finish: true });
      },
      heard(message) {
        heard = message.time;
        shown.heard(message);
        $("progress").value = message.time / (samples.length / RATE);
      },
      finished() {
        open = false;
        own.close();
        shown.nothing();
        resolve();
      },
      error: (message) => fail(message.error),
      closed: () => fail("the connection to the server was lost"),
    });
  });
}

async function readFile(file) {
  if (!file) return;
  problem("");
  state.file = file.name;
  status(`Reading ${file.name} …`);
  $("progress").hidden = false;
  $("progress").value = 0;
  const before = state.listening ? beginPart : null;
  let samples = null;
  try {
    await finish();
    samples = await decode(file);
    const part = beginPart(file.name, true);
    try {
      await hear(samples);
      const words = `${part.count} ${part.count === 1 ? "word" : "words"} detected`;
      status(`${file.name}: ${(samples.length / RATE).toFixed(1)} s, ${words}.`);
    } catch (error) {
      problem(`${file.name} was not heard to its end: ${error.message}. Try it again.`);
      status(`${file.name} was heard only in part.`);
    }
  } catch (error) {
    problem(`${file.name} was not read: ${error.message || error.name}.`);
    status("The file was not read.");
  }
  if (state.listening) beginPart(`Microphone, from ${new Date().toLocaleTimeString("en-GB")}`, false);
  anew = true;
  state.file = "";
  $("progress").hidden = true;
}

function readFiles(list) {
  for (const file of [...list]) files = files.then(() => readFile(file));
}

// ------------------------------------------------------------------ begin

$("start").onclick = () => (state.listening ? stop() : start());
$("file").onchange = (event) => {
  readFiles(event.target.files);
  event.target.value = "";
};
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") readFiles(event.dataTransfer.files);
  });
}
connect();
beginTeaching(start);
setInterval(watch, 500);
requestAnimationFrame(draw);
