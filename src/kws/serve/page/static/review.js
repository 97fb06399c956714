// The review page.
import { $, apart, button, element, problem, status } from "./state.js";
import { review } from "./heard.js";

const REASONS = { detected: "detected", near: "nearly detected", wrong: "marked as wrong", missed: "marked as missed" };  // "differs" has a sentence

// "20261130T071500-…" as a local time.
function when(name) {
  const [, year, month, day, hour, minute, second] = name.match(/^(....)(..)(..)T(..)(..)(..)/);
  return new Date(Date.UTC(year, month - 1, day, hour, minute, second)).toLocaleString("en-GB");
}

// The time of a version and the first digits of its run, which tell it from others; the rest is in the title.
const brief = (version) => Object.assign(element("bdi", "", version.slice(0, 24)), { title: version });

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function row(sound, words) {
  const at = when(sound.name);
  const word = Object.assign(element("input"), { value: sound.kind === "wrong" ? "other" : sound.word || sound.shadow_word, required: true, maxLength: 60, dir: "auto" });
  word.setAttribute("list", "words");
  word.setAttribute("aria-label", `Word that is spoken in the sound of ${at}`);
  const audio = Object.assign(element("audio"), { controls: true, preload: "none", src: `heard/${sound.name}` });
  audio.setAttribute("aria-label", `Sound of ${at}`);
  const share = sound.kind === "missed" ? "" : sound.kind === "differs"
    ? [sound.probability, sound.shadow_probability].map(percent).join("; ")
    : `${percent(sound.probability)} (from ${percent(sound.threshold)} on)`;
  const line = element("tr");
  const done = async (said, text) => {
    if (!(await review(sound.name, said, problem))) return;
    problem("");
    status(text);
    const next = line.nextElementSibling;
    line.remove();
    count(-1);
    if (next) next.querySelector("input").focus();
  };
  const form = element("form", "row", word, Object.assign(element("button", "small", "Confirm"), { type: "submit" }),
    button("Delete", `Delete the sound of ${at}`, () => done(null, "Deleted.")));
  form.onsubmit = (event) => {
    event.preventDefault();
    const name = word.value.normalize("NFC").trim();
    done({ word: name }, `Confirmed: now a recording of “${apart(name)}”.`);
  };
  const said = (word, otherwise) => element("bdi", "", word || otherwise);
  const why = sound.kind === "differs"
    ? element("td", "", said(sound.word, "no word"), " for the version that answers, ", said(sound.shadow_word, "no word"), " for the one in the shadow")
    : element("td", "", said(sound.word, "a word"), ` ${REASONS[sound.kind]}`);
  const version = element("td", "", brief(sound.version));
  if (sound.kind === "differs") version.append("; ", brief(sound.shadow));
  line.append(element("td", "", at), why, element("td", "", share), version,
    element("td", "", audio), element("td", "", form));
  return line;
}

let total = 0;
function count(change) {
  total += change;
  $("count").textContent = total ? `${total} ${total === 1 ? "sound awaits" : "sounds await"} review, the newest first.` : "No sound awaits review.";
}

async function show() {
  const answer = await fetch("heard");
  const found = await answer.json();
  if (!answer.ok) {
    problem(`${found.error}.`);
    return;
  }
  const kinds = $("kind").value;
  $("words").replaceChildren(...found.words.map((word) => Object.assign(element("option"), { value: word })));
  $("sounds").tBodies[0].replaceChildren(...found.sounds.filter(({ kind }) => !kinds || kind === kinds).map((sound) => row(sound, found.words)));
  total = found.total;
  count(0);
}

$("kind").onchange = show;
$("purge").onsubmit = async (event) => {
  event.preventDefault();
  const answer = await fetch(`heard?before=${$("before").value}`, { method: "DELETE" });
  const said = await answer.json();
  if (answer.ok) status(`Deleted: ${said.deleted}.`);
  else problem(`${said.error}.`);
  await show();
};
show();
