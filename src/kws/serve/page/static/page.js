import { RATE, cut, toPcm, wav } from "./sound.js";

const SHOWN_SECONDS = 5;
const KEPT_SECONDS = 30; // sound kept to play detections and to cut recordings
const MOST_WAITING = RATE; // bytes in transit to the server, half a second; beyond that sound is dropped
const MOST_LINES = 50;
const ROOM = "_background_noise_"; // the folder for recordings of the room
const ROOM_SECONDS = 20;
const $ = (id) => document.getElementById(id);

const state = {
  socket: null, ready: false, retry: 0, words: [], reported: [], thresholds: {}, own: {}, numMels: 128,
  context: null, stream: null, node: null, listening: false, lastFrame: 0, lastLoud: 0, dropped: 0,
  ring: new Float32Array(KEPT_SECONDS * RATE), total: 0, origin: 0,
  columns: [], detections: 0, recording: false, reading: false, speaker: "",
};

// ------------------------------------------------------------------ the server

function connect() {
  const base = location.href.replace(/^http/, "ws").replace(/[?#].*$/, "").replace(/[^/]*$/, "");
  const socket = new WebSocket(base + "listen");
  socket.binaryType = "arraybuffer";
  state.socket = socket;
  state.fresh = true;
  socket.onopen = () => socket.send(JSON.stringify({ rate: RATE }));
  socket.onmessage = (event) => receive(JSON.parse(event.data));
  socket.onclose = () => {
    if (state.socket !== socket) return;
    state.ready = false;
    $("start").disabled = $("file").disabled = !state.listening;
    state.retry = Math.min(state.retry + 1, 6);
    $("model").textContent = "The connection to the server was lost; trying again …";
    setTimeout(connect, 500 * state.retry);
  };
}

const handlers = {
  hello(message) {
    state.ready = true;
    state.retry = 0;
    if (state.fresh) state.origin = state.total; // the server's clock starts here; it continues when the champion changes
    state.fresh = false;
    state.thresholds = { ...message.thresholds };
    state.defaults = { ...message.thresholds };
    const same = message.words.join() === state.words.join();
    Object.assign(state, { words: message.words, reported: message.reported, numMels: message.num_mels });
    for (const word of state.reported) if (word in state.own) state.thresholds[word] = state.own[word];
    if (!same) drawWords();
    showThresholds();
    if (Object.keys(state.own).length) sendThresholds();
    $("model").textContent = `Model ${message.version}, ${message.reported.length} words`;
    const rate = message.false_alarms_per_hour;
    $("limit").textContent = rate === null || rate === undefined
      ? "The thresholds were not measured for this model."
      : `The thresholds were chosen for ${rate < 0.05 ? "less than 0.1" : rate.toFixed(1)} false alarms per hour.`;
    $("start").disabled = $("file").disabled = false;
    showCard();
  },
  heard(message) {
    message.probabilities.forEach((value, index) => showProbability(state.words[index], value));
    if (message.frames) addFrames(message.frames);
  },
  detection(message) {
    showDetection(message);
  },
  finished() {
    state.origin = state.total;
    if (state.fileDone) state.fileDone();
  },
  error(message) {
    problem(`The server reported an error: ${message.error}`);
  },
};

function receive(message) {
  const handler = handlers[message.type];
  if (handler) handler(message);
}

function sendThresholds() {
  if (state.ready) state.socket.send(JSON.stringify({ thresholds: state.thresholds }));
}

// Takes all samples, from the microphone or a file, stores them in the ring buffer and sends them to the server.
function take(samples) {
  for (let i = 0; i < samples.length; i++) state.ring[(state.total + i) % state.ring.length] = samples[i];
  state.total += samples.length;
  level(samples);
  if (!state.ready) return;
  if (state.socket.bufferedAmount > MOST_WAITING) {
    state.dropped += samples.length;
    state.origin += samples.length; // dropped samples do not advance the server's clock
    return;
  }
  state.socket.send(toPcm(samples));
}

// Returns samples from the ring buffer, between two positions that count from the first sample received.
function kept(from, to) {
  const piece = new Float32Array(to - from);
  for (let i = from; i < to; i++) {
    if (i >= Math.max(0, state.total - state.ring.length) && i < state.total) piece[i - from] = state.ring[i % state.ring.length];
  }
  return piece;
}

// ------------------------------------------------------------------ the microphone

function whyNoMicrophone(error) {
  const why = {
    NotAllowedError: "Access to the microphone was denied. Allow it for this page (the icon left of the address), and start again.",
    SecurityError: "The browser's settings deny access to the microphone. Allow it for this page, and start again.",
    NotFoundError: "There is no microphone. Connect one, and start again.",
    NotReadableError: "The microphone is in use by another program or by the system. Close that program, and start again.",
    AbortError: "The microphone could not be started. Try again.",
  };
  return why[error.name] || `The microphone cannot be used: ${error.message || error.name}.`;
}

async function start() {
  problem("");
  if (!navigator.mediaDevices || !navigator.mediaDevices.getUserMedia) {
    problem("Browsers allow the microphone only on pages at https:// or localhost. Open this server as " +
      "http://localhost:… (over SSH: ssh -L 8080:localhost:8080 …), or put it behind HTTPS. You can still drop files here.");
    return;
  }
  $("start").disabled = true;
  try {
    const processing = $("processing").checked;
    state.stream = await navigator.mediaDevices.getUserMedia({ audio: {
      channelCount: 1, echoCancellation: processing, noiseSuppression: processing, autoGainControl: processing,
    } });
    // The context keeps the device's sample rate, as some browsers refuse others; the worklet resamples.
    const context = new AudioContext();
    state.context = context;
    await context.audioWorklet.addModule("page/worklet.js");
    const source = context.createMediaStreamSource(state.stream);
    state.node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0, processorOptions: { rate: RATE } });
    state.node.port.onmessage = (event) => {
      state.lastFrame = performance.now();
      if (!state.reading) take(event.data);
    };
    source.connect(state.node);
    await context.resume();
    state.stream.getTracks()[0].onended = () => {
      if (state.listening) stop("The microphone was disconnected. Connect it, and start again.");
    };
    state.listening = true;
    state.lastFrame = state.lastLoud = performance.now();
    $("processing").disabled = true;
    $("start").textContent = "Stop the microphone";
    status(`Listening at ${context.sampleRate.toLocaleString("en")} Hz.`);
  } catch (error) {
    stop(whyNoMicrophone(error));
  }
  $("start").disabled = !state.ready;
}

function stop(why) {
  state.listening = false;
  if (state.stream) for (const track of state.stream.getTracks()) track.stop();
  if (state.context) state.context.close();
  state.stream = state.context = state.node = null;
  $("processing").disabled = false;
  $("start").textContent = "Start the microphone";
  status("The microphone is off.");
  problem(why || "");
}

// Detects problems that cause no event: a suspended context, a clock that stopped during sleep, a muted microphone.
function watch() {
  const now = performance.now();
  if (state.listening) {
    if (now - state.lastFrame > 1500) {
      problem("There has been no sound for two seconds: the browser paused it. If it does not resume, stop and start the microphone.");
      state.paused = true;
      if (state.context && state.context.state === "suspended") state.context.resume();
    } else if (state.paused) {
      state.paused = false;
      problem("");
    } else if (now - state.lastLoud > 2000) {
      status("Listening, but the microphone gives only silence: is it muted?");
      state.silent = true;
    } else if (state.silent) {
      state.silent = false;
      status("Listening.");
    }
    if (state.dropped) {
      status(`Listening. The connection is slow: ${(state.dropped / RATE).toFixed(1)} s of sound were dropped.`);
    }
  }
}

function level(samples) {
  let peak = 0;
  let sum = 0;
  for (const value of samples) {
    peak = Math.max(peak, Math.abs(value));
    sum += value * value;
  }
  if (peak > 1e-4) state.lastLoud = performance.now();
  const decibels = 10 * Math.log10(sum / Math.max(samples.length, 1) + 1e-10);
  state.decibels = decibels;
  if (peak >= 0.999) state.clippedAt = performance.now();
}

// ------------------------------------------------------------------ files

async function readFile(file) {
  if (!file) return;
  problem("");
  if (!state.ready) return problem("There is no connection to the server yet.");
  state.reading = true;
  try {
    status(`Reading ${file.name} …`);
    // decodeAudioData resamples to the sample rate of its context.
    const context = new OfflineAudioContext(1, 1, RATE);
    const buffer = await context.decodeAudioData(await file.arrayBuffer());
    const mono = new Float32Array(buffer.length);
    for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
      const samples = buffer.getChannelData(channel);
      for (let i = 0; i < mono.length; i++) mono[i] += samples[i] / buffer.numberOfChannels;
    }
    const before = state.detections;
    await finish(); // sound from before does not belong to the file
    for (let first = 0; first < mono.length; first += RATE / 10) {
      take(mono.subarray(first, first + RATE / 10));
      while (state.ready && state.socket.bufferedAmount > MOST_WAITING / 2) await pause(5);
    }
    await finish();
    const found = state.detections - before;
    status(`${file.name}: ${(mono.length / RATE).toFixed(1)} s, ${found} ${found === 1 ? "word" : "words"} detected.`);
  } catch (error) {
    problem(`${file.name} could not be read as a recording (${error.message || error.name}). Use WAV, FLAC, MP3 or OGG.`);
    status("The file was not read.");
  }
  state.reading = false;
}

function finish() {
  return new Promise((resolve) => {
    state.fileDone = () => {
      state.fileDone = null;
      resolve();
    };
    state.socket.send(JSON.stringify({ finish: true }));
    setTimeout(() => state.fileDone && state.fileDone(), 60000);
  });
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// ------------------------------------------------------------------ display

function status(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

const cells = {};

function drawWords() {
  const body = $("bars").tBodies[0];
  body.replaceChildren();
  for (const key of Object.keys(cells)) delete cells[key];
  for (const word of state.words) {
    const row = body.insertRow();
    const name = document.createElement("th");
    name.scope = "row";
    const label = { _unknown_: "another word", _silence_: "no word" }[word] || word;
    name.textContent = label;
    row.append(name);
    const track = document.createElement("div");
    track.className = "track";
    const fill = document.createElement("div");
    fill.className = "fill";
    track.append(fill);
    const cell = row.insertCell();
    cell.className = "wide";
    cell.append(track);
    cells[word] = { fill };
    const last = row.insertCell();
    if (!state.reported.includes(word)) continue;
    const tick = document.createElement("div");
    tick.className = "tick";
    track.append(tick);
    const range = document.createElement("input");
    Object.assign(range, { type: "range", min: 0, max: 101, step: 1, id: `threshold-${word}` });
    range.setAttribute("aria-label", `Threshold of ${word}`);
    const share = document.createElement("span");
    share.className = "share";
    range.oninput = () => {
      state.own[word] = state.thresholds[word] = fromPercent(Number(range.value));
      showThresholds();
      sendThresholds();
    };
    last.append(share, range);
    Object.assign(cells[word], { tick, range, share });
  }
}

// The slider's steps are finer near 1: thresholds are seldom below 0.5, and near 1 a thousandth matters.
const fromPercent = (value) => (value > 100 ? 1.5 : Math.min(0.9999, Math.max(0.01, 1 - (1 - value / 100) ** 1.6)));
const toPercent = (threshold) => (threshold > 1 ? 101 : Math.round(100 * (1 - (1 - threshold) ** (1 / 1.6))));

function showThresholds() {
  for (const word of state.reported) {
    const { tick, range, share } = cells[word];
    const value = state.thresholds[word];
    tick.style.left = `calc(${100 * Math.min(value, 1)}% - 1px)`;
    range.value = toPercent(value);
    share.textContent = value > 1 ? "never" : `${(100 * value).toFixed(value > 0.95 ? 1 : 0)} %`;
    range.setAttribute("aria-valuetext", share.textContent);
  }
}

function showProbability(word, value) {
  const cell = cells[word];
  if (!cell) return;
  cell.fill.style.width = `${100 * value}%`;
  cell.fill.classList.toggle("hit", value >= (state.thresholds[word] ?? 2));
}

function showDetection(found) {
  state.detections += 1;
  const at = `${Math.max(0, found.time).toFixed(1)} s`; // the window of a first word begins before the stream
  const bold = document.createElement("b");
  bold.textContent = found.word;
  $("latest").replaceChildren(bold, ` at ${at}, ${(100 * found.probability).toFixed(0)} %`);
  const row = $("log").tBodies[0].insertRow(0);
  for (const text of [at, found.word, `${(100 * found.probability).toFixed(1)} %`,
    `${found.begin.toFixed(2)}–${found.end.toFixed(2)}`]) row.insertCell().textContent = text;
  const from = state.origin + Math.round((found.time - 0.5) * RATE);
  const cell = row.insertCell();
  const sound = kept(from, from + RATE);
  cell.append(button("Play", `Play ${found.word} at ${at}`, () => play(sound)));
  if (state.collects) {
    cell.append(" ", button("Keep", `Keep the sound at ${at} as a recording of the word named below`, () => {
      const word = $("word").value || found.word;
      keep(word, sound).then((clip) => clip && status(`Kept as ${clip}.`));
    }));
  }
  while ($("log").tBodies[0].rows.length > MOST_LINES) $("log").tBodies[0].deleteRow(-1);
}

function button(text, label, action) {
  const made = document.createElement("button");
  Object.assign(made, { type: "button", textContent: text, className: "small", onclick: action });
  made.setAttribute("aria-label", label);
  return made;
}

function play(samples) {
  const audio = new Audio(URL.createObjectURL(new Blob([wav(samples)], { type: "audio/wav" })));
  audio.onended = () => URL.revokeObjectURL(audio.src);
  audio.play();
}

// Five colours of the magma colour map.
const COLOURS = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];

function colour(value) {
  const place = (value / 255) * (COLOURS.length - 1);
  const low = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[low].map((part, i) => part + (COLOURS[low + 1][i] - part) * (place - low));
}

const PALETTE = Array.from({ length: 256 }, (_, value) => colour(value));

function addFrames(encoded) {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  for (let at = 0; at < bytes.length; at += state.numMels) state.columns.push(bytes.subarray(at, at + state.numMels));
  const most = $("spectrogram").width;
  if (state.columns.length > most) state.columns.splice(0, state.columns.length - most);
}

let drawnColumn = null;

function draw() {
  const canvas = $("waveform");
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#10131a";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#7fb0ff";
  const each = (SHOWN_SECONDS * RATE) / canvas.width;
  const middle = canvas.height / 2;
  for (let x = 0; x < canvas.width; x++) {
    const from = Math.floor(state.total - (canvas.width - x) * each);
    let low = 0;
    let high = 0;
    for (let i = Math.max(from, 0, state.total - state.ring.length); i < from + each; i += 2) {
      const value = state.ring[i % state.ring.length];
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    pen.fillRect(x, middle - high * middle - 0.5, 1, (high - low) * middle + 1);
  }
  const newest = state.columns[state.columns.length - 1];
  if (newest && newest !== drawnColumn) {
    drawnColumn = newest;
    drawSpectrogram();
  }
  if (state.decibels !== undefined) {
    $("level").value = state.decibels;
    $("decibels").textContent = `${Math.max(-99, state.decibels).toFixed(0)} dB`;
    const clipped = performance.now() - (state.clippedAt ?? -1e9) < 2000;
    $("clipped").textContent = clipped ? "Too loud: the sound is clipped." : "";
  }
  requestAnimationFrame(draw);
}

function drawSpectrogram() {
  const canvas = $("spectrogram");
  canvas.height = state.numMels;
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(canvas.width, canvas.height);
  const first = canvas.width - state.columns.length;
  state.columns.forEach((column, number) => {
    for (let mel = 0; mel < state.numMels; mel++) {
      const at = 4 * ((state.numMels - 1 - mel) * canvas.width + first + number);
      const [red, green, blue] = PALETTE[column[mel]];
      image.data[at] = red;
      image.data[at + 1] = green;
      image.data[at + 2] = blue;
      image.data[at + 3] = 255;
    }
  });
  pen.putImageData(image, 0, 0);
}

async function showCard() {
  const answer = await fetch("card");
  if (!answer.ok) return;
  const about = await answer.json();
  const facts = [`version ${about.version}`, `${about.parameters.toLocaleString("en")} parameters`,
    `words: ${about.words.join(", ")}`, ...Object.entries(about.about).map(([name, value]) => `${name}: ${value}`)];
  $("card-text").textContent = about.card || `${facts.join("\n")}\n\nThis model was published without a card.`;
}

// ------------------------------------------------------------------ recordings

async function keep(word, samples) {
  const answer = await fetch(`collection/${encodeURIComponent(word)}?speaker=${state.speaker}`, {
    method: "POST", headers: { "content-type": "audio/wav" }, body: wav(samples),
  });
  const said = await answer.json();
  if (!answer.ok) {
    problem(`Not kept: ${said.error}.`);
    return null;
  }
  await showClips();
  return said.clip;
}

async function showClips() {
  const answer = await fetch("collection");
  state.collects = answer.ok;
  $("teach-off").hidden = answer.ok;
  $("teach-on").hidden = !answer.ok;
  if (!answer.ok) return;
  const { folder, words, command, follows } = await answer.json();
  $("folder").textContent = folder;
  const list = $("clips");
  list.replaceChildren();
  const shown = words[$("word").value] || [];
  shown.forEach((name, number) => {
    const item = document.createElement("li");
    const path = `collection/${$("word").value}/${name}`;
    item.append(`${$("word").value} ${number + 1} `,
      button("Play", `Play recording ${number + 1}`, () => new Audio(path).play()),
      button("Delete", `Delete recording ${number + 1}`, async () => {
        await fetch(path, { method: "DELETE" });
        await showClips();
        $("record").focus();
      }));
    list.append(item);
  });
  const counts = Object.entries(words).map(([word, names]) => `${word === ROOM ? "room" : word} ${names.length}`);
  const names = Object.keys(words).filter((word) => word !== ROOM);
  const enough = names.filter((word) => word !== "other").length >= 2 && names.every((word) => words[word].length >= 20);
  const missing = [names.includes("other") ? "" : "other words", words[ROOM] ? "" : "the room"].filter(Boolean);
  $("next").replaceChildren();
  if (!counts.length) return;
  const code = (text) => Object.assign(document.createElement("code"), { textContent: text });
  $("next").append(`Kept so far: ${counts.join(", ")}. `, enough ? "That is enough: train in the project's folder with "
    : "With at least two words of 20 recordings each, train in the project's folder with ", code(command),
    missing.length ? `. Without ${missing.join(" and ")}, the model will take every sound for one of its words` : "",
    follows ? ". When it has ended, this page recognizes the new words by itself." : ". Then serve the new model with ",
    follows ? "" : code("kws serve --data-root var/data"));
}

async function record(event) {
  event.preventDefault();
  if (state.recording) {
    state.recording = false;
    return;
  }
  if (!state.listening) {
    await start();
    if (!state.listening) return;
  }
  const word = $("word").value;
  const times = Number($("times").value);
  state.recording = true;
  $("record").textContent = "Stop recording";
  for (const text of ["3 …", "2 …", "1 …"]) {
    $("cue").textContent = state.recording ? text : "";
    if (state.recording) await pause(600);
  }
  for (let take_ = 1; take_ <= times && state.recording && state.listening; take_++) {
    $("cue").textContent = `Say ${word === "other" ? "any other word" : `“${word}”`} (${take_} of ${times})`;
    // The ring buffer runs all the time, so it also has a word that is spoken too early.
    const cue = state.total;
    while (state.total < cue + 1.9 * RATE && state.recording && state.listening) await pause(50);
    if (!state.recording || !state.listening) break;
    const clip = cut(kept(Math.max(0, cue - 0.5 * RATE), cue + 1.9 * RATE));
    const peak = clip.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    if (peak < 0.02 || peak >= 0.999) {
      $("cue").textContent = peak < 0.02 ? "Too quiet: not kept. Again …" : "Too loud: the sound was clipped. Again …";
      take_--;
      await pause(1500);
      continue;
    }
    $("cue").textContent = "✓ kept";
    if (!(await keep(word, clip))) break;
    await pause(500);
  }
  state.recording = false;
  $("record").textContent = "Record";
  $("cue").textContent = "";
}

async function recordRoom() {
  if (state.recording) return;
  if (!state.listening) {
    await start();
    if (!state.listening) return;
  }
  state.recording = true;
  const begin = state.total;
  while (state.total < begin + ROOM_SECONDS * RATE && state.recording && state.listening) {
    // In steps of 5 s, as screen readers read every change.
    const text = `Be quiet: ${5 * Math.ceil((ROOM_SECONDS - (state.total - begin) / RATE) / 5)} s`;
    if ($("cue").textContent !== text) $("cue").textContent = text;
    await pause(200);
  }
  $("cue").textContent = "";
  if (state.recording && state.listening && (await keep(ROOM, kept(begin, begin + ROOM_SECONDS * RATE)))) {
    $("cue").textContent = "✓ kept";
  }
  state.recording = false;
}

function speaker(anew) {
  let id = anew ? "" : localStorage.getItem("speaker") || "";
  if (!/^[0-9a-f]{8}$/.test(id)) {
    id = [...crypto.getRandomValues(new Uint8Array(4))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    localStorage.setItem("speaker", id);
  }
  state.speaker = id;
  $("speaker").textContent = id;
}

// ------------------------------------------------------------------ begin

$("start").onclick = () => (state.listening ? stop() : start());
$("file").onchange = async (event) => {
  await readFile(event.target.files[0]);
  event.target.value = "";
};
$("restore").onclick = () => {
  state.own = {};
  state.thresholds = { ...state.defaults };
  showThresholds();
  sendThresholds();
};
$("clear").onclick = () => {
  $("log").tBodies[0].replaceChildren();
  $("latest").textContent = "No word yet.";
};
$("teach-on").onsubmit = record;
$("word").oninput = showClips;
$("room").onclick = recordRoom;
$("new-speaker").onclick = () => speaker(true);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) readFile(event.dataTransfer.files[0]);
  });
}
speaker(false);
connect();
showClips();
setInterval(watch, 500);
requestAnimationFrame(draw);
