// The card of the model, written in Markdown: headings, tables, lists, code, bold text and links, and nothing else.
import { $, apart, element } from "./state.js";

// Splits text into `code`, **bold**, [links](…) and the rest.
function inline(text) {
  return text.split(/(`` .+? ``|`[^`]+`|\*\*[^*]+\*\*|\[[^\]]+\]\([^)\s]+\))/).map((part) => {
    const link = /^\[([^\]]+)\]\((https?:[^)\s]+)\)$/.exec(part);
    if (link) return Object.assign(element("a", "", link[1]), { href: link[2], rel: "noreferrer" });
    if (/^`.+`$/.test(part)) return element("code", "", part.replace(/^`` (.+) ``$|^`(.+)`$/, "$1$2"));
    if (/^\*\*.+\*\*$/.test(part)) return element("strong", "", part.slice(2, -2));
    return part;
  });
}

const cells = (line) => line.split("|").slice(1, -1).map((cell) => cell.trim());

function table(lines) {
  const made = element("table");
  const [head, , ...rows] = lines;
  if (cells(head).some(Boolean)) made.append(element("tr", "", ...cells(head).map((cell) => element("th", "", ...inline(cell)))));
  made.append(...rows.map((row) => element("tr", "", ...cells(row).map((cell) => element("td", "", ...inline(cell))))));
  return element("div", "wide", made);
}

// Returns elements for a text in Markdown.
export function render(markdown) {
  const body = markdown.replace(/^---\n[^]*?\n---\n/, ""); // without the head that hubs read
  return body.split(/(^```[^]*?^```$)/m).flatMap((part) => {
    if (part.startsWith("```")) return [element("pre", "", part.replace(/^```.*\n|\n?```$/g, ""))];
    return part.split(/\n\s*\n/).filter((block) => block.trim()).map((block) => {
      const lines = block.trim().split("\n");
      const heading = /^(#+) (.*)/.exec(lines[0]);
      if (heading) return element(heading[1] === "#" ? "h3" : "h4", "", ...inline(heading[2]));
      if (lines[0].startsWith("|")) return table(lines);
      if (lines[0].startsWith("- ")) {
        const items = block.trim().slice(2).split(/\n- /);
        return element("ul", "", ...items.map((item) => element("li", "", ...inline(item.replaceAll("\n", " ")))));
      }
      return element("p", "", ...inline(lines.join(" ")));
    });
  });
}

export async function showCard() {
  const answer = await fetch("card");
  if (!answer.ok) return;
  const about = await answer.json();
  const facts = [`version ${about.version}`, `${about.parameters.toLocaleString("en")} parameters`,
    `words: ${about.words.map(apart).join(", ")}`, ...Object.entries(about.about).map(([name, value]) => `${name}: ${value}`)];
  const text = about.card || `This model was published without a card.\n\n${facts.map((fact) => `- ${fact}`).join("\n")}`;
  $("card-text").replaceChildren(...render(text));
}
