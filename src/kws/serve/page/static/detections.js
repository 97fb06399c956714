// The detected words: the newest one large, and a table of all with their sound, a part for each file or start.
import { $, apart, button, element, problem, state, status } from "./state.js";
import { RATE, toPcm, wav } from "./sound.js";
import { keep } from "./teach.js";
import { review } from "./heard.js";

const MOST_LINES = 1000; // a second of sound is kept for each: 32 MB
const records = [];
let source = null;

// Begins a part of the table: for a file, whose times count from its beginning, or for the microphone.
export function beginPart(name, isFile) {
  source = { name, isFile, from: state.ring.total, count: 0, body: null };
  return source;
}

export function showDetection(found) {
  const from = state.origin + Math.round(found.time * RATE);
  const date = new Date(Date.now() - ((state.ring.total - from) / RATE) * 1000);
  const at = source.isFile ? `${found.time.toFixed(1)} s` : date.toLocaleTimeString("en-GB");
  const share = `${(100 * found.probability).toFixed(0)} %`;
  source.count += 1;
  $("latest").replaceChildren(element("b", "", found.word), element("span", "quiet", `at ${at}, ${share}`));
  if (!source.body) {
    source.body = element("tbody");
    const head = element("th", "part", source.name);
    Object.assign(head, { colSpan: 5, scope: "rowgroup" });
    source.body.append(element("tr", "", head));
    $("log").tHead.after(source.body);
  }
  const pcm = toPcm(state.ring.cut(from - RATE / 2, from + RATE / 2));
  const actions = element("td", "", button("Play", `Play ${found.word} at ${at}`, () => play(pcm)));
  if (state.collects) actions.append(" ", button("Keep", `Keep the sound at ${at} as a recording of the word named below`, async () => {
    const clip = await keep($("word").value.normalize("NFC").trim() || found.word, pcm);
    if (clip) status(`Kept as ${clip.split("/").map(apart).join("/")}.`);
  }));
  if (found.kept) actions.append(" ", button("Wrong", `Mark ${found.word} at ${at} as wrong, for review`, async (event) => {
    const mark = event.currentTarget;
    if (await review(found.kept, { kind: "wrong" }, problem)) {
      mark.disabled = true;
      status(`Marked as wrong: “${apart(found.word)}” at ${at} can be reviewed.`);
    }
  }));
  const after = (state.origin - source.from) / RATE; // the server's clock may have begun anew since
  const length = `${(after + found.begin).toFixed(2)}–${(after + found.end).toFixed(2)}`;
  source.body.rows[0].after(element("tr", "", ...[at, found.word, share, length].map((text) => element("td", "", text)), actions));
  records.unshift([source.name, source.isFile ? found.time.toFixed(2) : date.toISOString(), found.word,
    found.probability.toFixed(4), (found.end - found.begin).toFixed(2)]);
  if (records.length > MOST_LINES) {
    records.pop();
    const oldest = $("log").tBodies[$("log").tBodies.length - 1];
    oldest.deleteRow(-1);
    if (oldest.rows.length === 1) oldest.remove();
  }
  $("tools").hidden = false;
}

function play(pcm) {
  const audio = new Audio(URL.createObjectURL(new Blob([wav(pcm)], { type: "audio/wav" })));
  audio.onended = () => URL.revokeObjectURL(audio.src);
  audio.play();
}

function table(separator) {
  const quote = (text) => (/[",\n\t]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = [["source", "time", "word", "probability", "seconds"], ...[...records].reverse()];
  return lines.map((line) => line.map(quote).join(separator)).join("\n") + "\n";
}

$("clear").onclick = () => {
  records.length = 0;
  for (const body of [...$("log").tBodies]) body.remove();
  if (source) source.body = null;
  $("latest").replaceChildren(element("span", "quiet", "No word yet."));
  $("tools").hidden = true;
};
$("copy").onclick = async () => {
  try {
    await navigator.clipboard.writeText(table("\t"));
    status(`Copied ${records.length} ${records.length === 1 ? "detection" : "detections"}.`);
  } catch {
    problem("The browser allows copying only on pages at https:// or localhost: download the detections instead.");
  }
};
$("download").onclick = () => {
  const link = Object.assign(element("a"), { download: "detections.csv" });
  link.href = URL.createObjectURL(new Blob([table(",")], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
