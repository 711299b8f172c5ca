// A card: one task on the picture, what it takes, and its answer.

import { annotationsOf } from "./annotations.js";
import { factsView, itemsView, textOf, textView } from "./answer.js";
import { programs } from "./code.js";
import { el, serial } from "./dom.js";
import { Overlay } from "./overlay.js";
import { Region } from "./region.js";
import { tabs } from "./tabs.js";
import { grouped } from "./tasks.js";

const KINDS = ["text", "tags", "json", "boxes", "quads", "polygons", "boxes_or_polygons"];

/** One task of the page. `onGround`: called with a card and its text to find its phrases. */
export class Card {
  #overlay = new Overlay(() => {});
  #region = new Region();
  #image = el("img", { alt: "The chosen picture" });
  #answer = el("div", { class: "answer", "aria-live": "polite" });
  #code = el("div");
  #text = el("input", { type: "text", autocomplete: "off" });
  #kind = el("select", {}, ...KINDS.map((kind) => el("option", { value: kind }, kind.replaceAll("_", " "))));
  #tasks;
  #onGround;

  constructor(tasks, name, { onRemove, onGround }) {
    this.#tasks = tasks;
    this.#onGround = onGround;
    this.#select = taskSelect(tasks, name);
    this.#select.onchange = () => this.#chosen();
    this.#summary = el("p", { class: "hint" });
    this.#text.id = `text-${serial()}`;
    this.#kind.id = `kind-${serial()}`;
    this.#label = el("label", { for: this.#text.id });
    this.#textField = el("div", { class: "field" }, this.#label, this.#text);
    this.#kindField = el("div", { class: "field" }, el("label", { for: this.#kind.id }, "Read its answer as"), this.#kind);
    const label = el("label", { class: "unseen", for: this.#select.id }, "Task");
    const remove = el("button", { type: "button", class: "quiet remove", title: "Remove this task" }, "×");
    remove.setAttribute("aria-label", "Remove this task");
    remove.onclick = () => onRemove(this);
    this.#figure = el("figure", {}, this.#image, ...this.#overlay.elements, this.#region.layer);
    this.element = el(
      "article",
      { class: "card" },
      el("header", {}, label, this.#select, remove),
      this.#summary, this.#textField, this.#kindField, this.#region.field, this.#figure, this.#answer, this.#code,
    );
    this.#chosen();
  }

  #select;
  #summary;
  #label;
  #textField;
  #kindField;
  #figure;

  get task() {
    return this.#tasks.find((task) => task.path === this.#select.value);
  }

  /** What the task takes besides the picture. Throws where something is missing. */
  get given() {
    const { input } = this.task;
    if (input === "region") return { region: this.#region.value };
    if (input === "none") return {};
    const text = this.#text.value.trim();
    if (text === "") {
      this.#text.focus();
      throw new Error(input === "text" ? "Type what to look for." : "Type a prompt.");
    }
    return input === "text" ? { text } : { prompt: text, answer_as: this.#kind.value };
  }

  /** Takes another picture and clears the answer. `size`: null where the browser can't show it. */
  picture({ url, size }) {
    this.#image.src = size === null ? "" : url;
    this.#image.hidden = size === null;
    if (size) this.#region.reset(size);
    this.clear();
  }

  clear() {
    this.#answer.replaceChildren();
    this.#code.replaceChildren();
    this.#overlay.show([], { width: 1, height: 1 });
    this.element.classList.remove("busy");
  }

  /** While its answer is awaited. */
  wait() {
    this.clear();
    this.element.classList.add("busy");
  }

  /** A text that is still being generated. */
  stream(text) {
    this.#answer.replaceChildren(el("p", { class: "text growing" }, text));
  }

  /** What went wrong. */
  fail(message) {
    this.clear();
    this.#answer.replaceChildren(el("p", { class: "error", role: "alert" }, message));
  }

  /** Shows a request's typed answer. `asked`: as in `code.programs`. `original`: gives the original's JSON. */
  show(answer, asked, original) {
    this.clear();
    const annotations = annotationsOf(answer.result);
    const text = textOf(answer.result);
    this.#draw(annotations, answer.image_size);
    const { curl, python, v2 } = programs(asked);
    const parts = text === null ? itemsView(annotations, this.#overlay) : [textView(text || "(no text)", [], this.#overlay)];
    if (answer.result.kind === "json" && answer.result.error) {
      parts.push(el("p", { class: "hint" }, `This is not JSON: ${answer.result.error}`));
    }
    if (this.task.captions && text) parts.push(this.#groundButton(text));
    const code = tabs({
      "Typed JSON": () => JSON.stringify(answer, null, 2),
      "Original JSON": async () => JSON.stringify(await original(), null, 2),
      curl: () => curl,
      "Python client": () => python,
      "v2 program": () => v2,
    });
    this.#answer.replaceChildren(...parts, factsView(answer));
    this.#code.replaceChildren(code);
  }

  /** The boxes of a caption's phrases, which are marked in the text above them. */
  ground(text, answer) {
    const annotations = annotationsOf(answer.result);
    this.#draw(annotations, answer.image_size);
    this.#answer.querySelector(".text").replaceWith(textView(text, annotations, this.#overlay));
    this.#answer.querySelector(".ground").replaceWith(...itemsView(annotations, this.#overlay));
  }

  #draw(annotations, size) {
    this.#overlay.show(annotations, size);
    this.#figure.style.setProperty("--ratio", `${size.width} / ${size.height}`);
  }

  #groundButton(text) {
    const button = el("button", { type: "button", class: "ground" }, "Find its phrases in the picture");
    button.onclick = async () => {
      button.disabled = true;
      await this.#onGround(this, text);
      button.disabled = false;
    };
    return button;
  }

  #chosen() {
    const { input, summary, example } = this.task;
    this.#summary.textContent = summary;
    this.#textField.hidden = input !== "text" && input !== "prompt";
    this.#kindField.hidden = input !== "prompt";
    this.#region.field.hidden = input !== "region";
    this.#region.layer.toggleAttribute("hidden", input !== "region");
    this.#label.textContent = input === "prompt" ? "Prompt" : "Text";
    this.#text.placeholder = example ? `for example: ${example}` : "";
    this.clear();
  }
}

function taskSelect(tasks, name) {
  const option = (task) => el("option", { value: task.path, selected: task.name === name }, task.title);
  const groups = grouped(tasks).map(([label, members]) => el("optgroup", { label }, ...members.map(option)));
  return el("select", { id: `task-${serial()}`, class: "task" }, ...groups);
}
