// Recordings of new words, if the server keeps them.
import { $, apart, button, element, pause, problem, state } from "./state.js";
import { RATE, cut, toPcm, wav } from "./sound.js";

const ROOM = "_background_noise_"; // the folder for recordings of the room
const ROOM_SECONDS = 20;
const QUIET = 0.02; // peak below which a recording is not kept

// The word in the field, as the server keeps it.
const typed = () => $("word").value.normalize("NFC").trim();

// Keeps 16-bit samples as a recording of a word, and returns its clip id; null, with the reason shown, if it was not kept.
export async function keep(word, pcm) {
  try {
    const answer = await fetch(`collection/${encodeURIComponent(word)}?speaker=${state.speaker}`, {
      method: "POST", headers: { "content-type": "audio/wav" }, body: wav(pcm),
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    await showClips();
    return said.clip;
  } catch (error) {
    problem(`Not kept: ${error.message}.`);
    return null;
  }
}

export async function showClips() {
  const answer = await fetch("collection");
  state.collects = answer.ok;
  $("teach-off").hidden = answer.ok;
  $("teach-on").hidden = !answer.ok;
  if (!answer.ok) return;
  const { folder, words, command, follows } = await answer.json();
  $("folder").textContent = folder;
  showRecordings(typed(), words[typed()] || []);
  const counts = Object.entries(words).map(([word, names]) => `${word === ROOM ? "room" : apart(word)} ${names.length}`);
  const names = Object.keys(words).filter((word) => word !== ROOM);
  const enough = names.filter((word) => word !== "other").length >= 2 && names.every((word) => words[word].length >= 20);
  const missing = [names.includes("other") ? "" : "other words", words[ROOM] ? "" : "the room"].filter(Boolean);
  $("next").replaceChildren();
  if (!counts.length) return;
  const code = (text) => element("code", "", text);
  $("next").append(`Kept so far: ${counts.join(", ")}. `, enough ? "That is enough: train in the project's folder with "
    : "With at least two words of 20 recordings each, train in the project's folder with ", code(command),
    missing.length ? `. Without ${missing.join(" and ")}, the model will take every sound for one of its words` : "",
    follows ? ". When it has ended, this page recognizes the new words by itself." : ". Then serve the new model with ",
    follows ? "" : code("kws serve --data-root var/data"));
}

function showRecordings(word, names) {
  $("clips").replaceChildren(...names.map((name, number) => {
    const path = `collection/${encodeURIComponent(word)}/${name}`;
    return element("li", "", `${apart(word)} ${number + 1} `,
      button("Play", `Play recording ${number + 1}`, () => new Audio(path).play()),
      button("Delete", `Delete recording ${number + 1}`, async () => {
        await fetch(path, { method: "DELETE" });
        await showClips();
        $("record").focus();
      }));
  }));
}

const goesOn = () => state.recording && state.listening;

function cue(text) {
  if ($("cue").textContent !== text) $("cue").textContent = text;
}

// Records, after the microphone has started; a second call ends it.
async function recording(start, run) {
  if (state.recording) {
    state.recording = false;
    return;
  }
  if (!state.listening) await start();
  if (!state.listening) return;
  state.recording = true;
  $("record").textContent = "Stop recording";
  try {
    await run();
  } finally {
    state.recording = false;
    $("record").textContent = "Record";
  }
}

async function recordWord() {
  const word = typed();
  const times = Number($("times").value);
  for (const text of ["3 …", "2 …", "1 …"]) {
    if (!goesOn()) break;
    cue(text);
    await pause(600);
  }
  let kept = 0;
  while (kept < times && goesOn()) {
    cue(`Say ${word === "other" ? "any other word" : `“${apart(word)}”`} (${kept + 1} of ${times})`);
    // The ring buffer runs all the time, so it also has a word that is spoken too early.
    const begin = state.ring.total;
    while (state.ring.total < begin + 1.9 * RATE && goesOn()) await pause(50);
    if (!goesOn()) break;
    const clip = cut(state.ring.cut(Math.max(0, begin - 0.5 * RATE), begin + Math.round(1.9 * RATE)));
    const peak = clip.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    if (peak < QUIET || peak >= 0.999) {
      cue(peak < QUIET ? "Too quiet: not kept. Again …" : "Too loud: the sound was clipped. Again …");
      await pause(1500);
      continue;
    }
    if (!(await keep(word, toPcm(clip)))) break;
    kept += 1;
    cue("✓ kept");
    await pause(500);
  }
  cue(kept === times ? `✓ ${kept} kept` : "");
}

async function recordRoom() {
  const begin = state.ring.total;
  while (state.ring.total < begin + ROOM_SECONDS * RATE && goesOn()) {
    // In steps of 5 s, as screen readers read every change.
    cue(`Be quiet: ${5 * Math.ceil((ROOM_SECONDS - (state.ring.total - begin) / RATE) / 5)} s`);
    await pause(200);
  }
  const whole = goesOn() && (await keep(ROOM, toPcm(state.ring.cut(begin, begin + ROOM_SECONDS * RATE))));
  cue(whole ? "✓ kept" : "");
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

// Begins with the recordings that there are; `start` starts the microphone.
export function beginTeaching(start) {
  $("teach-on").onsubmit = (event) => {
    event.preventDefault();
    recording(start, recordWord);
  };
  $("room").onclick = () => state.recording || recording(start, recordRoom);
  $("word").oninput = showClips;
  $("new-speaker").onclick = () => speaker(true);
  speaker(false);
  showClips();
}
