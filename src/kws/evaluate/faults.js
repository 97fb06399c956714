// False alarms and misses, to hear and to see: filters, order, and a player that goes from one to the next.
const BATCH = 30; // items that are drawn at a time
const WIDTH = 320, HEIGHT = 96;
const LEAST = 0.01, MOST = 0.999; // ends of the axis of probabilities, in log-odds
const INKS = ["#3778bf", "#c8641b", "#2f8f55"];
const CAUSES = {
  true: { word: "another of the words", again: "a word twice", unknown: "an unknown word", sentence: "a sentence", noise: "noise", closed: "a word without the gate before it" },
  false: { low: "below its threshold", word: "heard as another word", suppressed: "too soon after another detection", never: "a word that is never reported", gate: "the gate was missed" },
};
const ORDERS = {
  "cause and word": (one) => [one.alarm ? 0 : 1, Object.keys(CAUSES[one.alarm]).indexOf(one.cause), one.word],
  "word and cause": (one) => [one.word, one.alarm ? 0 : 1, Object.keys(CAUSES[one.alarm]).indexOf(one.cause)],
  "highest probability": (one) => [-one.probability],
  "time": (one) => [],
};

const of = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const kind = (one) => one.alarm ? `false alarm in ${CAUSES.true[one.cause]}` : `missed: ${CAUSES.false[one.cause]}`;
const oddsOf = (p) => Math.log(p / (1 - p));
const across = (seconds, whole) => (WIDTH * seconds) / whole;
const up = (p) => HEIGHT - 4 - ((HEIGHT - 8) * (oddsOf(Math.min(Math.max(p, LEAST), MOST)) - oddsOf(LEAST))) / (oddsOf(MOST) - oddsOf(LEAST));
const shown = (p) => p > 0.99 ? p.toFixed(3) : p.toFixed(2);

function drawScores(one, whole) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const draw = (name, attributes, text = "") => {
    const made = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    svg.append(made);
  };
  for (const p of [0.1, 0.5, 0.9, 0.99]) {
    draw("line", { x1: 0, x2: WIDTH, y1: up(p), y2: up(p), stroke: "currentColor", "stroke-opacity": 0.15 });
    draw("text", { x: 2, y: up(p) - 2, fill: "currentColor", "fill-opacity": 0.75, "font-size": 9 }, p);
  }
  const middle = across(one.time - one.begin, whole);
  draw("line", { x1: middle, x2: middle, y1: 0, y2: HEIGHT, stroke: "currentColor", "stroke-opacity": 0.5, "stroke-dasharray": "2 3" });
  one.scores.forEach(({ word, threshold, values }, index) => {
    const ink = INKS[index % INKS.length];
    const [first, last] = one.times;
    const points = values.map((value, i) => {
      const seconds = first + ((last - first) * i) / Math.max(values.length - 1, 1);
      return `${across(seconds, whole).toFixed(1)},${up(value / 1000).toFixed(1)}`;
    });
    if (threshold <= 1) draw("line", { x1: 0, x2: WIDTH, y1: up(threshold), y2: up(threshold), stroke: ink, "stroke-dasharray": "5 4" });
    draw("polyline", { points: points.join(" "), fill: "none", stroke: ink, "stroke-width": 2 });
  });
  return svg;
}

// The highest probability of each word, beside its threshold, in the colours of the lines.
function drawLegend(one) {
  return of("p", { className: "legend" }, ...one.scores.map(({ word, threshold, values }, index) => {
    const swatch = of("i");
    swatch.style.background = INKS[index % INKS.length];
    const highest = Math.max(...values, 0) / 1000;
    return of("span", {}, swatch, `${word} ${shown(highest)}, ${threshold <= 1 ? `threshold ${shown(threshold)}` : "never reported"}`);
  }));
}

// What was said: a bar for each utterance below the pictures, and the text of sentences.
function drawSaid(one, whole) {
  const bars = of("div", { className: "said" });
  const texts = [];
  for (const { begin, end, kind: what, text, source } of one.said) {
    const from = Math.max(begin, 0), to = Math.min(end, whole);
    const bar = of("span", { className: what, title: source }, what === "sentence" ? "sentence" : text[1]);
    bar.style.left = `${(100 * from) / whole}%`;
    bar.style.width = `${(100 * (to - from)) / whole}%`;
    bars.append(bar);
    if (what === "sentence") texts.push(of("p", { className: "text", title: source }, text[0], of("mark", {}, text[1]), text[2]));
  }
  if (!one.said.length) bars.append(of("span", { className: "nothing" }, "noise alone"));
  return [bars, ...texts];
}

export function showFaults(root, { rows, seconds }) {
  const find = (name) => root.querySelector(`[data-part=${name}]`);
  const [levels, table, order, list, more, count, playAll] = ["levels", "causes", "order", "list", "more", "count", "play"].map(find);
  const names = [...new Set(rows.map((one) => one.level))];
  const words = [...new Set(rows.map((one) => one.word))].sort();
  const player = new Audio();
  let wanted = {}; // level, alarm, cause and word of those that are shown; what is not there does not matter
  let found = [], drawn = 0, current = null, isPlayingAll = false;

  const fits = (one, filter) => Object.entries(filter).every(([key, value]) => one[key] === value);
  const choose = (filter) => { wanted = JSON.stringify(filter) === JSON.stringify(wanted) ? {} : filter; redraw(); };
  const pick = (text, filter, label) => {
    const button = of("button", { type: "button", onclick: () => choose(filter) }, text);
    button.setAttribute("aria-label", label);
    button.setAttribute("aria-pressed", JSON.stringify(filter) === JSON.stringify(wanted));
    return button;
  };
  const level = () => (wanted.level ? { level: wanted.level } : {});

  function drawTable() {
    levels.hidden = names.length < 2;
    levels.replaceChildren(...[undefined, ...names].map((name) => {
      const { level: _, ...rest } = wanted;
      const button = of("button", { type: "button", onclick: () => { wanted = name ? { level: name, ...rest } : rest; redraw(); } }, name || "all levels");
      button.setAttribute("aria-pressed", wanted.level === name);
      return button;
    }));
    const head = of("tr", {}, of("th"), of("th", { className: "n" }, "all"));
    for (const word of words) head.append(of("th", { className: "n" }, pick(word, { ...level(), word }, `all of ${word}`)));
    const lines = [head];
    for (const alarm of [true, false]) {
      for (const [cause, name] of [[null, alarm ? "false alarms" : "misses"], ...Object.entries(CAUSES[alarm])]) {
        const filter = { ...level(), alarm, ...(cause ? { cause } : {}) };
        const number = rows.filter((one) => fits(one, filter)).length;
        if (!number && cause) continue;
        const title = cause ? `${alarm ? "in " : ""}${name}` : name;
        const line = of("tr", { className: cause ? "" : "sum" }, of("th", { scope: "row" }, title));
        for (const word of [null, ...words]) {
          const narrow = word ? { ...filter, word } : filter;
          const here = rows.filter((one) => fits(one, narrow)).length;
          line.append(of("td", { className: "n" }, here ? pick(here, narrow, `${here}: ${title}, ${word || "all words"}`) : ""));
        }
        lines.push(line);
      }
    }
    table.replaceChildren(...lines);
  }

  function item(one) {
    const cursor = of("i");
    const view = of("button", { type: "button", className: "view", onclick: () => { isPlayingAll = false; play(one); } });
    view.setAttribute("aria-label", `${one.sound ? "Play" : "No sound of"} ${one.word}, ${kind(one)}, ${one.level}`);
    if (one.picture) view.append(of("img", { src: one.picture, alt: "" }));
    else view.append(of("span", { className: "without" }, "left out: no sound"));
    view.append(drawScores(one, seconds), cursor);
    one.item = of("li", {}, of("p", { className: "head" }, of("b", {}, one.word), ` ${kind(one)} `, of("span", { className: "quiet" },
      `${one.level}, at ${Math.floor(one.time / 60)}:${(one.time % 60).toFixed(1).padStart(4, "0")}`)), view, ...drawSaid(one, seconds), drawLegend(one));
    Object.assign(one, { view, cursor });
    return one.item;
  }

  function drawMore() {
    for (const one of found.slice(drawn, drawn + BATCH)) {
      const before = found[drawn - 1];
      const heading = order.value === "cause and word" ? (each) => `${each.word}, ${kind(each)}` : order.value === "word and cause" ? (each) => each.word : () => "";
      if (heading(one) && (!before || heading(before) !== heading(one))) {
        const number = found.filter((each) => heading(each) === heading(one)).length;
        list.append(of("li", { className: "group" }, of("h3", {}, `${heading(one)} (${number})`)));
      }
      list.append(item(one));
      drawn += 1;
    }
    more.hidden = drawn >= found.length;
    more.textContent = `Show ${Math.min(BATCH, found.length - drawn)} more of ${found.length - drawn}`;
  }

  function redraw() {
    stop();
    drawTable();
    const keys = new Map(rows.map((one) => [one, ORDERS[order.value](one)]));
    const compare = (a, b) => {
      for (let i = 0; i < keys.get(a).length; i++) {
        const [one, other] = [keys.get(a)[i], keys.get(b)[i]];
        if (one !== other) return one < other ? -1 : 1;
      }
      return 0;
    };
    found = rows.filter((one) => fits(one, wanted)).sort(compare);
    count.textContent = found.length === 1 ? "1 is shown." : `${found.length} are shown.`;
    playAll.disabled = !found.some((one) => one.sound);
    list.replaceChildren();
    drawn = 0;
    drawMore();
  }

  function stop() {
    player.pause();
    isPlayingAll = false;
    playAll.textContent = "Play all shown";
    if (current) current.item.classList.remove("playing");
  }

  function play(one) {
    if (current) current.item.classList.remove("playing");
    current = one;
    one.item.classList.add("playing");
    if (!one.sound) return;
    player.src = one.sound;
    player.play().catch(() => {}); // another one was chosen before this one began
  }

  // Goes to the next item, or with -1 to the one before; draws more if there are more.
  function go(by) {
    const at = found.indexOf(current) + by;
    if (at >= drawn) drawMore();
    if (at < 0 || at >= found.length) return stop();
    found[at].view.focus({ preventScroll: true });
    found[at].item.scrollIntoView({ block: "nearest" });
    play(found[at]);
    if (isPlayingAll && !found[at].sound) go(by);
  }

  player.onended = () => {
    if (current) current.item.classList.remove("playing");
    if (isPlayingAll) go(1);
  };
  list.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by) {
      event.preventDefault();
      isPlayingAll = false;
      current = found.find((one) => one.view === document.activeElement) || current;
      go(by);
    }
  });
  playAll.onclick = () => {
    if (isPlayingAll) return stop();
    stop();
    isPlayingAll = true;
    playAll.textContent = "Stop";
    current = null;
    go(1);
  };
  const tick = () => {
    if (current && !player.paused) current.cursor.style.left = `${(100 * player.currentTime) / seconds}%`;
    requestAnimationFrame(tick);
  };
  order.replaceChildren(...Object.keys(ORDERS).map((name) => of("option", {}, name)));
  order.onchange = redraw;
  more.onclick = drawMore;
  redraw();
  tick();
}
