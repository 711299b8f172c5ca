// An answer beside its picture: its text, or its items by label.

import { percent } from "./annotations.js";
import { el } from "./dom.js";

/** The text of a typed result, or null where it has none. */
export function textOf(result) {
  if (result.kind === "json" && result.error === null) return JSON.stringify(result.value, null, 2);
  return result.text ?? null;
}

/** A text; the phrases that annotations name are marked in their colours. */
export function textView(text, annotations, overlay) {
  const parts = [];
  let rest = text;
  for (const each of inOrder(text, annotations)) {
    const start = rest.toLowerCase().indexOf(each.label.toLowerCase());
    if (start < 0) continue;
    const mark = el("button", { type: "button", class: "phrase" }, rest.slice(start, start + each.label.length));
    mark.style.setProperty("--colour", each.colour);
    point(mark, overlay, each.index);
    parts.push(rest.slice(0, start), mark);
    rest = rest.slice(start + each.label.length);
  }
  return el("p", { class: "text" }, ...parts, rest);
}

function inOrder(text, annotations) {
  const place = ({ label }) => text.toLowerCase().indexOf(label.toLowerCase());
  const first = new Map(annotations.map((each) => [each.label, each])); // one mark a phrase
  return [...first.values()].filter((each) => each.label).sort((one, other) => place(one) - place(other));
}

/** A switch for each label, and a list of all items; both act on the overlay. */
export function itemsView(annotations, overlay) {
  if (annotations.length === 0) return [el("p", { class: "none" }, "Nothing was found.")];
  const buttons = annotations.map((each) => item(each, overlay));
  overlay.onActive = (active, selected) => {
    buttons.forEach((button, index) => {
      button.classList.toggle("active", index === active);
      button.setAttribute("aria-pressed", String(index === selected));
    });
  };
  const list = el("ol", { class: "items" }, ...buttons.map((button) => el("li", {}, button)));
  const counts = new Map();
  for (const each of annotations) counts.set(each.category, [...(counts.get(each.category) ?? []), each]);
  if (counts.size < 2) return [list];
  const switches = [...counts].map(([category, members]) => labelSwitch(category, members, overlay));
  const group = el("div", { class: "labels", role: "group", "aria-label": "Show or hide by label" }, ...switches);
  return [group, list];
}

function item(annotation, overlay) {
  const swatch = el("i", { class: "swatch" });
  const score = el("span", { class: "score" }, percent(annotation.score));
  const button = el(
    "button",
    { type: "button", class: "item", "aria-pressed": "false" },
    swatch,
    el("span", { class: "name" }, annotation.label || `item ${annotation.index + 1}`),
    score,
  );
  button.style.setProperty("--colour", annotation.colour);
  point(button, overlay, annotation.index);
  return button;
}

function point(button, overlay, index) {
  button.onpointerenter = button.onfocus = () => overlay.hover(index);
  button.onpointerleave = button.onblur = () => overlay.hover(null);
  button.onclick = () => overlay.select(index);
}

function labelSwitch(category, members, overlay) {
  const button = el(
    "button",
    { type: "button", class: "chip", "aria-pressed": "true" },
    el("i", { class: "swatch" }),
    `${category || "no label"} ${members.length}`,
  );
  button.style.setProperty("--colour", members[0].colour);
  button.onclick = () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    overlay.toggle(category, shown);
  };
  return button;
}

/** What an answer took, in one line. */
export function factsView(answer) {
  const facts = [
    `${answer.timings.total_s.toFixed(2)} s`,
    `${answer.usage.generated_tokens} tokens`,
    ...(answer.tiles > 1 ? [`${answer.tiles} tiles`] : []),
    ...(answer.result.score == null ? [] : [`score ${percent(answer.result.score)}`]),
    ...(answer.seed == null ? [] : [`seed ${answer.seed}`]),
    ...(answer.finish_reason === "length" ? ["cut at the limit on tokens"] : []),
  ];
  return el("p", { class: "facts" }, facts.join(" · "));
}
