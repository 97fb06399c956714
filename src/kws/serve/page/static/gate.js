// The gate: after its word the others count for some seconds. Shows whether it is open, and which words are armed.
import { $, apart, state } from "./state.js";

export function showGate(openSeconds = 0) {
  const { after, afterSeconds, armed } = state.gate;
  const open = armed !== null || openSeconds > 0;
  $("gate").hidden = !after && armed === null;
  $("gate").classList.toggle("open", open);
  $("grid").classList.toggle("shut", Boolean(after) && !open);
  $("gate-text").textContent = armed !== null ? `Armed: ${armed.map(apart).join(", ") || "no word"}`
    : open ? `Open for ${openSeconds.toFixed(1)} s` : `Say “${apart(after)}” first: then the words count for ${afterSeconds} s.`;
  $("gate-left").hidden = armed !== null;
  $("gate-left").value = afterSeconds ? Math.min(1, openSeconds / afterSeconds) : 0;
}
